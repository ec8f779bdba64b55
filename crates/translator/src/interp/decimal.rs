//! Decimal adjustment and the other instructions that 64-bit mode has dropped.

use x86::rflags::{AF, CF, STATUS, ZF};
use x86::{Exception, Gpr, Vector};

use super::operand::{Sink, Source};
use super::{Core, flags};
use crate::cpu::HIGH_BYTE;
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

const RAX: u8 = Gpr::Rax as u8;

/// Writes AL with SF, ZF and PF by it and the other status flags clear.
pub(super) fn set_al<M: Machine>(core: &mut Core<M>, value: u8) {
    value.write(&mut core.cpu.regs, RAX);
    core.cpu.set_flags(STATUS, flags::result(value));
}

/// DAA and, with `SUBTRACT`, DAS (SDM volume 2, DAA and DAS operation).
pub(crate) fn daa<M: Machine, const SUBTRACT: bool>(
    core: &mut Core<M>,
    _insn: &Insn<M>,
) -> Result<(), Stop> {
    let old = u8::read(&core.cpu.regs, RAX);
    let (had_carry, had_half) = (core.cpu.flag(CF), core.cpu.flag(AF));
    let half = old & 15 > 9 || had_half;
    let full = old > 0x99 || had_carry;
    let adjustment = if half { 6 } else { 0 } + if full { 0x60 } else { 0 };
    let value = if SUBTRACT { old.wrapping_sub(adjustment) } else { old.wrapping_add(adjustment) };
    // DAS: the first step alone may borrow.
    let carry = full || SUBTRACT && half && old < 6;
    set_al(core, value);
    core.cpu.set_flags(CF, if carry { CF } else { 0 });
    core.cpu.set_flags(AF, if half { AF } else { 0 });
    Ok(())
}

/// AAA and, with `SUBTRACT`, AAS.
pub(crate) fn aaa<M: Machine, const SUBTRACT: bool>(
    core: &mut Core<M>,
    _insn: &Insn<M>,
) -> Result<(), Stop> {
    let ax = u16::read(&core.cpu.regs, RAX);
    let adjust = ax & 15 > 9 || core.cpu.flag(AF);
    let value = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
    };
    (value & 0xff0f).write(&mut core.cpu.regs, RAX);
    core.cpu.set_flags(CF | AF, if adjust { CF | AF } else { 0 });
    Ok(())
}

/// AAD: AL = AL + AH * immediate, AH = 0.
pub(crate) fn aad<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let regs = &mut core.cpu.regs;
    let (al, ah) = (u8::read(regs, RAX), u8::read(regs, HIGH_BYTE));
    0u8.write(regs, HIGH_BYTE);
    set_al(core, al.wrapping_add(ah.wrapping_mul(insn.imm as u8)));
    Ok(())
}

/// SALC (undocumented): AL = CF ? 0xff : 0.
pub(crate) fn salc<M: Machine>(core: &mut Core<M>, _insn: &Insn<M>) -> Result<(), Stop> {
    let value: u8 = if core.cpu.flag(CF) { 0xff } else { 0 };
    value.write(&mut core.cpu.regs, RAX);
    Ok(())
}

/// BOUND: #BR unless the signed register is within the two bounds in memory, both inclusive.
pub(crate) fn bound<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let index = T::read(&core.cpu.regs, insn.dst).sext() as i64;
    let (first, second) = (core.address(insn), core.address_at(insn, T::SIZE as u64));
    let lower: T = core.machine.load(first)?;
    let upper: T = core.machine.load(second)?;
    if index < lower.sext() as i64 || index > upper.sext() as i64 {
        return Err(core.machine.raise(Exception::new(Vector::BR)));
    }
    Ok(())
}

/// ARPL: raises the RPL of the selector in the destination to that in `src`; written only where it changes.
pub(crate) fn arpl<M: Machine, D: Source + Sink>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let rpl = u16::read(&core.cpu.regs, insn.src) & 3;
    let selector: u16 = D::get(core, insn)?;
    let raise = selector & 3 < rpl;
    if raise {
        D::set(core, insn, selector & !3 | rpl)?;
    }
    core.cpu.set_flags(ZF, if raise { ZF } else { 0 });
    Ok(())
}
