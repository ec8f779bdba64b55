//! Roots of page tables found in memory itself, for engines that tell of few of them.
//!
//! All address spaces of a kernel share its half, so that their roots end with the same entry. Once one of them is known,
//! a frame that ends so is taken for another; the walk finds out whether anything is there for users. Linux clears that
//! half of a root when its program ends.

use std::time::Duration;

use memory::{FRAME_SIZE, Frame, Gpa, ReadView};

use super::marks::{MAPPED, Marks};
use super::spaces::Spaces;
use super::walker::{PRESENT, used};

/// Where the search is.
#[derive(Debug, Default)]
pub(super) struct Search {
    next: u32,
}

impl Search {
    /// Looks at the next `count` frames, for roots that end with `kernel`.
    pub(super) fn go_on(
        &mut self,
        view: &ReadView,
        marks: &Marks,
        spaces: &mut Spaces,
        kernel: u64,
        at: Duration,
        count: u32,
    ) {
        let frames = marks.len();
        for _ in 0..count.min(frames) {
            let frame = Frame(self.next);
            self.next = (self.next + 1) % frames;
            // What a program maps may hold anything.
            if marks.of(frame) & MAPPED == 0 && last_entry(view, frame) == Some(kernel) {
                spaces.found(frame, at);
            }
        }
    }
}

/// The last entry of a table, as if it had been used, where it leads anywhere.
pub(super) fn last_entry(view: &ReadView, table: Frame) -> Option<u64> {
    let mut bytes = [0; 8];
    let gpa = Gpa(view.layout().gpa_of(table)?.0 + (FRAME_SIZE - bytes.len()) as u64);
    view.read(gpa, &mut bytes).ok()?;
    Some(used(u64::from_le_bytes(bytes))).filter(|entry| entry & PRESENT != 0)
}
