//! PUSH, POP, ENTER, LEAVE, PUSHA, POPA.

use x86::Gpr;

use super::Core;
use super::operand::Source;
use crate::cpu::RSP;
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

const SP: usize = RSP as usize;
const BP: usize = Gpr::Rbp as usize;

/// The width of the stack. RSP changes only where the access has succeeded.
pub(crate) trait Stack {
    /// The linear address of a stack offset.
    fn address<M: Machine>(core: &Core<M>, offset: u64) -> u64;
    /// Sets RSP, of which only the stack's width may change.
    fn set_rsp<M: Machine>(core: &mut Core<M>, rsp: u64);

    #[inline(always)]
    fn push<M: Machine, T: Word>(core: &mut Core<M>, value: T) -> Result<(), Stop> {
        let rsp = core.cpu.regs[SP].wrapping_sub(T::SIZE as u64);
        let va = Self::address(core, rsp);
        core.machine.store(va, value)?;
        Self::set_rsp(core, rsp);
        Ok(())
    }

    /// Raises what a push would.
    fn probe<M: Machine, T: Word>(core: &mut Core<M>) -> Result<(), Stop> {
        let va = Self::address(core, core.cpu.regs[SP].wrapping_sub(T::SIZE as u64));
        core.machine.probe_store(va, T::SIZE)
    }

    #[inline(always)]
    fn top<M: Machine, T: Word>(core: &mut Core<M>) -> Result<T, Stop> {
        let va = Self::address(core, core.cpu.regs[SP]);
        core.machine.load(va)
    }

    #[inline(always)]
    fn pop<M: Machine, T: Word>(core: &mut Core<M>) -> Result<T, Stop> {
        let value = Self::top(core)?;
        let rsp = core.cpu.regs[SP].wrapping_add(T::SIZE as u64);
        Self::set_rsp(core, rsp);
        Ok(value)
    }
}

/// 64-bit mode: a flat 64-bit stack.
pub(crate) struct Long;
/// Other modes: the stack segment's base and width count.
pub(crate) struct Legacy;

impl Stack for Long {
    #[inline(always)]
    fn address<M: Machine>(_core: &Core<M>, offset: u64) -> u64 {
        offset
    }

    #[inline(always)]
    fn set_rsp<M: Machine>(core: &mut Core<M>, rsp: u64) {
        core.cpu.regs[SP] = rsp;
    }
}

impl Stack for Legacy {
    #[inline(always)]
    fn address<M: Machine>(core: &Core<M>, offset: u64) -> u64 {
        core.linear(offset & core.cpu.stack_mask, core.cpu.segs[2].base)
    }

    #[inline(always)]
    fn set_rsp<M: Machine>(core: &mut Core<M>, rsp: u64) {
        let mask = core.cpu.stack_mask;
        // A write to ESP clears the upper half of RSP; one to SP keeps the rest.
        let kept = if mask == 0xffff { core.cpu.regs[SP] & !mask } else { 0 };
        core.cpu.regs[SP] = kept | rsp & mask;
    }
}

/// PUSH. PUSH RSP stores the old value.
pub(crate) fn push<M: Machine, T: Word, W: Stack, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    W::push(core, value)
}

/// POP to a register. POP RSP keeps the value loaded.
pub(crate) fn pop<M: Machine, T: Word, W: Stack>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = W::pop(core)?;
    value.write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// POP to memory: an address that uses RSP sees it incremented (SDM volume 2, POP).
pub(crate) fn pop_memory<M: Machine, T: Word, W: Stack>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let before = core.cpu.regs[SP];
    let value: T = W::pop(core)?;
    let va = core.address(insn);
    core.machine.store(va, value).inspect_err(|_| core.cpu.regs[SP] = before)
}

/// PUSHA: the eight registers in encoding order, RSP as it was. On a fault RSP is unchanged; values
/// already pushed lie below it.
pub(crate) fn pusha<M: Machine, T: Word>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    let before = core.cpu.regs;
    for slot in 0..8 {
        let value = T::read(&before, slot);
        Legacy::push(core, value).inspect_err(|_| core.cpu.regs[SP] = before[SP])?;
    }
    Ok(())
}

/// POPA: the reverse; the saved RSP is skipped.
pub(crate) fn popa<M: Machine, T: Word>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    let before = core.cpu.regs;
    for slot in (0..8).rev() {
        let popped: Result<T, Stop> = Legacy::pop(core);
        match popped {
            Ok(value) if slot != RSP => value.write(&mut core.cpu.regs, slot),
            Ok(_) => {}
            Err(stop) => {
                core.cpu.regs = before;
                return Err(stop);
            }
        }
    }
    Ok(())
}

/// LEAVE: RSP = RBP, then POP RBP.
pub(crate) fn leave<M: Machine, T: Word, W: Stack>(
    core: &mut Core<M>,
    _insn: &Insn<M>,
) -> Result<(), Stop> {
    let before = core.cpu.regs[SP];
    W::set_rsp(core, core.cpu.regs[BP]);
    let value: T = W::pop(core).inspect_err(|_| core.cpu.regs[SP] = before)?;
    value.write(&mut core.cpu.regs, Gpr::Rbp as u8);
    Ok(())
}

/// ENTER: `imm` bytes of locals, nesting level `aux` (0..=31).
pub(crate) fn enter<M: Machine, T: Word, W: Stack>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let before = core.cpu.regs[SP];
    let frame = enter_frames::<M, T, W>(core, insn).inspect_err(|_| core.cpu.regs[SP] = before)?;
    T::cut(frame).write(&mut core.cpu.regs, Gpr::Rbp as u8);
    Ok(())
}

/// Builds the frame and returns the new RBP; RBP itself is unchanged.
fn enter_frames<M: Machine, T: Word, W: Stack>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<u64, Stop> {
    let rbp = core.cpu.regs[BP];
    W::push(core, T::cut(rbp))?;
    let frame = core.cpu.regs[SP];
    for level in 1..insn.aux {
        let va = W::address(core, rbp.wrapping_sub(u64::from(level) * T::SIZE as u64));
        let pointer: T = core.machine.load(va)?;
        W::push(core, pointer)?;
    }
    if insn.aux > 0 {
        W::push(core, T::cut(frame))?;
    }
    let rsp = core.cpu.regs[SP].wrapping_sub(insn.imm);
    // The new top is touched as a write would (SDM volume 2, ENTER).
    let va = W::address(core, rsp);
    core.machine.probe_store(va, T::SIZE)?;
    W::set_rsp(core, rsp);
    Ok(frame)
}
