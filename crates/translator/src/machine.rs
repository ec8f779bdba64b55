//! What a core is plugged into: memory by linear address, and the instructions that are not innocuous.

use x86::Exception;

use crate::insn::Insn;
use crate::interp::Core;
use crate::native::View;

/// Why an instruction did not simply complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It raised the exception that [`Machine::raise`] was given; no register has changed.
    Fault,
    /// It must be executed again from its start: a repeated string instruction between two chunks, or an
    /// access that waits for an answer from outside. Registers show the progress made.
    Retry,
    /// It completed, and the block must end: translations, code, the interrupt window or the mode may
    /// have changed, or the machine has something to report.
    End,
}

/// An integer that instructions move: `u8`, `u16`, `u32`, `u64`.
pub trait Word: Copy + Eq + Ord + std::fmt::Debug + 'static {
    /// Bytes.
    const SIZE: usize;
    /// Bits.
    const BITS: u32;
    /// The low bits of `value`.
    fn cut(value: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// The register in `slot` (see [`Cpu::regs`](crate::Cpu::regs)).
    fn read(regs: &[u64; 32], slot: u8) -> Self;
    /// Writes the register in `slot`: 32 bits zero-extend, 8 and 16 bits keep the rest.
    fn write(self, regs: &mut [u64; 32], slot: u8);
}

macro_rules! word {
    ($ty:ty, $signed:ty, $read:expr, $write:expr) => {
        impl Word for $ty {
            const SIZE: usize = size_of::<$ty>();
            const BITS: u32 = <$ty>::BITS;
            #[inline(always)]
            fn cut(value: u64) -> Self {
                value as $ty
            }
            #[inline(always)]
            fn zext(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn read(regs: &[u64; 32], slot: u8) -> Self {
                $read(regs, slot)
            }
            #[inline(always)]
            fn write(self, regs: &mut [u64; 32], slot: u8) {
                $write(self, regs, slot);
            }
        }
    };
}

word!(
    u8,
    i8,
    |regs: &[u64; 32], slot: u8| {
        let shift = (slot >> 7) * 8;
        (regs[(slot & 31) as usize] >> shift) as u8
    },
    |value: u8, regs: &mut [u64; 32], slot: u8| {
        let shift = (slot >> 7) * 8;
        let reg = &mut regs[(slot & 31) as usize];
        *reg = *reg & !(0xff << shift) | u64::from(value) << shift;
    }
);
word!(
    u16,
    i16,
    |regs: &[u64; 32], slot: u8| regs[(slot & 31) as usize] as u16,
    |value: u16, regs: &mut [u64; 32], slot: u8| {
        let reg = &mut regs[(slot & 31) as usize];
        *reg = *reg & !0xffff | u64::from(value);
    }
);
word!(
    u32,
    i32,
    |regs: &[u64; 32], slot: u8| regs[(slot & 31) as usize] as u32,
    |value: u32, regs: &mut [u64; 32], slot: u8| regs[(slot & 31) as usize] = u64::from(value)
);
word!(
    u64,
    i64,
    |regs: &[u64; 32], slot: u8| regs[(slot & 31) as usize],
    |value: u64, regs: &mut [u64; 32], slot: u8| regs[(slot & 31) as usize] = value
);

/// Instructions whose effect depends on, or reaches, state outside [`Cpu`](crate::Cpu). The machine
/// executes them; operands are in the [`Insn`] as for any other (see `decode::system` for each).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the instructions'")]
pub enum SystemOp {
    /// IN AL/AX/EAX: `aux` bytes from port `imm`, or from DX where `src` is `Gpr::Rdx`.
    In,
    Out,
    /// INS/OUTS, with or without REP (`InsnFlags::REP`).
    Ins,
    Outs,
    Cli,
    Sti,
    Hlt,
    Cpuid,
    Rdtsc,
    Rdtscp,
    Rdpid,
    Rdpmc,
    Rdmsr,
    Wrmsr,
    /// MOV to and from CRn, DRn: the general register in `src` or `dst`, the number in `aux`.
    MovToCr,
    MovFromCr,
    MovToDr,
    MovFromDr,
    Clts,
    Lmsw,
    Smsw,
    Invlpg,
    Invpcid,
    Invd,
    Wbinvd,
    Lgdt,
    Lidt,
    Lldt,
    Ltr,
    Sgdt,
    Sidt,
    Sldt,
    Str,
    Lar,
    Lsl,
    Verr,
    Verw,
    Swapgs,
    Syscall,
    Sysret,
    Sysenter,
    Sysexit,
    /// INT n: the vector in `imm`.
    Int,
    Int1,
    Int3,
    Into,
    Iret,
    /// MOV Sreg and POP Sreg, LDS..LGS: the segment's number in `aux`.
    MovToSeg,
    MovFromSeg,
    PopSeg,
    PushSeg,
    LoadFarPointer,
    /// Far JMP, CALL, RET.
    JmpFar,
    CallFar,
    RetFar,
    Rdfsbase,
    Rdgsbase,
    Wrfsbase,
    Wrgsbase,
    Rdrand,
    Rdseed,
    Xgetbv,
    Xsetbv,
    Monitor,
    Mwait,
    Vmcall,
    Clac,
    Stac,
    /// POPF changes IF, IOPL, TF by privilege: the core calls the machine for the whole instruction.
    Popf,
    Pushf,
    /// An encoding that this processor does not have: raises #UD.
    Undefined,
}

/// Which state a vector or x87 instruction touches, hence which control bits decide whether it may
/// (SDM volume 1, 13.1 and 13.2; volume 3, 2.5 and chapter 13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum VectorKind {
    /// x87 instructions, FXSAVE and FXRSTOR: #NM where CR0.EM or CR0.TS.
    X87,
    /// WAIT: #NM where CR0.MP and CR0.TS.
    Wait,
    /// #UD where CR0.EM; #NM where CR0.TS.
    Mmx,
    /// #UD where CR0.EM or not CR4.OSFXSR; #NM where CR0.TS.
    Sse,
    /// #UD where not CR4.OSXSAVE or not both XCR0.SSE and XCR0.AVX (and outside protected mode); #NM where
    /// CR0.TS.
    Avx,
    /// The XSAVE family: #UD where not CR4.OSXSAVE; #NM where CR0.TS.
    Xsave,
}

/// Memory and privilege as a core sees them. All addresses are linear (segment base added).
///
/// Contract: a memory method returns `Err` only with `Fault` or `Retry`, and has then had no effect on
/// guest memory: a page-crossing store checks both pages before its first byte is written.
pub trait Machine: Sized + 'static {
    /// Reads a little-endian integer. Atomic where it does not cross a cache line (as x86 has it).
    fn load<T: Word>(&mut self, va: u64) -> Result<T, Stop>;

    /// Writes an integer. A store that hits translated code or a device is done (or queued) like any
    /// other, and [`Machine::must_end`] then ends the block.
    fn store<T: Word>(&mut self, va: u64, value: T) -> Result<(), Stop>;

    /// Reads what the same instruction is going to write: checked, and faulting, as a write.
    fn load_for_store<T: Word>(&mut self, va: u64) -> Result<T, Stop>;

    /// Locked read-modify-write: replaces the value by `update(old)` atomically and returns `old`.
    /// `update` may be called more than once.
    fn update<T: Word>(&mut self, va: u64, update: impl Fn(T) -> T) -> Result<T, Stop>;

    /// Locked compare-exchange of 16 bytes at a 16-byte-aligned address; returns the old value.
    fn compare_exchange_16(&mut self, va: u64, old: u128, new: u128) -> Result<u128, Stop>;

    /// Reads `into.len()` bytes, 1 to 4096, which may cross one page border.
    fn load_bytes(&mut self, va: u64, into: &mut [u8]) -> Result<(), Stop>;

    /// Writes bytes as [`Machine::load_bytes`] reads them.
    fn store_bytes(&mut self, va: u64, from: &[u8]) -> Result<(), Stop>;

    /// Checks that `len` bytes can be written, without writing.
    fn probe_store(&mut self, va: u64, len: usize) -> Result<(), Stop>;

    /// Copies forward, ascending, as REP MOVSB does, at most `len` bytes and not beyond the end of
    /// either page; returns how many were copied (at least 1 where `len > 0`, else a stop). Overlapping
    /// ranges give byte-by-byte semantics.
    fn copy(&mut self, to: u64, from: u64, len: u64) -> Result<u64, Stop>;

    /// Stores the `size`-byte pattern `value` repeatedly, ascending, `count` times at most and not beyond
    /// the end of the page; returns how many elements were stored (0: use [`Machine::store`] for one).
    fn fill(&mut self, to: u64, value: u64, size: usize, count: u64) -> Result<u64, Stop>;

    /// Whether something since the last call wants the block to end after this instruction; clears the
    /// wish. The core asks after every instruction, so this must be one inlined load and branch.
    fn must_end(&mut self) -> bool;

    /// Whether the core should come back to its caller soon (an interrupt, a request): long instructions
    /// ask between chunks.
    fn attention(&self) -> bool;

    /// Whether each repetition of a string instruction is a step of its own, as with RFLAGS.TF.
    fn steps(&self) -> bool {
        false
    }

    /// The exception that the control registers demand of an instruction of this kind, #UD or #NM. Asked
    /// by each vector and x87 instruction, so it must be one inlined load and branch.
    fn vector_gate(&self, kind: VectorKind) -> Option<Exception>;

    /// What generated code looks at, if there may be any: now, until the next instruction that is executed
    /// outside of it.
    fn view(&self) -> Option<View> {
        None
    }

    /// Generated code has changed the privilege level, and perhaps RFLAGS, by SYSCALL or SYSRET.
    fn privilege_changed(&mut self, _cpl: u8, _rflags: u64) {}

    /// Notes an exception and gives the stop to return.
    fn raise(&mut self, exception: Exception) -> Stop;

    /// Executes an instruction of [`SystemOp`]. RIP already points to the next instruction.
    fn system(core: &mut Core<Self>, op: SystemOp, insn: &Insn<Self>) -> Result<(), Stop>;
}
