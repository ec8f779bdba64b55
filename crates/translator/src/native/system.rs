//! Instructions of the operating system that it executes all the time: time, RFLAGS.IF, bases of FS and GS.
//!
//! Each looks first whether it may be done here, by the privilege level and by what the machine has said
//! ([`View`](super::View)), and is executed outside where not. That is also how everything is raised that it raises.

use iced_x86::{Code, Instruction};
use x86::rflags;

use super::asm::{Address, Condition, Label};
use super::fields::{
    CPL, KERNEL_GS_BASE, RFLAGS, SHADOW, SP, T0, T1, field, host, register, segment_base,
    segment_selector,
};
use super::options::Options;
use super::stub::Stub;
use super::translate::{Step, Translator};
use crate::decode::operands::has_memory;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

const FS: usize = 4;
const GS: usize = 5;

/// An instruction of this kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum System {
    /// With TSC_AUX: RDTSCP.
    Rdtsc {
        aux: bool,
    },
    Rdpid,
    Cli,
    Sti,
    Cld,
    Pushf,
    Swapgs,
    /// Of this segment, so many bytes.
    ReadBase(usize, usize),
    WriteBase(usize, usize),
    /// Of this segment, by MOV.
    ReadSelector(usize),
    Syscall,
    Sysret,
}

impl System {
    /// Which one it is, if it is to be in line.
    pub(super) fn of(instr: &Instruction, options: Options) -> Option<Self> {
        let (system, wanted) = match instr.code() {
            Code::Rdtsc => (Self::Rdtsc { aux: false }, options.time),
            Code::Rdtscp => (Self::Rdtsc { aux: true }, options.time),
            Code::Rdpid_r64 => (Self::Rdpid, options.time),
            Code::Cli => (Self::Cli, options.interrupts),
            Code::Sti => (Self::Sti, options.interrupts),
            Code::Cld => (Self::Cld, options.interrupts),
            Code::Pushfq => (Self::Pushf, options.interrupts),
            Code::Swapgs => (Self::Swapgs, options.bases),
            Code::Rdfsbase_r32 => (Self::ReadBase(FS, 4), options.bases),
            Code::Rdfsbase_r64 => (Self::ReadBase(FS, 8), options.bases),
            Code::Rdgsbase_r32 => (Self::ReadBase(GS, 4), options.bases),
            Code::Rdgsbase_r64 => (Self::ReadBase(GS, 8), options.bases),
            Code::Wrfsbase_r32 => (Self::WriteBase(FS, 4), options.bases),
            Code::Wrfsbase_r64 => (Self::WriteBase(FS, 8), options.bases),
            Code::Wrgsbase_r32 => (Self::WriteBase(GS, 4), options.bases),
            Code::Wrgsbase_r64 => (Self::WriteBase(GS, 8), options.bases),
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg if !has_memory(instr) => {
                (Self::ReadSelector(instr.op1_register().number()), options.bases)
            }
            Code::Syscall => (Self::Syscall, options.calls),
            Code::Sysretq => (Self::Sysret, options.calls),
            _ => return None,
        };
        (wanted && !instr.has_lock_prefix()).then_some(system)
    }
}

impl System {
    /// It is a branch.
    pub(super) fn ends_block(self) -> bool {
        matches!(self, Self::Syscall | Self::Sysret)
    }
}

/// The two ways beside the one in line.
pub(super) struct Ways {
    /// To the handler.
    pub(super) slow: Label,
    /// Behind the instruction, from there.
    pub(super) back: Label,
}

impl Translator<'_> {
    pub(super) fn system(&mut self, step: &Step, system: System) {
        match system {
            System::Rdtsc { aux } => self.rdtsc(step, aux),
            System::Rdpid => self.rdpid(step),
            System::Cli => self.cli(step),
            System::Sti => self.sti(step),
            System::Cld => self.cld(step),
            System::Pushf => self.pushf(step),
            System::Swapgs => self.swapgs(step),
            System::ReadBase(segment, size) => self.read_base(step, segment, size),
            System::WriteBase(segment, size) => self.write_base(step, segment, size),
            System::ReadSelector(segment) => self.read_selector(step, segment),
            System::Syscall => self.syscall(step),
            System::Sysret => self.sysret(step),
        }
    }

    /// Flags are free behind it.
    pub(super) fn ways(&mut self, step: &Step) -> Ways {
        self.put_flags_aside(step.before);
        let (slow, back) = (self.asm.label(), self.asm.label());
        self.stubs.push(Stub { label: slow, work: self.work_outside(step, back) });
        Ways { slow, back }
    }

    pub(super) fn refuse_if(&mut self, condition: u8, ways: &Ways) {
        self.asm.jump_if(condition, ways.slow);
    }

    /// Privilege level 0 may do it whatever RFLAGS.IOPL is.
    fn refuse_privileged(&mut self, ways: &Ways) {
        self.asm.compare_field_byte(CPL, 0);
        self.refuse_if(Condition::NE, ways);
    }

    /// Loads stay before it, as in the handler: another processor's clock must not be seen behind this one's.
    fn rdtsc(&mut self, step: &Step, aux: bool) {
        let ways = self.ways(step);
        self.asm.compare_field(field!(system.tsc_refused), 0);
        self.refuse_if(Condition::NE, &ways);
        self.asm.read_tsc();
        self.asm.shift_left(RDX, 32);
        self.asm.or(RAX, RDX);
        self.asm.add_field(RAX, field!(system.tsc_offset));
        self.asm.mov(RDX, RAX);
        self.asm.shift_right(RDX, 32);
        self.asm.low_32(RAX, RAX);
        if aux {
            self.asm.load_field(RCX, field!(system.tsc_aux));
        }
        self.asm.bind(ways.back);
    }

    fn rdpid(&mut self, step: &Step) {
        let slot = step.instr.op0_register().number() as u8;
        self.asm.load_field(host(slot).unwrap_or(T0), field!(system.tsc_aux));
        self.store_t0_as(slot);
    }

    /// Where the guest's register is in none of the host's.
    fn store_t0_as(&mut self, slot: u8) {
        if host(slot).is_none() {
            self.asm.store_field(register(slot), T0);
        }
    }

    fn cli(&mut self, step: &Step) {
        let ways = self.ways(step);
        self.refuse_privileged(&ways);
        self.asm.and_field(RFLAGS, !(rflags::IF as u32));
        self.asm.bind(ways.back);
    }

    fn cld(&mut self, step: &Step) {
        self.put_flags_aside(step.before);
        self.asm.and_field(RFLAGS, !(rflags::DF as u32));
    }

    /// Where nothing waits: whatever comes later sets the byte that branches look at. The shadow is there for the next
    /// instruction, for which the core may come out.
    fn sti(&mut self, step: &Step) {
        let ways = self.ways(step);
        self.refuse_privileged(&ways);
        self.refuse_waiting(&ways);
        self.asm.test_field(RFLAGS, rflags::IF as u32);
        self.asm.jump_if(Condition::NE, ways.back);
        self.asm.or_field(RFLAGS, rflags::IF as u32);
        self.asm.store_field_byte(SHADOW, 1);
        self.asm.bind(ways.back);
    }

    /// Behind the instruction that follows STI, or before it where it is a branch: whatever a branch comes out for is
    /// behind it, or an exception. None that casts a shadow itself goes on in the block.
    pub(super) fn end_shadow(&mut self) {
        self.asm.store_field_byte(SHADOW, 0);
    }

    /// An event might be delivered now. Destroys T0.
    pub(super) fn refuse_waiting(&mut self, ways: &Ways) {
        self.asm.compare_field(field!(system.held), 0);
        self.refuse_if(Condition::NE, ways);
        self.asm.load_field(T0, field!(pending));
        self.asm.compare_byte_with_0(Address::at(T0, 0));
        self.refuse_if(Condition::NE, ways);
    }

    /// It reads all status flags, so they are aside behind the check.
    fn pushf(&mut self, step: &Step) {
        self.asm.lea(T0, Address::at(SP, -8));
        let back = self.check(step, 8, true);
        self.asm.push(RAX);
        self.whole_flags(T1);
        self.asm.and(T1, !((rflags::RF | rflags::VM) as i32));
        self.asm.pop(RAX);
        self.asm.store(Address::at(T0, 0), T1);
        self.asm.lea(SP, Address::at(SP, -8));
        self.asm.bind(back);
    }

    /// `to` = RFLAGS, whose status flags are aside. Destroys RAX.
    pub(super) fn whole_flags(&mut self, to: u8) {
        // See `Asm::flags_to_ax`.
        self.asm.load_field_byte(RAX, field!(flags));
        self.asm.shift_left_32(RAX, rflags::OF.trailing_zeros() as u8);
        self.asm.load_field_byte(to, field!(flags) + 1);
        self.asm.or(RAX, to);
        self.asm.load_field(to, RFLAGS);
        self.asm.and(to, !(rflags::STATUS as i32));
        self.asm.or(to, RAX);
    }

    fn swapgs(&mut self, step: &Step) {
        let ways = self.ways(step);
        self.refuse_privileged(&ways);
        self.asm.load_field(T0, segment_base(GS));
        self.asm.load_field(T1, KERNEL_GS_BASE);
        self.asm.store_field(KERNEL_GS_BASE, T0);
        self.asm.store_field(segment_base(GS), T1);
        self.asm.bind(ways.back);
    }

    fn read_base(&mut self, step: &Step, segment: usize, size: usize) {
        let ways = self.ways(step);
        self.asm.compare_field(field!(system.bases_refused), 0);
        self.refuse_if(Condition::NE, &ways);
        let slot = step.instr.op0_register().full_register().number() as u8;
        let to = host(slot).unwrap_or(T0);
        self.asm.load_field(to, segment_base(segment));
        if size == 4 {
            self.asm.low_32(to, to);
        }
        self.store_t0_as(slot);
        self.asm.bind(ways.back);
    }

    fn read_selector(&mut self, step: &Step, segment: usize) {
        let slot = step.instr.op0_register().full_register().number() as u8;
        self.asm.load_field_16(host(slot).unwrap_or(T0), segment_selector(segment));
        self.store_t0_as(slot);
    }

    fn write_base(&mut self, step: &Step, segment: usize, size: usize) {
        let ways = self.ways(step);
        self.asm.compare_field(field!(system.bases_refused), 0);
        self.refuse_if(Condition::NE, &ways);
        let slot = step.instr.op0_register().full_register().number() as u8;
        let value = self.value_of(slot, T0);
        if size == 4 {
            self.asm.low_32(T0, value);
        } else {
            self.asm.mov(T0, value);
            self.refuse_no_address(&ways);
        }
        self.asm.store_field(segment_base(segment), T0);
        self.asm.bind(ways.back);
    }

    /// T0 is not canonical. Destroys T1.
    pub(super) fn refuse_no_address(&mut self, ways: &Ways) {
        self.asm.mov(T1, T0);
        self.asm.shift_right_signed(T1, 47);
        self.asm.lea(T1, Address::at(T1, 1));
        self.asm.compare(T1, 1);
        self.refuse_if(Condition::A, ways);
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    #[test]
    fn each_is_in_line_unless_its_switch_is_off() {
        let all = Options::default();
        let cases: [(&[u8], System, Options); 7] = [
            (&[0x0f, 0x31], System::Rdtsc { aux: false }, Options { time: false, ..all }),
            (&[0xfb], System::Sti, Options { interrupts: false, ..all }),
            (&[0x9c], System::Pushf, Options { interrupts: false, ..all }),
            (&[0x0f, 0x01, 0xf8], System::Swapgs, Options { bases: false, ..all }),
            (&[0x8c, 0xd0], System::ReadSelector(2), Options { bases: false, ..all }),
            (&[0x0f, 0x05], System::Syscall, Options { calls: false, ..all }),
            (&[0x48, 0x0f, 0x07], System::Sysret, Options { calls: false, ..all }),
        ];
        for (bytes, expected, off) in cases {
            let instr = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
            assert_eq!(System::of(&instr, all), Some(expected));
            assert_eq!(System::of(&instr, off), None);
        }
        // SYSRET to code of 32 bits, PUSHF of 16, a selector to memory and to 16 bits.
        let others: [&[u8]; 4] = [&[0x0f, 0x07], &[0x66, 0x9c], &[0x8c, 0x10], &[0x66, 0x8c, 0xd0]];
        for bytes in others {
            let instr = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
            assert_eq!(System::of(&instr, all), None);
        }
    }
}
