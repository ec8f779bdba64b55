//! The x87 registers of an XSAVE image (SDM volume 1, 10.5.1) as gdb wants them.

use super::registers::{X87_STATE, put};

/// gdb's names, in its order.
pub(super) const FIELDS: [(&str, Field); 8] = [
    ("fctrl", Field::Control),
    ("fstat", Field::Status),
    ("ftag", Field::Tag),
    ("fiseg", Field::InstructionSegment),
    ("fioff", Field::InstructionOffset),
    ("foseg", Field::OperandSegment),
    ("fooff", Field::OperandOffset),
    ("fop", Field::Opcode),
];

/// A control register of the x87 unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    Control,
    Status,
    /// Two bits a register, where the image has one.
    Tag,
    InstructionSegment,
    InstructionOffset,
    OperandSegment,
    OperandOffset,
    Opcode,
}

const TAGS: usize = 4;
const STACK: usize = 32;

/// Tags: a number, zero, neither, nothing (SDM volume 1, 8.1.7).
const VALID: u32 = 0;
const ZERO: u32 = 1;
const SPECIAL: u32 = 2;
const EMPTY: u32 = 3;

impl Field {
    /// Where it is, and how long.
    fn place(self) -> (usize, usize) {
        match self {
            Self::Control => (0, 2),
            Self::Status => (2, 2),
            Self::Tag => (TAGS, 1),
            Self::Opcode => (6, 2),
            Self::InstructionOffset => (8, 4),
            Self::InstructionSegment => (12, 2),
            Self::OperandOffset => (16, 4),
            Self::OperandSegment => (20, 2),
        }
    }
}

/// ST(`index`), 80 bits.
pub(super) fn stack(image: &[u8], index: usize) -> u128 {
    let mut bytes = [0; 16];
    if let Some(part) = image.get(STACK + 16 * index..STACK + 16 * index + 10) {
        bytes[..10].copy_from_slice(part);
    }
    u128::from_le_bytes(bytes)
}

pub(super) fn set_stack(image: &mut [u8], index: usize, value: u128) {
    put(image, STACK + 16 * index, &value.to_le_bytes()[..10], X87_STATE);
}

pub(super) fn read(image: &[u8], field: Field) -> u32 {
    if field == Field::Tag {
        return (0..8).fold(0, |word, physical| word | tag(image, physical) << (2 * physical));
    }
    let (offset, len) = field.place();
    let mut bytes = [0; 4];
    if let Some(part) = image.get(offset..offset + len) {
        bytes[..len].copy_from_slice(part);
    }
    u32::from_le_bytes(bytes)
}

pub(super) fn write(image: &mut [u8], field: Field, value: u32) {
    let value = if field == Field::Tag { in_use(value) } else { value };
    let (offset, len) = field.place();
    put(image, offset, &value.to_le_bytes()[..len], X87_STATE);
}

/// One bit a register that is not empty.
fn in_use(tags: u32) -> u32 {
    (0..8).filter(|physical| tags >> (2 * physical) & 3 != EMPTY).fold(0, |bits, at| bits | 1 << at)
}

/// Registers are tagged by their own number, and stored by their distance from the stack's top.
fn tag(image: &[u8], physical: usize) -> u32 {
    if image.get(TAGS).is_none_or(|tags| tags >> physical & 1 == 0) {
        return EMPTY;
    }
    let top = read(image, Field::Status) as usize >> 11 & 7;
    let value = stack(image, physical.wrapping_sub(top) & 7);
    let (exponent, mantissa) = (value >> 64 & 0x7fff, value as u64);
    match (exponent, mantissa) {
        (0, 0) => ZERO,
        (1..0x7fff, mantissa) if mantissa >> 63 != 0 => VALID,
        _ => SPECIAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_those_of_the_values() {
        let mut image = vec![0; 832];
        assert_eq!(read(&image, Field::Tag), 0xffff);
        // Top is 6: ST(0) is register 6, ST(1) is 7, ST(2) is 0.
        write(&mut image, Field::Status, 6 << 11);
        set_stack(&mut image, 0, 0x3fff_8000_0000_0000_0000);
        set_stack(&mut image, 2, 0x7fff_8000_0000_0000_0000);
        write(&mut image, Field::Tag, 0b00_00_11_11_11_11_11_00);
        assert_eq!(image[TAGS], 0b1100_0001);
        assert_eq!(read(&image, Field::Tag), 0b01_00_11_11_11_11_11_10);
        assert_eq!(stack(&image, 0), 0x3fff_8000_0000_0000_0000);
    }

    #[test]
    fn an_image_of_another_size_is_no_panic() {
        write(&mut [], Field::Control, 1);
        set_stack(&mut [0; 33], 0, 1);
        assert_eq!((read(&[], Field::Tag), stack(&[], 7)), (0xffff, 0));
    }
}
