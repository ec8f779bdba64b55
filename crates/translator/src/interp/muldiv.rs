//! Multiplication and division. Flags that the manual calls undefined keep their values.

use x86::rflags::{CF, OF};
use x86::{Exception, Gpr, Vector};

use super::Core;
use super::operand::Source;
use crate::cpu::HIGH_BYTE;
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

/// The slot of the upper half of a double-width value: AH for bytes, otherwise (R)DX.
#[inline(always)]
const fn upper<T: Word>() -> u8 {
    if T::SIZE == 1 { HIGH_BYTE } else { RDX }
}

/// MUL: upper:(R)AX = (R)AX * source. CF and OF: the upper half is not zero.
pub(crate) fn mul<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b: T = S::get(core, insn)?;
    let a = T::read(&core.cpu.regs, RAX);
    let product = u128::from(a.zext()) * u128::from(b.zext());
    let high = (product >> T::BITS) as u64;
    write_product::<M, T>(core, product as u64, high);
    set_overflow(core, high != 0);
    Ok(())
}

/// One-operand IMUL. CF and OF: the product does not fit the lower half.
pub(crate) fn imul<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b: T = S::get(core, insn)?;
    let a = T::read(&core.cpu.regs, RAX);
    let (product, overflow) = signed_product(a, b);
    write_product::<M, T>(core, product as u64, (product >> T::BITS) as u64);
    set_overflow(core, overflow);
    Ok(())
}

/// Two- and three-operand IMUL: `dst` = A * B.
pub(crate) fn imul_to<M: Machine, T: Word, A: Source, B: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b: T = B::get(core, insn)?;
    let a: T = A::get(core, insn)?;
    let (product, overflow) = signed_product(a, b);
    T::cut(product as u64).write(&mut core.cpu.regs, insn.dst);
    set_overflow(core, overflow);
    Ok(())
}

/// MULX: `aux`:`dst` = upper and lower half of (R)DX * source; no flags. The upper half is written last.
pub(crate) fn mulx<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b: T = S::get(core, insn)?;
    let a = T::read(&core.cpu.regs, RDX);
    let product = u128::from(a.zext()) * u128::from(b.zext());
    T::cut(product as u64).write(&mut core.cpu.regs, insn.dst);
    T::cut((product >> T::BITS) as u64).write(&mut core.cpu.regs, insn.aux as u8);
    Ok(())
}

#[inline(always)]
fn signed_product<T: Word>(a: T, b: T) -> (i128, bool) {
    let product = i128::from(a.sext() as i64) * i128::from(b.sext() as i64);
    let kept = T::cut(product as u64).sext() as i64;
    (product, i128::from(kept) != product)
}

#[inline(always)]
fn write_product<M: Machine, T: Word>(core: &mut Core<M>, low: u64, high: u64) {
    T::cut(low).write(&mut core.cpu.regs, RAX);
    T::cut(high).write(&mut core.cpu.regs, upper::<T>());
}

#[inline(always)]
fn set_overflow<M: Machine>(core: &mut Core<M>, overflow: bool) {
    core.cpu.set_flags(CF | OF, if overflow { CF | OF } else { 0 });
}

/// DIV: (R)AX = upper:(R)AX / source, upper = remainder.
pub(crate) fn div<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let divisor: T = S::get(core, insn)?;
    let regs = &core.cpu.regs;
    let (high, low) = (T::read(regs, upper::<T>()), T::read(regs, RAX));
    // The quotient fits exactly where the upper half is below the divisor; a divisor of zero never is.
    if high >= divisor {
        return Err(core.machine.raise(Exception::new(Vector::DE)));
    }
    let (quotient, remainder) = unsigned_quotient(high, low, divisor);
    write_product::<M, T>(core, quotient, remainder);
    Ok(())
}

#[inline(always)]
fn unsigned_quotient<T: Word>(high: T, low: T, divisor: T) -> (u64, u64) {
    if T::SIZE == 8 && high.zext() != 0 {
        let dividend = u128::from(high.zext()) << 64 | u128::from(low.zext());
        let divisor = u128::from(divisor.zext());
        return ((dividend / divisor) as u64, (dividend % divisor) as u64);
    }
    // `high` is zero for 64 bits, so the shift (by 0 there) changes nothing.
    let dividend = high.zext() << (T::BITS % 64) | low.zext();
    (dividend / divisor.zext(), dividend % divisor.zext())
}

/// IDIV, truncating.
pub(crate) fn idiv<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let divisor: T = S::get(core, insn)?;
    let regs = &core.cpu.regs;
    let (high, low) = (T::read(regs, upper::<T>()), T::read(regs, RAX));
    let Some((quotient, remainder)) = signed_quotient(high, low, divisor) else {
        return Err(core.machine.raise(Exception::new(Vector::DE)));
    };
    write_product::<M, T>(core, quotient, remainder);
    Ok(())
}

/// `None` where the divisor is zero or the quotient does not fit.
#[inline(always)]
fn signed_quotient<T: Word>(high: T, low: T, divisor: T) -> Option<(u64, u64)> {
    let dividend = i128::from(high.sext() as i64) << T::BITS | i128::from(low.zext());
    let divisor = i128::from(divisor.sext() as i64);
    let small = i64::try_from(dividend).ok().zip(i64::try_from(divisor).ok());
    let (quotient, remainder) = match small {
        // A 64-bit division where it suffices: the 128-bit one is several times slower.
        Some((a, b)) => (a.checked_div(b)?.into(), a.checked_rem(b)?.into()),
        None => (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?),
    };
    let fits = i128::from(T::cut(quotient as u64).sext() as i64) == quotient;
    fits.then_some((quotient as u64, remainder as u64))
}

/// AAM: AH and AL are the quotient and remainder of AL by the immediate.
pub(crate) fn aam<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let al = u8::read(&core.cpu.regs, RAX);
    let base = insn.imm as u8;
    let (Some(quotient), Some(remainder)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(core.machine.raise(Exception::new(Vector::DE)));
    };
    quotient.write(&mut core.cpu.regs, HIGH_BYTE);
    super::decimal::set_al(core, remainder);
    Ok(())
}
