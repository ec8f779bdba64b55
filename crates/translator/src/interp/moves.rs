//! Data movement: MOV and its extensions, CMOV, SETcc, LEA, BSWAP, MOVBE, XLAT, sign extension.

use x86::Gpr;

use super::operand::{Sink, Source};
use super::{Core, flags};
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

/// MOV, MOVNTI.
pub(crate) fn mov<M: Machine, T: Word, D: Sink, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    D::set(core, insn, value)
}

/// MOVZX.
pub(crate) fn movzx<M: Machine, T: Word, F: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: F = S::get(core, insn)?;
    T::cut(value.zext()).write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// MOVSX, MOVSXD.
pub(crate) fn movsx<M: Machine, T: Word, F: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: F = S::get(core, insn)?;
    T::cut(value.sext()).write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// LEA.
pub(crate) fn lea<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    T::cut(core.offset(insn)).write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// CMOVcc: the source is read, and a 32-bit destination zero-extended, whatever the condition.
pub(crate) fn cmov<M: Machine, T: Word, S: Source, const CC: u8>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    let old = T::read(&core.cpu.regs, insn.dst);
    let taken = flags::condition(CC, core.cpu.rflags);
    let value = if taken { value } else { old };
    value.write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// SETcc.
pub(crate) fn set<M: Machine, D: Sink, const CC: u8>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = u8::from(flags::condition(CC, core.cpu.rflags));
    D::set(core, insn, value)
}

/// BSWAP. The 16-bit form is undefined; processors make it zero.
pub(crate) fn bswap<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let value = T::read(&core.cpu.regs, insn.dst);
    let value = if T::SIZE == 2 { T::cut(0) } else { swapped(value) };
    value.write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// MOVBE.
pub(crate) fn movbe<M: Machine, T: Word, D: Sink, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    D::set(core, insn, swapped(value))
}

#[inline(always)]
fn swapped<T: Word>(value: T) -> T {
    T::cut(value.zext().swap_bytes() >> (64 - T::BITS))
}

/// XLATB: AL becomes the byte at (R)BX + AL.
pub(crate) fn xlat<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let al = u8::read(&core.cpu.regs, RAX);
    let va = core.address_at(insn, al.into());
    let value: u8 = core.machine.load(va)?;
    value.write(&mut core.cpu.regs, RAX);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator's lower half sign-extended.
pub(crate) fn extend_accumulator<M: Machine, T: Word, F: Word>(
    core: &mut Core<M>,
    _insn: &Insn<M>,
) -> Result<(), Stop> {
    let half = F::read(&core.cpu.regs, RAX);
    T::cut(half.sext()).write(&mut core.cpu.regs, RAX);
    Ok(())
}

/// CWD, CDQ, CQO: (R)DX becomes the accumulator's sign.
pub(crate) fn extend_to_rdx<M: Machine, T: Word>(
    core: &mut Core<M>,
    _insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = T::read(&core.cpu.regs, RAX);
    let sign = (value.sext() as i64 >> 63) as u64;
    T::cut(sign).write(&mut core.cpu.regs, RDX);
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: nothing to flush, but the address must be readable.
pub(crate) fn touch<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let va = core.address(insn);
    core.machine.load::<u8>(va).map(|_| ())
}
