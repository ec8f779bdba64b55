//! Shifts and rotations.

use x86::Gpr;
use x86::rflags::{CF, OF, STATUS};

use super::Core;
use super::flags::{replace, result, top};
use super::operand::{Imm, Source, Target};
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

/// A shift by `count`, already masked to 5 bits (6 for 64-bit operands) and not zero.
pub(crate) trait Shift {
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64);
}

/// SHL.
pub(crate) struct Shl;
/// SHR.
pub(crate) struct Shr;
/// SAR.
pub(crate) struct Sar;
/// ROL.
pub(crate) struct Rol;
/// ROR.
pub(crate) struct Ror;
/// RCL.
pub(crate) struct Rcl;
/// RCR.
pub(crate) struct Rcr;

/// The bit below the top one, as 0 or 1.
#[inline(always)]
fn below_top<T: Word>(value: u64) -> u64 {
    value >> (T::BITS - 2) & 1
}

/// All flags of a shift: AF is cleared.
#[inline(always)]
fn shift_flags<T: Word>(value: T, carry: u64, overflow: u64, rflags: u64) -> u64 {
    rflags & !STATUS | result(value) | carry | overflow << 11
}

/// The two flags of a rotation.
#[inline(always)]
fn rotate_flags(carry: u64, overflow: u64, rflags: u64) -> u64 {
    replace(rflags, CF | OF, carry | overflow << 11)
}

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        // The last bit shifted out is on top one step before.
        let before = a.zext() << (count - 1);
        let carry = top::<T>(before);
        let value = T::cut(before << 1);
        let overflow = top::<T>(value.zext()) ^ carry;
        (value, shift_flags(value, carry, overflow, rflags))
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        let before = a.zext() >> (count - 1);
        let value = T::cut(before >> 1);
        // For a count of 1 this is the operand's sign.
        let overflow = top::<T>(value.zext()) ^ below_top::<T>(value.zext());
        (value, shift_flags(value, before & 1, overflow, rflags))
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        let before = a.sext() as i64 >> (count - 1);
        let value = T::cut((before >> 1) as u64);
        (value, shift_flags(value, before as u64 & 1, 0, rflags))
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        let value = rotate_left(a, count);
        let carry = value.zext() & 1;
        (value, rotate_flags(carry, top::<T>(value.zext()) ^ carry, rflags))
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        let value = rotate_left(a, T::BITS - count % T::BITS);
        let carry = top::<T>(value.zext());
        (value, rotate_flags(carry, carry ^ below_top::<T>(value.zext()), rflags))
    }
}

impl Shift for Rcl {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        let (value, carry) = rotate_with_carry(a, count % (T::BITS + 1), rflags);
        (value, rotate_flags(carry, top::<T>(value.zext()) ^ carry, rflags))
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn apply<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
        let left = T::BITS + 1 - count % (T::BITS + 1);
        let (value, carry) = rotate_with_carry(a, left % (T::BITS + 1), rflags);
        let overflow = top::<T>(value.zext()) ^ below_top::<T>(value.zext());
        (value, rotate_flags(carry, overflow, rflags))
    }
}

#[inline(always)]
fn rotate_left<T: Word>(a: T, count: u32) -> T {
    let count = count % T::BITS;
    // Two steps, since a shift by all bits is not defined.
    let high = a.zext() << count;
    let low = a.zext() >> 1 >> (T::BITS - 1 - count);
    T::cut(high | low)
}

/// The `T::BITS + 1` bits CF:a rotated left by `count`, at most `T::BITS`.
#[inline(always)]
fn rotate_with_carry<T: Word>(a: T, count: u32, rflags: u64) -> (T, u64) {
    let width = T::BITS + 1;
    let bits = u128::from(rflags & CF) << T::BITS | u128::from(a.zext());
    let rotated = bits << count | bits >> (width - count);
    (T::cut(rotated as u64), (rotated >> T::BITS) as u64 & 1)
}

/// The count in CL or the immediate, as it takes effect.
#[inline(always)]
fn masked<T: Word>(count: u8) -> u32 {
    u32::from(count) & if T::SIZE == 8 { 63 } else { 31 }
}

/// Where a shift's count is.
pub(crate) trait Count {
    fn count<M: Machine, T: Word>(core: &Core<M>, insn: &Insn<M>) -> u32;
}

/// In CL.
pub(crate) struct Cl;

impl Count for Cl {
    #[inline(always)]
    fn count<M: Machine, T: Word>(core: &Core<M>, _insn: &Insn<M>) -> u32 {
        masked::<T>(u8::read(&core.cpu.regs, Gpr::Rcx as u8))
    }
}

impl Count for Imm {
    #[inline(always)]
    fn count<M: Machine, T: Word>(_core: &Core<M>, insn: &Insn<M>) -> u32 {
        masked::<T>(insn.imm as u8)
    }
}

/// Shifts and rotations by CL or an immediate. A count of zero changes no flag, but the destination is
/// written as always.
pub(crate) fn shift<M: Machine, T: Word, O: Shift, D: Target, C: Count>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let count = C::count::<M, T>(core, insn);
    D::modify(
        core,
        insn,
        |a: T, rflags| {
            if count == 0 { (a, rflags) } else { O::apply(a, count, rflags) }
        },
    )
}

/// SHLD: the destination moves up, bits of `src` follow.
pub(crate) fn shld<M: Machine, T: Word, D: Target, C: Count>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let count = C::count::<M, T>(core, insn);
    let low = T::read(&core.cpu.regs, insn.src);
    D::modify(core, insn, |a: T, rflags| {
        if count == 0 {
            return (a, rflags);
        }
        // Counts beyond 16 of the 16-bit form are undefined; like a processor, shift in `low` again.
        let (bits, width) = match T::SIZE {
            2 => (joined(a, low) << 16 | u128::from(low.zext()), 48),
            _ => (joined(a, low), 2 * T::BITS),
        };
        let carry = (bits >> (width - count)) as u64 & 1;
        let value = T::cut((bits << count >> (width - T::BITS)) as u64);
        let overflow = top::<T>(value.zext() ^ a.zext());
        (value, shift_flags(value, carry, overflow, rflags))
    })
}

/// SHRD: the destination moves down, bits of `src` follow.
pub(crate) fn shrd<M: Machine, T: Word, D: Target, C: Count>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let count = C::count::<M, T>(core, insn);
    let high = T::read(&core.cpu.regs, insn.src);
    D::modify(core, insn, |a: T, rflags| {
        if count == 0 {
            return (a, rflags);
        }
        // As for SHLD.
        let bits = match T::SIZE {
            2 => joined(high, a) | u128::from(high.zext()) << 32,
            _ => joined(high, a),
        };
        let carry = (bits >> (count - 1)) as u64 & 1;
        let value = T::cut((bits >> count) as u64);
        let overflow = top::<T>(value.zext() ^ a.zext());
        (value, shift_flags(value, carry, overflow, rflags))
    })
}

/// `high:low`.
#[inline(always)]
fn joined<T: Word>(high: T, low: T) -> u128 {
    u128::from(high.zext()) << T::BITS | u128::from(low.zext())
}

/// SARX, SHLX, SHRX: no flags; `src` by the register in `aux`.
pub(crate) fn shift_quiet<M: Machine, T: Word, O: Shift, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    let count = masked::<T>(core.cpu.regs[(insn.aux & 31) as usize] as u8);
    let value = if count == 0 { value } else { O::apply(value, count, 0).0 };
    value.write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// RORX.
pub(crate) fn rorx<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    let count = masked::<T>(insn.imm as u8);
    rotate_left(value, T::BITS - count).write(&mut core.cpu.regs, insn.dst);
    Ok(())
}
