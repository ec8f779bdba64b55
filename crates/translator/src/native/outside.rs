//! Instructions that are executed outside: generated code has their bytes, and each core keeps decoded what it called
//! out for lately. So nothing has to be kept for the instructions of a path.

use iced_x86::{Decoder, DecoderOptions};

use crate::decode;
use crate::insn::Insn;
use crate::machine::Machine;

/// What stands behind a call out, in [`HEAD`] bytes; behind it stand the bytes of the instruction, and perhaps how far
/// away it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outside {
    /// Of the instruction in the page.
    pub(super) offset: u16,
    pub(super) len: u8,
    /// It is executed outside only because of its access.
    pub(super) access: bool,
    /// Two bytes follow: how far behind them it goes on, signed.
    pub(super) back: bool,
}

/// See [`Outside`].
pub(super) const HEAD: usize = 3;

/// The length of the instruction stands above so many bits of the first two bytes.
const LEN_SHIFT: u8 = 12;

impl Outside {
    pub(super) fn head(self) -> [u8; HEAD] {
        let [low, high] = (self.offset | u16::from(self.len) << LEN_SHIFT).to_le_bytes();
        [low, high, u8::from(self.access) | u8::from(self.back) << 1]
    }

    /// All bytes that are not code.
    pub(super) fn size(self) -> usize {
        HEAD + usize::from(self.len) + if self.back { size_of::<i16>() } else { 0 }
    }

    /// Where it goes on, if its head is at `address`.
    ///
    /// # Safety
    /// It was emitted there.
    pub(super) unsafe fn behind(self, address: usize) -> usize {
        let end = address + self.size();
        if !self.back {
            return end;
        }
        // SAFETY: as the caller says: they stand before the end.
        let far = unsafe { ((end - size_of::<i16>()) as *const i16).read_unaligned() };
        end.wrapping_add_signed(far.into())
    }

    pub(super) fn of(head: [u8; HEAD]) -> Self {
        let first = u16::from_le_bytes([head[0], head[1]]);
        let len = (first >> LEN_SHIFT) as u8;
        Self { offset: first & 0xfff, len, access: head[2] & 1 != 0, back: head[2] & 2 != 0 }
    }
}

/// Instructions that are kept; a power of two.
const KEPT: usize = 512;

/// What a core called out for lately, by the address of its head.
pub(super) struct Decoded<M: Machine>(Box<[Entry<M>]>);

type Entry<M> = Option<(usize, Insn<M>)>;

impl<M: Machine> Decoded<M> {
    pub(super) fn new() -> Self {
        Self((0..KEPT).map(|_| None).collect())
    }

    /// The instruction whose head is at `address`.
    ///
    /// # Safety
    /// What stands there was emitted for a call out, and is not changed.
    #[inline(always)]
    pub(super) unsafe fn at(&mut self, address: usize) -> (Outside, &Insn<M>) {
        // SAFETY: as the caller says.
        let outside = Outside::of(unsafe { *(address as *const [u8; HEAD]) });
        let entry = &mut self.0[(address ^ address >> 9) & (KEPT - 1)];
        if entry.as_ref().is_none_or(|(known, _)| *known != address) {
            let start = (address + HEAD) as *const u8;
            // SAFETY: as the caller says: the instruction's bytes follow.
            let bytes = unsafe { std::slice::from_raw_parts(start, outside.len.into()) };
            *entry = Some((address, decoded(bytes)));
        }
        (outside, &entry.as_ref().expect("filled just now").1)
    }
}

#[cold]
fn decoded<M: Machine>(bytes: &[u8]) -> Insn<M> {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::FORCE_RESERVED_NOP);
    decode::select(&decoder.decode()).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::tests::Idle;

    #[test]
    fn heads_are_read_as_written() {
        for outside in [
            Outside { offset: 0xfff, len: 15, access: true, back: false },
            Outside { offset: 0, len: 1, access: false, back: true },
        ] {
            assert_eq!(Outside::of(outside.head()), outside);
        }
    }

    #[test]
    fn it_goes_on_behind_or_far_away() {
        let mut outside = Outside { offset: 5, len: 1, access: true, back: true };
        let bytes = [&outside.head()[..], &[0x90], &(-6i16).to_le_bytes()].concat();
        let at = bytes.as_ptr() as usize;
        // SAFETY: it stands there.
        assert_eq!(unsafe { outside.behind(at) }, at);
        outside.back = false;
        // SAFETY: as above.
        assert_eq!(unsafe { outside.behind(at) }, at + 4);
    }

    #[test]
    fn what_stands_in_the_way_is_decoded_again() {
        // CPUID, and MOV RAX, [RAX] at the same place.
        let code = [[0x12_u8, 0x20, 0, 0x0f, 0xa2, 0], [0x34, 0x30, 1, 0x48, 0x8b, 0]];
        let mut decoded = Decoded::<Idle>::new();
        for _ in 0..2 {
            for (bytes, expected) in code.iter().zip([(0x12, 2, false), (0x34, 3, true)]) {
                // SAFETY: a head and an instruction.
                let (outside, insn) = unsafe { decoded.at(bytes.as_ptr() as usize) };
                let Outside { offset, len, access, .. } = outside;
                assert_eq!((offset, len, access), expected);
                assert_eq!(insn.len, len);
            }
        }
    }
}
