//! System instructions: what `translator::decode::system` hands to the machine, one file a topic.

mod control;
mod descriptor;
mod flags;
mod io;
mod model;
mod msrs;
mod syscall;
mod transfer;

pub(crate) use control::CR4_KNOWN;
pub(crate) use msrs::{
    EFER_KNOWN, load as msr_load, read as msr_read, set_tsc_offset, tell_stopped,
};

use std::sync::atomic::{Ordering, fence};

use translator::{Insn, InsnFlags, Machine, RSP, Stop, SystemOp, Width};
use x86::rflags;

use crate::system::{Core, System};

/// An instruction of this engine.
pub(crate) type SystemInsn = Insn<System>;

/// After an instruction that changed flags, privilege or code segment: the next may follow at once, unless an
/// event waits for the window that has opened, it is to be a step, or the code is of another width.
fn go_on(core: &Core) -> Result<(), Stop> {
    let stays = core.cpu.width == Width::Bits64 && !core.cpu.flag(rflags::TF);
    if stays && !core.machine.look { Ok(()) } else { Err(Stop::End) }
}

/// The same where translations may have changed too, if fetches from the page at `page` come from where they did
/// `before`: what runs there now is what was to run.
fn go_on_in(core: &mut Core, page: u64, before: Option<u64>) -> Result<(), Stop> {
    if before.is_none() || core.machine.tlb.fetch(page) != before {
        return Err(Stop::End);
    }
    core.machine.end = false;
    go_on(core)
}

/// Executes one system instruction; the operands are where `translator::decode::system` says.
pub(crate) fn execute(core: &mut Core, op: SystemOp, insn: &SystemInsn) -> Result<(), Stop> {
    use SystemOp as Op;
    if serializes(op) {
        fence(Ordering::SeqCst);
    }
    match op {
        Op::In => io::input(core, insn),
        Op::Out => io::output(core, insn),
        Op::Ins => io::input_string(core, insn),
        Op::Outs => io::output_string(core, insn),
        Op::Cli => flags::cli(core),
        Op::Sti => flags::sti(core),
        Op::Pushf => flags::pushf(core, insn),
        Op::Popf => flags::popf(core, insn),
        Op::Hlt => control::hlt(core),
        Op::Cpuid => model::cpuid(core),
        Op::Rdtsc => model::rdtsc(core),
        Op::Rdtscp => model::rdtscp(core),
        Op::Rdpid => model::rdpid(core, insn),
        Op::Rdpmc => Err(core.machine.gp(0)),
        Op::Rdmsr => msrs::rdmsr(core),
        Op::Wrmsr => msrs::wrmsr(core),
        Op::Rdrand => model::random(core, insn),
        Op::Rdseed => model::random(core, insn),
        Op::Xgetbv => model::xgetbv(core),
        Op::Xsetbv => model::xsetbv(core),
        Op::MovToCr => control::mov_to_cr(core, insn),
        Op::MovFromCr => control::mov_from_cr(core, insn),
        Op::MovToDr => control::mov_to_dr(core, insn),
        Op::MovFromDr => control::mov_from_dr(core, insn),
        Op::Clts => control::clts(core),
        Op::Lmsw => control::lmsw(core, insn),
        Op::Smsw => control::smsw(core, insn),
        Op::Invlpg => control::invlpg(core, insn),
        Op::Invpcid => control::invpcid(core, insn),
        Op::Invd | Op::Wbinvd => privileged(core),
        Op::Lgdt | Op::Lidt => descriptor::load_table(core, insn, op == Op::Lidt),
        Op::Sgdt | Op::Sidt => descriptor::store_table(core, insn, op == Op::Sidt),
        Op::Lldt => descriptor::lldt(core, insn),
        Op::Ltr => descriptor::ltr(core, insn),
        Op::Sldt => descriptor::store_selector(core, insn, core.machine.regs.ldtr.selector),
        Op::Str => descriptor::store_selector(core, insn, core.machine.regs.tr.selector),
        Op::Lar | Op::Lsl => descriptor::lar_lsl(core, insn, op == Op::Lsl),
        Op::Verr | Op::Verw => descriptor::verify(core, insn, op == Op::Verw),
        Op::MovToSeg => descriptor::mov_to_seg(core, insn),
        Op::MovFromSeg => descriptor::mov_from_seg(core, insn),
        Op::PushSeg => descriptor::push_seg(core, insn),
        Op::PopSeg => descriptor::pop_seg(core, insn),
        Op::LoadFarPointer => descriptor::load_far_pointer(core, insn),
        Op::Swapgs => syscall::swapgs(core),
        Op::Rdfsbase | Op::Rdgsbase => syscall::read_base(core, insn, op == Op::Rdgsbase),
        Op::Wrfsbase | Op::Wrgsbase => syscall::write_base(core, insn, op == Op::Wrgsbase),
        Op::Syscall => syscall::syscall(core),
        Op::Sysret => syscall::sysret(core, insn),
        Op::Sysenter => syscall::sysenter(core),
        Op::Sysexit => syscall::sysexit(core, insn),
        Op::Int => transfer::int(core, insn.imm as u8),
        Op::Int1 => transfer::int(core, 1),
        Op::Int3 => transfer::int3(core),
        Op::Into => transfer::into(core),
        Op::Iret => transfer::iret(core, insn),
        Op::JmpFar => transfer::jmp_far(core, insn),
        Op::CallFar => transfer::call_far(core, insn),
        Op::RetFar => transfer::ret_far(core, insn),
        Op::Vmcall => model::vmcall(core, insn),
        Op::Monitor | Op::Mwait | Op::Clac | Op::Stac | Op::Undefined => Err(core.machine.ud()),
    }
}

/// Instructions that serialize: what was stored before them is in memory before anything is loaded after them (SDM
/// vol. 3, 9.3). Kernels rely on it: a processor that loads CR3 has said before whose tables it is about to read.
fn serializes(op: SystemOp) -> bool {
    use SystemOp as Op;
    matches!(
        op,
        Op::Cpuid
            | Op::Iret
            | Op::MovToCr
            | Op::MovToDr
            | Op::Clts
            | Op::Lmsw
            | Op::Invlpg
            | Op::Invpcid
            | Op::Invd
            | Op::Wbinvd
            | Op::Lgdt
            | Op::Lidt
            | Op::Lldt
            | Op::Ltr
            | Op::Wrmsr
            | Op::Xsetbv
    )
}

/// #GP(0) unless at privilege level 0.
pub(crate) fn privileged(core: &mut Core) -> Result<(), Stop> {
    if core.cpu.cpl != 0 { Err(core.machine.gp(0)) } else { Ok(()) }
}

/// Bytes of the operand, as the flags say.
pub(crate) fn operand_size(insn: &SystemInsn) -> usize {
    if insn.flags & InsnFlags::WIDE != 0 {
        8
    } else if insn.flags & InsnFlags::SMALL != 0 {
        2
    } else {
        4
    }
}

/// Writes a register with an operand size: 32 bits zero-extend.
pub(crate) fn set_register(core: &mut Core, slot: u8, size: usize, value: u64) {
    let register = &mut core.cpu.regs[(slot & 31) as usize];
    *register = match size {
        2 => *register & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// The 16-bit r/m source.
pub(crate) fn selector_source(core: &mut Core, insn: &SystemInsn) -> Result<u16, Stop> {
    if insn.flags & InsnFlags::MEMORY != 0 {
        let at = core.address(insn);
        return core.machine.load::<u16>(at);
    }
    Ok(core.cpu.regs[(insn.src & 31) as usize] as u16)
}

/// Reads `size` (2, 4, 8) bytes of the stack `offset` bytes above RSP.
pub(crate) fn stack_load(core: &mut Core, offset: u64, size: usize) -> Result<u64, Stop> {
    let rsp = core.cpu.regs[RSP as usize].wrapping_add(offset) & core.cpu.stack_mask;
    let at = core.cpu.segs[2].base.wrapping_add(rsp);
    let at = if core.cpu.stack_mask == u64::MAX { rsp } else { at };
    let loaded = match size {
        2 => core.machine.load::<u16>(at).map(u64::from),
        4 => core.machine.load::<u32>(at).map(u64::from),
        _ => core.machine.load::<u64>(at),
    };
    loaded.inspect_err(|_| core.machine.fault_on_stack = true)
}

/// Writes `size` bytes at `offset` from RSP, which stays as it is.
pub(crate) fn stack_store(
    core: &mut Core,
    offset: i64,
    size: usize,
    value: u64,
) -> Result<(), Stop> {
    let rsp = core.cpu.regs[RSP as usize].wrapping_add(offset as u64) & core.cpu.stack_mask;
    let at = core.cpu.segs[2].base.wrapping_add(rsp);
    let at = if core.cpu.stack_mask == u64::MAX { rsp } else { at };
    let stored = match size {
        2 => core.machine.store(at, value as u16),
        4 => core.machine.store(at, value as u32),
        _ => core.machine.store(at, value),
    };
    stored.inspect_err(|_| core.machine.fault_on_stack = true)
}
