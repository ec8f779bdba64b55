//! What becomes of the pages.

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
/// returns how many pages it did act on. A page that is already where it is going counts as acted
/// on.
pub trait BalloonMemory: Send {
    /// The guest gave these pages up: it will not touch them until it asks for them back.
    fn inflate(&mut self, pages: &[PageNumber]) -> u64;

    /// The guest takes these pages back; they read as zero.
    fn deflate(&mut self, pages: &[PageNumber]) -> u64;

    /// These pages are free in the guest now, which may touch them again at any time after this
    /// call; they then read as zero.
    fn report(&mut self, ranges: &[PageRange]) -> u64;
}
