//! What becomes of the pages.

use std::sync::Arc;

use memory::{Discard, FRAME_SHIFT, Frame, Gpa, GuestMemory};

/// Number of a 4 KiB guest-physical page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u64);

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The first one.
    pub first: PageNumber,
    /// How many; at least one.
    pub count: u64,
}

/// Guest memory as the balloon sees it. Called on the I/O thread.
///
/// Page numbers come from the guest: an implementation ignores those outside guest memory, and
/// returns how many are inside.
pub trait BalloonMemory: Send {
    /// The guest gave these pages up: it will not touch them until it asks for them back.
    fn inflate(&mut self, pages: &[PageNumber]) -> u64;

    /// The guest takes these pages back; they read as zero.
    fn deflate(&mut self, pages: &[PageNumber]) -> u64;

    /// These pages are free in the guest now, which may touch them again at any time after this
    /// call; they then read as zero.
    fn report(&mut self, ranges: &[PageRange]) -> u64;
}

/// A balloon over the frame table: pages given up leave the process.
#[derive(Debug)]
pub struct FrameBalloon {
    memory: Arc<GuestMemory>,
    refused: u64,
}

impl FrameBalloon {
    /// A balloon over `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory, refused: 0 }
    }

    fn frames(&self, pages: impl Iterator<Item = u64>) -> Vec<Frame> {
        let gpa = |page: u64| page.checked_mul(1 << FRAME_SHIFT).map(Gpa);
        pages.filter_map(|page| self.memory.frame_of(gpa(page)?)).collect()
    }

    /// A page that the host does not take back stays with the guest: memory is lost to nobody but
    /// the host, so the guest is not told.
    fn discard(&mut self, frames: Vec<Frame>, why: Discard) -> u64 {
        let count = frames.len() as u64;
        if let Err(error) = self.memory.discard(frames, why) {
            if self.refused == 0 {
                tracing::warn!("balloon: {error}");
            }
            self.refused += 1;
        }
        count
    }
}

impl BalloonMemory for FrameBalloon {
    fn inflate(&mut self, pages: &[PageNumber]) -> u64 {
        let frames = self.frames(pages.iter().map(|page| page.0));
        self.discard(frames, Discard::Balloon)
    }

    fn deflate(&mut self, pages: &[PageNumber]) -> u64 {
        let frames = self.frames(pages.iter().map(|page| page.0));
        let count = frames.len() as u64;
        self.memory.return_from_balloon(frames);
        count
    }

    fn report(&mut self, ranges: &[PageRange]) -> u64 {
        let pages = ranges
            .iter()
            .flat_map(|range| range.first.0..range.first.0.saturating_add(range.count));
        let frames = self.frames(pages);
        self.discard(frames, Discard::Reported)
    }
}
