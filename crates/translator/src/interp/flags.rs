//! RFLAGS of the arithmetic instructions, written out (SDM volume 1, 3.4.3 and appendix A).
//!
//! Flags that the manual calls undefined are cleared by logic and shifts, and left alone by
//! multiplication, division and bit scans.

use x86::rflags::{AF, CF, OF, PF, SF, STATUS, ZF};

use crate::machine::Word;

/// The top bit of `value`, as 0 or 1.
#[inline(always)]
pub(crate) fn top<T: Word>(value: u64) -> u64 {
    value >> (T::BITS - 1) & 1
}

/// ZF, SF and PF of a result.
#[inline(always)]
pub(crate) fn result<T: Word>(value: T) -> u64 {
    let value = value.zext();
    let zero = u64::from(value == 0) << 6;
    let sign = top::<T>(value) << 7;
    let even = u64::from((value as u8).count_ones() & 1 == 0) << 2;
    zero | sign | even
}

/// `a + b + carry` with all six flags.
#[inline(always)]
pub(crate) fn add<T: Word>(a: T, b: T, carry: u64, rflags: u64) -> (T, u64) {
    let (a, b) = (a.zext(), b.zext());
    let sum = T::cut(a.wrapping_add(b).wrapping_add(carry));
    let s = sum.zext();
    // Bit i: the carry out of bit i.
    let carries = a & b | (a | b) & !s;
    let overflow = (a ^ s) & (b ^ s);
    (sum, rflags & !STATUS | result(sum) | carry_flags::<T>(carries, overflow))
}

/// `a - b - borrow` with all six flags.
#[inline(always)]
pub(crate) fn sub<T: Word>(a: T, b: T, borrow: u64, rflags: u64) -> (T, u64) {
    let (a, b) = (a.zext(), b.zext());
    let difference = T::cut(a.wrapping_sub(b).wrapping_sub(borrow));
    let d = difference.zext();
    // Bit i: the borrow into bit i + 1.
    let borrows = !a & b | (!a | b) & d;
    let overflow = (a ^ b) & (a ^ d);
    (difference, rflags & !STATUS | result(difference) | carry_flags::<T>(borrows, overflow))
}

/// CF from the top bit of `carries`, AF from its bit 3, OF from the top bit of `overflow`.
#[inline(always)]
fn carry_flags<T: Word>(carries: u64, overflow: u64) -> u64 {
    top::<T>(carries) | carries << 1 & AF | top::<T>(overflow) << 11
}

/// The result of AND, OR, XOR, TEST: CF, OF and AF are clear.
#[inline(always)]
pub(crate) fn logic<T: Word>(value: u64, rflags: u64) -> (T, u64) {
    let value = T::cut(value);
    (value, rflags & !STATUS | result(value))
}

/// Replaces the flags in `mask`.
#[inline(always)]
pub(crate) fn replace(rflags: u64, mask: u64, value: u64) -> u64 {
    rflags & !mask | value & mask
}

/// Condition `code` as Jcc, SETcc and CMOVcc number them.
#[inline(always)]
pub(crate) fn condition(code: u8, rflags: u64) -> bool {
    // SF (bit 7) against OF (bit 11).
    let less = (rflags >> 4 ^ rflags) & SF;
    let positive = match code >> 1 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => less != 0,
        _ => less | rflags & ZF != 0,
    };
    positive != (code & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_byte_sums_and_differences() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                for carry in 0..=1u8 {
                    check_add(a, b, carry);
                    check_sub(a, b, carry);
                }
            }
        }
    }

    fn check_add(a: u8, b: u8, carry: u8) {
        let wide = u16::from(a) + u16::from(b) + u16::from(carry);
        let signed = i16::from(a as i8) + i16::from(b as i8) + i16::from(carry);
        let half = (a & 15) + (b & 15) + carry > 15;
        let (sum, flags) = add(a, b, carry.into(), 0);
        assert_eq!(sum, wide as u8);
        check(flags, sum, wide > 255, half, signed != i16::from(sum as i8));
    }

    fn check_sub(a: u8, b: u8, borrow: u8) {
        let wide = i16::from(a) - i16::from(b) - i16::from(borrow);
        let signed = i16::from(a as i8) - i16::from(b as i8) - i16::from(borrow);
        let half = i16::from(a & 15) - i16::from(b & 15) - i16::from(borrow) < 0;
        let (difference, flags) = sub(a, b, borrow.into(), 0);
        assert_eq!(difference, wide as u8);
        check(flags, difference, wide < 0, half, signed != i16::from(difference as i8));
    }

    fn check(flags: u64, value: u8, carry: bool, half: bool, overflow: bool) {
        let want = |bit: u64, set: bool| if set { bit } else { 0 };
        let even = (0..8).filter(|i| value >> i & 1 != 0).count() % 2 == 0;
        let expected = want(CF, carry)
            | want(AF, half)
            | want(OF, overflow)
            | want(ZF, value == 0)
            | want(SF, value > 127)
            | want(PF, even);
        assert_eq!(flags, expected);
    }
}
