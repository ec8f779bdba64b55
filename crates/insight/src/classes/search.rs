//! Roots of page tables found in memory itself, for engines that tell of few of them.
//!
//! All address spaces of a kernel share its half, so that their roots end with the same entry. Once one of them is known,
//! a frame that ends so is taken for another; the walk finds out whether anything is there for users. Linux clears that
//! half of a root when its program ends.
//!
//! The first pass over memory reads each frame's last bytes, later ones those of frames that were written to since the
//! pass before.

use memory::{Epoch, EventStream, Frame, FrameState, GuestMemory, ReadView};

use super::marks::{MAPPED, Marks};
use super::spaces::Spaces;
use super::walker::last_entry;

/// Where the search is.
#[derive(Debug)]
pub(super) struct Search {
    next: u32,
    /// When this pass began, and the one before.
    began: Epoch,
    before: Option<Epoch>,
}

/// Frames that one call goes by, and of which it reads something.
const VISITED: u32 = 1 << 18;
const READ: u32 = 1 << 16;

impl Search {
    pub(super) fn new() -> Self {
        Self { next: 0, began: Epoch::NEVER, before: None }
    }

    /// Goes on, for roots that end with `kernel`: at most once over all frames.
    pub(super) fn go_on(
        &mut self,
        memory: &GuestMemory,
        view: &ReadView,
        marks: &Marks,
        spaces: &mut Spaces,
        kernel: u64,
    ) {
        let at = memory.events().map(EventStream::now).unwrap_or_default();
        let (frames, mut reads) = (marks.len(), READ);
        for _ in 0..VISITED.min(frames) {
            if self.next == 0 {
                self.begin(memory.epoch());
            }
            let frame = Frame(self.next);
            self.next = (self.next + 1) % frames;
            // What a program maps may hold anything.
            if marks.of(frame) & MAPPED != 0 || !self.is_new(memory, frame) {
                continue;
            }
            if last_entry(view, frame) == Some(kernel) {
                spaces.found(frame, at);
            }
            reads -= 1;
            if reads == 0 {
                return;
            }
        }
    }

    fn begin(&mut self, now: Epoch) {
        self.before = (self.began != Epoch::NEVER).then_some(self.began);
        self.began = now;
    }

    /// Whether it has contents that it may not have had when it was last met.
    fn is_new(&self, memory: &GuestMemory, frame: Frame) -> bool {
        let facts = memory.facts(frame).filter(|facts| facts.state == FrameState::Resident);
        facts.is_some_and(|facts| self.before.is_none_or(|before| facts.written >= before))
    }
}
