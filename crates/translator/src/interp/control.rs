//! Flags as a whole, hints and fences.

use std::sync::atomic::{Ordering, fence};

use x86::Exception;
use x86::rflags::{AF, CF, DF, FIXED, PF, SF, ZF};

use super::Core;
use crate::cpu::HIGH_BYTE;
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

/// NOP, ENDBR, PREFETCH and other hints.
#[inline(never)]
pub(crate) fn nop<M: Machine>(_core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    Ok(())
}

/// PAUSE.
pub(crate) fn pause<M: Machine>(_core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    std::hint::spin_loop();
    Ok(())
}

/// MFENCE, LFENCE, SFENCE: all as the strongest.
pub(crate) fn full_fence<M: Machine>(_core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    fence(Ordering::SeqCst);
    Ok(())
}

/// An instruction longer than 15 bytes.
pub(crate) fn too_long<M: Machine>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    Err(core.machine.raise(Exception::GP0))
}

/// CLC, STC, CLD, STD: the flags in `imm` get the value in `aux` (0 or 1).
pub(crate) fn assign_flag<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    core.cpu.set_flags(insn.imm, if insn.aux == 0 { 0 } else { insn.imm });
    Ok(())
}

/// The flag that CLC and STC write.
pub(crate) const CARRY: u64 = CF;
/// The flag that CLD and STD write.
pub(crate) const DIRECTION: u64 = DF;

/// CMC.
pub(crate) fn cmc<M: Machine>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    core.cpu.rflags ^= CF;
    Ok(())
}

/// The flags that LAHF and SAHF move.
const LOW: u64 = SF | ZF | AF | PF | CF;

/// LAHF.
pub(crate) fn lahf<M: Machine>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    let value = (core.cpu.rflags & LOW | FIXED) as u8;
    value.write(&mut core.cpu.regs, HIGH_BYTE);
    Ok(())
}

/// SAHF.
pub(crate) fn sahf<M: Machine>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    let ah = u8::read(&core.cpu.regs, HIGH_BYTE);
    core.cpu.set_flags(LOW, ah.into());
    Ok(())
}
