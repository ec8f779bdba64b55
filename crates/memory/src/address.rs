//! The address spaces of guest RAM, one newtype each.

use std::fmt;

/// Bytes in a frame, the unit of the frame table.
pub const FRAME_SIZE: usize = 4096;

/// Base-two logarithm of [`FRAME_SIZE`].
pub const FRAME_SHIFT: u32 = 12;

/// A guest physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The offset within the 4 KiB frame, `0..4096`.
    pub const fn frame_offset(self) -> usize {
        (self.0 & (FRAME_SIZE as u64 - 1)) as usize
    }

    /// The address `bytes` further on, or `None` past 2^64.
    pub fn checked_add(self, bytes: u64) -> Option<Gpa> {
        self.0.checked_add(bytes).map(Gpa)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A frame of guest RAM: a dense index, `0..layout.frames()`, that skips the holes of the
/// physical address space. [`crate::GuestMemory::frame_of`] makes one from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Frame(pub u32);

impl Frame {
    /// The frame's place in an array with one element a frame.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A run of frames, `first .. first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRange {
    /// The first frame of the run.
    pub first: Frame,
    /// How many frames; `first + count <= 2^32`.
    pub count: u32,
}

impl FrameRange {
    /// Whether `frame` lies in the run.
    pub const fn contains(&self, frame: Frame) -> bool {
        frame.0 >= self.first.0 && frame.0 - self.first.0 < self.count
    }

    /// The frames of the run, in order.
    pub fn frames(&self) -> impl DoubleEndedIterator<Item = Frame> + use<> {
        let first = self.first.0;
        (0..self.count).map(move |n| Frame(first + n))
    }

    /// Splits a sorted list without duplicates into maximal runs of at most `limit` frames.
    pub fn coalesce(sorted: &[Frame], limit: u32) -> Vec<FrameRange> {
        let mut runs: Vec<FrameRange> = Vec::new();
        for &frame in sorted {
            match runs.last_mut() {
                Some(run) if run.count < limit && run.first.0 + run.count == frame.0 => {
                    run.count += 1;
                }
                _ => runs.push(FrameRange { first: frame, count: 1 }),
            }
        }
        runs
    }
}

/// What an access does to the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads it, or fetches instructions from it.
    Read,
    /// Writes it (or reads and writes it).
    Write,
}

/// A period of access tracking. The clock of epochs is [`crate::GuestMemory::advance_epoch`],
/// never the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The last access of a frame that was never accessed: before every real epoch.
    pub const NEVER: Epoch = Epoch(0);
    /// The epoch that guest memory starts in.
    pub const FIRST: Epoch = Epoch(1);
}

/// Whether a frame's contents are all zeros. Most that are not have something else in their first bytes.
#[must_use]
pub fn is_zero(contents: &[u8; FRAME_SIZE]) -> bool {
    let parts = contents.as_chunks::<64>().0;
    parts.iter().all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, count: u32) -> FrameRange {
        FrameRange { first: Frame(first), count }
    }

    #[test]
    fn coalesce_joins_neighbours_and_obeys_the_limit() {
        let frames: Vec<Frame> = [1, 2, 3, 4, 7, 9, 10].map(Frame).to_vec();
        assert_eq!(FrameRange::coalesce(&frames, 100), [run(1, 4), run(7, 1), run(9, 2)]);
        assert_eq!(FrameRange::coalesce(&frames, 3), [run(1, 3), run(4, 1), run(7, 1), run(9, 2)]);
        assert_eq!(FrameRange::coalesce(&[], 3), []);
    }

    #[test]
    fn a_run_contains_its_frames_only() {
        let run = run(5, 2);
        assert_eq!(run.frames().collect::<Vec<_>>(), [Frame(5), Frame(6)]);
        assert!(!run.contains(Frame(4)) && run.contains(Frame(5)) && run.contains(Frame(6)));
        assert!(!run.contains(Frame(7)));
    }

    #[test]
    fn zeros_are_all_zeros() {
        let mut contents = [0; FRAME_SIZE];
        assert!(is_zero(&contents));
        for at in [0, 63, 64, FRAME_SIZE - 1] {
            contents[at] = 0x80;
            assert!(!is_zero(&contents), "{at}");
            contents[at] = 0;
        }
    }
}
