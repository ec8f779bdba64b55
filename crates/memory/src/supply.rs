//! Contents of absent frames that come before anybody asked: what reads a snapshot ahead of the guest.
//!
//! ```text
//!   reader:  read a batch ........ | claim -> one write -> settle | next run, next batch
//!                                  |   frames of one run, busy    |
//!   vCPU:    needs one: fetches it | needs one: waits             | needs one: it is there
//! ```
//! While the reader still reads, its frames are absent like any others, and whoever needs one fetches it; the
//! batch's copy of that one is dropped then. They are busy only for as long as copying a run takes.

use std::io::IoSlice;

use crate::address::{FRAME_SIZE, Frame};
use crate::guest_memory::{GuestMemory, ResolveError};
use crate::source::SourceId;

/// Frames written by one call. A vCPU that needs one of them waits for that: 256 KiB take less than a tenth of
/// a millisecond, and longer runs are hardly faster.
const RUN_FRAMES: usize = 64;

impl GuestMemory {
    /// Makes those of `pages` resident whose contents are still at `source`, with the contents given; all other
    /// frames stay as they are, for the guest may have fetched and written them, or given them back. Answers how
    /// many there were.
    ///
    /// It is not an access: a frame that is supplied and never used does not count as accessed. Neighbours are
    /// fast where they are neighbours in `pages`, so these should be by rising frame. Any number of threads may
    /// supply at once, while others resolve and discard.
    ///
    /// # Errors
    /// A frame past the end of RAM, before anything is supplied; or the host has no memory for one, of which those
    /// before it in `pages` have been supplied and all others are what they were.
    pub fn supply(
        &self,
        source: SourceId,
        pages: &[(Frame, &[u8; FRAME_SIZE])],
    ) -> Result<u32, ResolveError> {
        if let Some(&(frame, _)) = pages.iter().find(|(frame, _)| frame.0 >= self.table.len()) {
            return Err(ResolveError::NoSuchFrame(frame));
        }
        let mut supplied = 0;
        let mut rest = pages;
        while !rest.is_empty() {
            let claimed = self.claim_run(source, rest);
            self.fill_claimed(&rest[..claimed])?;
            supplied += claimed as u32;
            // Where nothing was claimed the first is one to leave alone.
            rest = &rest[claimed.max(1)..];
        }
        if self.counts().absent == 0 {
            self.ram.close_landing();
        }
        Ok(supplied)
    }

    /// Claims the first of `pages` and its neighbours; answers how many.
    fn claim_run(&self, source: SourceId, pages: &[(Frame, &[u8; FRAME_SIZE])]) -> usize {
        let first = pages[0].0.0;
        let neighbours = pages.iter().take(RUN_FRAMES).zip(first..);
        let claimed = neighbours
            .take_while(|&(&(frame, _), next)| frame.0 == next && self.table.claim(frame, source));
        claimed.count()
    }

    /// Writes the contents of claimed neighbours and settles each of them.
    fn fill_claimed(&self, run: &[(Frame, &[u8; FRAME_SIZE])]) -> Result<(), ResolveError> {
        let Some(&(first, _)) = run.first() else { return Ok(()) };
        let mut pages = [IoSlice::new(&[]); RUN_FRAMES];
        for (page, (_, contents)) in pages.iter_mut().zip(run) {
            *page = IoSlice::new(*contents);
        }
        let (complete, outcome) = self.ram.fill_run(first, &pages[..run.len()]);
        for (index, &(frame, _)) in run.iter().enumerate() {
            self.table.filled(frame, index < complete, false);
        }
        let frame = Frame(first.0 + complete as u32);
        outcome.map_err(|errno| ResolveError::Store { frame, errno })
    }
}
