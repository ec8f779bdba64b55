//! What the classifier keeps of each frame: two bytes.

use memory::{Epoch, Frame};

/// A program maps it, as of its date.
pub(super) const MAPPED: u8 = 1;
/// ... and did so when it was met before, an epoch ago or more.
pub(super) const SETTLED: u8 = 1 << 1;
/// ... and may write.
pub(super) const WRITABLE: u8 = 1 << 2;
/// ... as programs with other page tables do.
pub(super) const SHARED: u8 = 1 << 3;
/// It was a program's; as of its date no table leads there.
pub(super) const VACATED: u8 = 1 << 4;
/// It is a page table, as of its date.
pub(super) const TABLE: u8 = 1 << 5;
/// The kernel may run it and not write it.
pub(super) const TEXT: u8 = 1 << 6;
/// Two things by one bit, for want of more: with [`TEXT`] a ring, without it zeros as of its date.
pub(super) const ZERO: u8 = 1 << 7;
/// See [`ZERO`].
pub(super) const RING: u8 = TEXT | ZERO;

/// The bits that a mapping by programs sets.
pub(super) const USERS: u8 = MAPPED | SETTLED | WRITABLE | SHARED;

/// A mark and a date for each frame. The date is the low byte of an epoch: whoever keeps it looks at each frame more
/// often than every 256 epochs.
#[derive(Debug)]
pub(super) struct Marks {
    marks: Box<[u8]>,
    dates: Box<[u8]>,
}

impl Marks {
    pub(super) fn new(frames: u32) -> Self {
        let bytes = || vec![0; frames as usize].into_boxed_slice();
        Self { marks: bytes(), dates: bytes() }
    }

    pub(super) fn len(&self) -> u32 {
        self.marks.len() as u32
    }

    pub(super) fn of(&self, frame: Frame) -> u8 {
        self.marks.get(frame.index()).copied().unwrap_or(0)
    }

    pub(super) fn is_ring(mark: u8) -> bool {
        mark & RING == RING
    }

    pub(super) fn is_text(mark: u8) -> bool {
        mark & RING == TEXT
    }

    pub(super) fn is_zero(mark: u8) -> bool {
        mark & RING == ZERO
    }

    /// The epoch of its date, at most 255 before `now`.
    pub(super) fn date(&self, frame: Frame, now: Epoch) -> Epoch {
        let date = self.dates.get(frame.index()).copied().unwrap_or(0);
        Epoch(now.0.saturating_sub(u32::from((now.0 as u8).wrapping_sub(date))))
    }

    pub(super) fn set(&mut self, frame: Frame, mark: u8, date: Epoch) {
        if let Some(place) = self.marks.get_mut(frame.index()) {
            *place = mark;
            self.dates[frame.index()] = date.0 as u8;
        }
    }

    /// The date stays.
    pub(super) fn change(&mut self, frame: Frame, change: impl FnOnce(u8) -> u8) {
        if let Some(place) = self.marks.get_mut(frame.index()) {
            *place = change(*place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_right_for_255_epochs() {
        let mut marks = Marks::new(2);
        for date in [1, 200, 255, 256, 300, 70_000] {
            marks.set(Frame(1), MAPPED, Epoch(date));
            for later in [0, 1, 100, 255] {
                assert_eq!(marks.date(Frame(1), Epoch(date + later)), Epoch(date));
            }
        }
        marks.set(Frame(2), MAPPED, Epoch(1));
        assert_eq!((marks.of(Frame(2)), marks.of(Frame(1))), (0, MAPPED));
    }
}
