//! Where RAM lies in the guest's physical address space.

use crate::address::{FRAME_SHIFT, FRAME_SIZE, Frame, Gpa};

/// Start of the hole below 4 GiB that holds device registers, the local APIC and the IO-APIC.
const HOLE_START: u64 = 0xc000_0000;
/// End of that hole.
const HOLE_END: u64 = 0x1_0000_0000;
/// The largest RAM size: frames are numbered with 32 bits, and the top of the high range stays
/// below 2^44, inside every x86-64 CPU's physical address space.
const MAX_BYTES: u64 = 8 << 40;

/// One contiguous range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Its first address, a multiple of 4096.
    pub start: Gpa,
    /// Its length, a positive multiple of 4096.
    pub bytes: u64,
}

/// The RAM of a guest: up to 3 GiB from address 0, the rest from 4 GiB.
///
/// Frames are numbered through both ranges without a gap, so that RAM is one array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    /// Bytes below the hole, `0 < low <= 3 GiB`.
    low: u64,
    /// Bytes from 4 GiB on; `0` unless `low` is 3 GiB.
    high: u64,
}

/// A RAM size that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a multiple of a frame.
    #[error("memory size {0}: not a multiple of 4096 bytes: round it up to {next}", next = next_frame(*.0))]
    Unaligned(u64),
    /// No RAM at all.
    #[error("memory size 0: a guest needs some memory: give a size such as 256M")]
    Zero,
    /// More than frames can number.
    #[error("memory size {0}: more than the 8 TiB that are supported: give a smaller size")]
    TooLarge(u64),
}

fn next_frame(bytes: u64) -> u64 {
    bytes.saturating_add(FRAME_SIZE as u64 - 1) & !(FRAME_SIZE as u64 - 1)
}

impl RamLayout {
    /// Lays out `bytes` of RAM, a positive multiple of 4096, at most 8 TiB.
    pub fn new(bytes: u64) -> Result<RamLayout, LayoutError> {
        if bytes == 0 {
            return Err(LayoutError::Zero);
        }
        if bytes > MAX_BYTES {
            return Err(LayoutError::TooLarge(bytes));
        }
        if !bytes.is_multiple_of(FRAME_SIZE as u64) {
            return Err(LayoutError::Unaligned(bytes));
        }
        let low = bytes.min(HOLE_START);
        Ok(RamLayout { low, high: bytes - low })
    }

    /// All of RAM, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.low + self.high
    }

    /// All of RAM, in frames.
    pub const fn frames(&self) -> u32 {
        (self.bytes() >> FRAME_SHIFT) as u32
    }

    /// The ranges of RAM, by rising address: one, or two.
    pub fn ranges(&self) -> impl Iterator<Item = RamRange> + use<> {
        let low = RamRange { start: Gpa(0), bytes: self.low };
        let high = RamRange { start: Gpa(HOLE_END), bytes: self.high };
        [low, high].into_iter().filter(|range| range.bytes > 0)
    }

    /// The frame that holds `gpa`, or `None` outside RAM.
    #[inline]
    pub const fn frame_of(&self, gpa: Gpa) -> Option<Frame> {
        match self.offset_of(gpa) {
            Some(offset) => Some(Frame((offset >> FRAME_SHIFT) as u32)),
            None => None,
        }
    }

    /// The first address of `frame`, or `None` if there is no such frame.
    pub const fn gpa_of(&self, frame: Frame) -> Option<Gpa> {
        let offset = (frame.0 as u64) << FRAME_SHIFT;
        if offset < self.low {
            Some(Gpa(offset))
        } else if offset < self.bytes() {
            Some(Gpa(offset - self.low + HOLE_END))
        } else {
            None
        }
    }

    /// How many bytes of RAM follow from `gpa` on without a hole; 0 outside RAM.
    pub const fn contiguous(&self, gpa: Gpa) -> u64 {
        if gpa.0 < self.low {
            self.low - gpa.0
        } else if gpa.0 >= HOLE_END && gpa.0 - HOLE_END < self.high {
            self.high - (gpa.0 - HOLE_END)
        } else {
            0
        }
    }

    /// The place of `gpa` in RAM seen as one array, or `None` outside RAM.
    #[inline]
    pub(crate) const fn offset_of(&self, gpa: Gpa) -> Option<u64> {
        if gpa.0 < self.low {
            Some(gpa.0)
        } else if gpa.0 >= HOLE_END && gpa.0 - HOLE_END < self.high {
            Some(gpa.0 - HOLE_END + self.low)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_ram_is_one_range() {
        let layout = RamLayout::new(256 << 20).unwrap();
        assert_eq!(
            layout.ranges().collect::<Vec<_>>(),
            [RamRange { start: Gpa(0), bytes: 256 << 20 }]
        );
        assert_eq!(layout.frames(), 65536);
        assert_eq!(layout.frame_of(Gpa((256 << 20) - 1)), Some(Frame(65535)));
        assert_eq!(layout.frame_of(Gpa(256 << 20)), None);
        assert_eq!(layout.gpa_of(Frame(65536)), None);
    }

    #[test]
    fn large_ram_goes_round_the_hole() {
        let layout = RamLayout::new(5 * GIB).unwrap();
        assert_eq!(
            layout.ranges().collect::<Vec<_>>(),
            [
                RamRange { start: Gpa(0), bytes: 3 * GIB },
                RamRange { start: Gpa(4 * GIB), bytes: 2 * GIB }
            ]
        );
        assert_eq!(layout.frame_of(Gpa(0xbfff_ffff)), Some(Frame(0xb_ffff)));
        assert_eq!(layout.frame_of(Gpa(0xc000_0000)), None);
        assert_eq!(layout.frame_of(Gpa(0xffff_ffff)), None);
        assert_eq!(layout.frame_of(Gpa(4 * GIB)), Some(Frame(0xc_0000)));
        assert_eq!(layout.frame_of(Gpa(6 * GIB)), None);
        assert_eq!(layout.frame_of(Gpa(u64::MAX)), None);
        assert_eq!(layout.contiguous(Gpa(0xbfff_f000)), 4096);
        assert_eq!(layout.contiguous(Gpa(0xc000_0000)), 0);
        assert_eq!(layout.contiguous(Gpa(4 * GIB + 1)), 2 * GIB - 1);
    }

    #[test]
    fn frames_and_addresses_are_inverse() {
        let layout = RamLayout::new(3 * GIB + 8192).unwrap();
        for frame in [0, 1, 0xb_ffff, 0xc_0000, 0xc_0001].map(Frame) {
            let gpa = layout.gpa_of(frame).unwrap();
            assert_eq!(layout.frame_of(gpa), Some(frame));
        }
        assert_eq!(layout.gpa_of(Frame(0xc_0002)), None);
    }

    #[test]
    fn bad_sizes_are_refused() {
        assert_eq!(RamLayout::new(0), Err(LayoutError::Zero));
        assert_eq!(RamLayout::new(4097), Err(LayoutError::Unaligned(4097)));
        assert_eq!(RamLayout::new(u64::MAX), Err(LayoutError::TooLarge(u64::MAX)));
        let text = LayoutError::Unaligned(4097).to_string();
        assert!(text.contains("8192"), "{text}");
    }
}
