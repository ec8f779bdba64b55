//! Handlers of the instructions that run from a thunk.
//!
//! In the [`Insn`]: `imm` is the [`Encoding`], `aux` the [`Place`], `dst` the gate and what to check (see
//! [`checks`]), `src` the size of the memory operand.

use x86::{Exception, Vector};

use super::arena::{self, Place};
use super::encoding::Encoding;
use super::image::MXCSR_DEFAULT;
use super::plan::MAX_OPERAND;
use super::{mxcsr, x87};
use crate::cpu::Cpu;
use crate::insn::Insn;
use crate::interp::Core;
use crate::machine::{Machine, Stop, VectorKind};

/// Bits of `Insn::dst`; below them the [`VectorKind`].
#[allow(non_snake_case, reason = "a namespace of constants")]
pub(super) mod checks {
    pub(in crate::vector) const KIND: u8 = 7;
    /// MXCSR is used: exceptions may be unmasked.
    pub(in crate::vector) const MXCSR: u8 = 1 << 3;
    /// A pending x87 exception is raised first.
    pub(in crate::vector) const WAITS: u8 = 1 << 4;
    /// The memory operand must be aligned to its size.
    pub(in crate::vector) const ALIGNED: u8 = 1 << 5;
}

/// The memory operand's stand-in.
#[repr(C, align(64))]
pub(super) struct Buffer<const N: usize>(pub(super) [u8; N]);

/// No memory operand.
pub(super) fn registers<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    // SAFETY: the plan has no memory operand, so the thunk does not touch the buffer.
    unsafe { execute(core, insn, std::ptr::null_mut()) }
}

/// A memory operand of `SIZE` bytes that is read.
pub(super) fn load<M: Machine, const SIZE: usize>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    open(core, insn)?;
    let va = operand::<M, SIZE>(core, insn)?;
    let mut buffer = Buffer([0; SIZE]);
    core.machine.load_bytes(va, &mut buffer.0)?;
    // SAFETY: the buffer has the size of the operand.
    unsafe { execute(core, insn, buffer.0.as_mut_ptr()) }
}

/// A memory operand of `SIZE` bytes that is written by an instruction that changes nothing else.
pub(super) fn store<M: Machine, const SIZE: usize>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    open(core, insn)?;
    let va = operand::<M, SIZE>(core, insn)?;
    let mut buffer = Buffer([0; SIZE]);
    // SAFETY: the buffer has the size of the operand.
    unsafe { execute(core, insn, buffer.0.as_mut_ptr()) }?;
    core.machine.store_bytes(va, &buffer.0)
}

/// A memory operand of any size that is written by an instruction that also changes registers or MXCSR:
/// undone where the store cannot be made.
///
/// An unmasked x87 exception of the numeric kind suppresses the store; whether the instruction has
/// stored shows in a buffer that is not what it was before.
pub(super) fn store_and_change<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let va = core.address(insn);
    let size = insn.src as usize;
    core.machine.probe_store(va, size)?;
    let before = core.cpu.fpu.clone();
    let mut buffer = Buffer([0; MAX_OPERAND]);
    let mut written = false;
    for pattern in [0x5a, 0xa5] {
        core.cpu.fpu.clone_from(&before);
        buffer.0 = [pattern; MAX_OPERAND];
        // SAFETY: the buffer has the size of the longest operand.
        unsafe { execute(core, insn, buffer.0.as_mut_ptr()) }?;
        written = buffer.0 != [pattern; MAX_OPERAND];
        if written {
            break;
        }
    }
    x87::scrub_environment(&mut buffer.0[..size]);
    let bytes = &buffer.0[..size];
    let stored = if written {
        core.machine.store_bytes(va, bytes)
    } else {
        core.machine.probe_store(va, size)
    };
    if stored.is_err() {
        core.cpu.fpu = before;
    }
    stored
}

/// The gate, then what waits in the x87 unit.
#[inline(always)]
pub(super) fn open<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    gate(core, kind(insn.dst))?;
    if insn.dst & checks::WAITS != 0 { wait(core) } else { Ok(()) }
}

/// #UD or #NM, as the control registers say.
#[inline(always)]
pub(super) fn gate<M: Machine>(core: &mut Core<M>, kind: VectorKind) -> Result<(), Stop> {
    match core.machine.vector_gate(kind) {
        None => Ok(()),
        Some(exception) => Err(core.machine.raise(exception)),
    }
}

/// #MF where an unmasked x87 exception is pending.
#[inline(always)]
pub(super) fn wait<M: Machine>(core: &mut Core<M>) -> Result<(), Stop> {
    if core.cpu.fpu.x87_pending() {
        return Err(core.machine.raise(Exception::new(Vector::MF)));
    }
    Ok(())
}

#[inline(always)]
fn kind(dst: u8) -> VectorKind {
    const KINDS: [VectorKind; 8] = [
        VectorKind::X87,
        VectorKind::Wait,
        VectorKind::Mmx,
        VectorKind::Sse,
        VectorKind::Avx,
        VectorKind::Xsave,
        VectorKind::Xsave,
        VectorKind::Xsave,
    ];
    KINDS[(dst & checks::KIND) as usize]
}

/// The address of the memory operand, aligned as it must be.
#[inline(always)]
fn operand<M: Machine, const SIZE: usize>(core: &mut Core<M>, insn: &Insn<M>) -> Result<u64, Stop> {
    let va = core.address(insn);
    if insn.dst & checks::ALIGNED != 0 && va & (SIZE as u64 - 1) != 0 {
        return Err(core.machine.raise(Exception::GP0));
    }
    Ok(va)
}

/// Runs the thunk.
///
/// # Safety
/// `buffer` is valid for reads and writes of the memory operand, if the plan has one.
#[inline(always)]
unsafe fn execute<M: Machine>(
    core: &mut Core<M>,
    insn: &Insn<M>,
    buffer: *mut u8,
) -> Result<(), Stop> {
    let masked = core.cpu.fpu.mxcsr() & MXCSR_DEFAULT == MXCSR_DEFAULT;
    if insn.dst & checks::MXCSR == 0 || masked {
        // SAFETY: as the caller promises; the fields are from `arena::find`, and MXCSR masks everything
        // where it matters.
        unsafe { run(&mut core.cpu, insn.imm, insn.aux, buffer) };
        return Ok(());
    }
    let (imm, aux) = (insn.imm, insn.aux);
    let run = |cpu: &mut Cpu| {
        // SAFETY: as above; `mxcsr::unmasked` masks everything meanwhile.
        unsafe { run(cpu, imm, aux, buffer) }
    };
    match mxcsr::unmasked(&mut core.cpu, run) {
        Ok(()) => Ok(()),
        Err(exception) => {
            if insn.dst & checks::WAITS != 0 {
                // Conversions between MMX and XMM: the transition to MMX state precedes the arithmetic.
                x87::enter_mmx(&mut core.cpu);
            }
            Err(core.machine.raise(exception))
        }
    }
}

/// # Safety
/// As [`arena::run`].
#[inline(always)]
unsafe fn run(cpu: &mut Cpu, imm: u64, aux: u32, buffer: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe { arena::run(Encoding(imm), Place(aux), cpu, buffer) }
}
