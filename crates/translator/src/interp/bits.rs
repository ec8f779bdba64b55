//! Bit test and scan, population count, BMI1 and BMI2, CRC32. Flags that the manual calls undefined keep
//! their values unless noted.

use x86::rflags::{CF, OF, SF, STATUS, ZF};

use super::operand::{Imm, Locked, Mem, Source, Src};
use super::{Core, flags};
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

/// What BT, BTS, BTR, BTC do to the selected bit.
pub(crate) trait BitOp {
    /// Whether the operand is written.
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

/// BT.
pub(crate) struct Test;
/// BTS.
pub(crate) struct Set;
/// BTR.
pub(crate) struct Reset;
/// BTC.
pub(crate) struct Complement;

impl BitOp for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply(value: u64, _bit: u64) -> u64 {
        value
    }
}

impl BitOp for Set {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

impl BitOp for Reset {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

impl BitOp for Complement {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

/// A bit index: in a register it may reach beyond a memory operand, an immediate is taken modulo its size.
pub(crate) trait BitIndex: Source {
    const REACHES: bool;
}

impl BitIndex for Src {
    const REACHES: bool = true;
}

impl BitIndex for Imm {
    const REACHES: bool = false;
}

/// BT and its kin on a register.
pub(crate) fn bit_register<M: Machine, T: Word, O: BitOp, I: BitIndex>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let index: T = I::get(core, insn)?;
    let bit = 1 << (index.zext() & u64::from(T::BITS - 1));
    let old = T::read(&core.cpu.regs, insn.dst).zext();
    if O::WRITES {
        T::cut(O::apply(old, bit)).write(&mut core.cpu.regs, insn.dst);
    }
    core.cpu.set_flags(CF, u64::from(old & bit != 0));
    Ok(())
}

/// How a bit operation accesses memory.
pub(crate) trait BitAccess {
    /// Returns the old value.
    fn access<M: Machine, T: Word, O: BitOp>(
        core: &mut Core<M>,
        va: u64,
        bit: u64,
    ) -> Result<T, Stop>;
}

impl BitAccess for Mem {
    #[inline(always)]
    fn access<M: Machine, T: Word, O: BitOp>(
        core: &mut Core<M>,
        va: u64,
        bit: u64,
    ) -> Result<T, Stop> {
        if !O::WRITES {
            return core.machine.load(va);
        }
        let old: T = core.machine.load_for_store(va)?;
        core.machine.store(va, T::cut(O::apply(old.zext(), bit)))?;
        Ok(old)
    }
}

impl BitAccess for Locked {
    #[inline(always)]
    fn access<M: Machine, T: Word, O: BitOp>(
        core: &mut Core<M>,
        va: u64,
        bit: u64,
    ) -> Result<T, Stop> {
        core.machine.update(va, |old: T| T::cut(O::apply(old.zext(), bit)))
    }
}

/// BT and its kin on memory.
pub(crate) fn bit_memory<M: Machine, T: Word, O: BitOp, I: BitIndex, A: BitAccess>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let index: T = I::get(core, insn)?;
    // The signed index divided by the operand's bits, rounding down, in operands; then in bytes.
    let operands = index.sext() as i64 >> T::BITS.trailing_zeros();
    let delta = if I::REACHES { operands * T::SIZE as i64 } else { 0 };
    let va = core.address_at(insn, delta as u64);
    let bit = 1 << (index.zext() & u64::from(T::BITS - 1));
    let old = A::access::<M, T, O>(core, va, bit)?.zext();
    core.cpu.set_flags(CF, u64::from(old & bit != 0));
    Ok(())
}

/// BSF and, with `REVERSE`, BSR. A source of zero leaves the destination alone.
pub(crate) fn scan<M: Machine, T: Word, S: Source, const REVERSE: bool>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    core.cpu.set_flags(ZF, u64::from(value == 0) << 6);
    if value != 0 {
        let index = if REVERSE { 63 - value.leading_zeros() } else { value.trailing_zeros() };
        T::cut(index.into()).write(&mut core.cpu.regs, insn.dst);
    }
    Ok(())
}

/// TZCNT and, with `LEADING`, LZCNT.
pub(crate) fn count_zeros<M: Machine, T: Word, S: Source, const LEADING: bool>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    let count = if LEADING {
        value.leading_zeros() - (64 - T::BITS)
    } else {
        value.trailing_zeros().min(T::BITS)
    };
    T::cut(count.into()).write(&mut core.cpu.regs, insn.dst);
    core.cpu.set_flags(CF | ZF, u64::from(value == 0) | u64::from(count == 0) << 6);
    Ok(())
}

/// POPCNT.
pub(crate) fn popcnt<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    T::cut(value.count_ones().into()).write(&mut core.cpu.regs, insn.dst);
    core.cpu.set_flags(STATUS, u64::from(value == 0) << 6);
    Ok(())
}

/// ANDN: not `aux` and source.
pub(crate) fn andn<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value: T = S::get(core, insn)?;
    let kept = T::cut(!third::<M, T>(core, insn).zext() & value.zext());
    finish(core, insn, kept, 0);
    Ok(())
}

/// BEXTR: bits from position `aux` bits 7:0, as many as `aux` bits 15:8.
pub(crate) fn bextr<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    let control = third::<M, T>(core, insn).zext();
    let (start, len) = (control as u8, (control >> 8) as u8);
    let value = T::cut(low_bits(value.checked_shr(start.into()).unwrap_or(0), len));
    value.write(&mut core.cpu.regs, insn.dst);
    core.cpu.set_flags(CF | OF | ZF, flags::result(value));
    Ok(())
}

/// BZHI: bits from position `aux` bits 7:0 up are cleared.
pub(crate) fn bzhi<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    let index = third::<M, T>(core, insn).zext() as u8;
    let beyond = u32::from(index) >= T::BITS;
    finish(core, insn, T::cut(low_bits(value, index)), u64::from(beyond));
    Ok(())
}

/// BLSI: the lowest set bit.
pub(crate) fn blsi<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    finish(core, insn, T::cut(value & value.wrapping_neg()), u64::from(value != 0));
    Ok(())
}

/// BLSR: without the lowest set bit.
pub(crate) fn blsr<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    finish(core, insn, T::cut(value & value.wrapping_sub(1)), u64::from(value == 0));
    Ok(())
}

/// BLSMSK: all bits up to and with the lowest set one.
pub(crate) fn blsmsk<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let value = S::get::<M, T>(core, insn)?.zext();
    finish(core, insn, T::cut(value ^ value.wrapping_sub(1)), u64::from(value == 0));
    Ok(())
}

/// PDEP: the low bits of `aux` go where the source has ones.
pub(crate) fn pdep<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let mut mask = S::get::<M, T>(core, insn)?.zext();
    let mut bits = third::<M, T>(core, insn).zext();
    let mut value = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if bits & 1 != 0 {
            value |= lowest;
        }
        bits >>= 1;
        mask ^= lowest;
    }
    T::cut(value).write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// PEXT: the bits of `aux` where the source has ones, gathered.
pub(crate) fn pext<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let mut mask = S::get::<M, T>(core, insn)?.zext();
    let bits = third::<M, T>(core, insn).zext();
    let (mut value, mut position) = (0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        value |= u64::from(bits & lowest != 0) << position;
        position += 1;
        mask ^= lowest;
    }
    T::cut(value).write(&mut core.cpu.regs, insn.dst);
    Ok(())
}

/// The register in `aux`.
#[inline(always)]
fn third<M: Machine, T: Word>(core: &Core<M>, insn: &Insn<M>) -> T {
    T::read(&core.cpu.regs, insn.aux as u8)
}

/// The lowest `count` bits.
#[inline(always)]
fn low_bits(value: u64, count: u8) -> u64 {
    if count < 64 { value & ((1 << count) - 1) } else { value }
}

/// Writes the result with SF and ZF by it, CF as given, OF clear.
#[inline(always)]
fn finish<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, value: T, carry: u64) {
    value.write(&mut core.cpu.regs, insn.dst);
    core.cpu.set_flags(CF | OF | ZF | SF, flags::result(value) & (ZF | SF) | carry);
}

/// CRC32: polynomial 0x11edc6f41, bit-reflected; the destination holds 32 bits.
pub(crate) fn crc32<M: Machine, T: Word, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let data: T = S::get(core, insn)?;
    let mut crc = core.cpu.regs[(insn.dst & 31) as usize] as u32;
    for byte in data.zext().to_le_bytes().into_iter().take(T::SIZE) {
        crc = crc >> 8 ^ CRC_OF_BYTE[usize::from(crc as u8 ^ byte)];
    }
    core.cpu.regs[(insn.dst & 31) as usize] = crc.into();
    Ok(())
}

const CRC_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
