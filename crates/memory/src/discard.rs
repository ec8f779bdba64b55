//! Giving frames back to the host: balloon and free-page reporting.
//!
//! ```text
//!              begin            revoked, not touched        host said yes
//!  resident ----------> discarding ----------> punching ----------> ballooned / untouched
//!     ^                     |                      |
//!     +---------------------+                      | an access waits for the end,
//!        an access takes it back                   | then starts from zeros
//! ```
//! Between `begin` and the end of the revocation a vCPU may still use a cached translation; no
//! page is punched then. An access in that time does not wait (the revocation may be waiting for
//! that very vCPU) but takes the frame back: the discard lost the race and the frame keeps its
//! contents. Only in `punching`, when nobody has a translation and no vCPU is waited for, does an
//! access wait: for one system call.

use std::sync::PoisonError;

use rustix::io::Errno;

use crate::address::{Frame, FrameRange};
use crate::events::Event;
use crate::guest_memory::GuestMemory;
use crate::revoke::Revocation;
use crate::table::Begun;
use crate::word::Tag;

/// Frames punched by one system call at most: bounds the wait of an access to one of them.
const PUNCH_FRAMES: u32 = 512;

/// Why frames are given back, which decides the state they end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The guest put them into the balloon: they become ballooned.
    Balloon,
    /// The guest reported them free: they become untouched.
    Reported,
}

impl Discard {
    fn target(self) -> Tag {
        match self {
            Discard::Balloon => Tag::Ballooned,
            Discard::Reported => Tag::Untouched,
        }
    }
}

/// What a discard came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Frames that have no host page now, including those that had none before.
    pub discarded: u32,
    /// Frames that stay resident: a device had them pinned, or the guest touched them meanwhile.
    pub kept: u32,
    /// Numbers past the end of RAM.
    pub unknown: u32,
}

/// Why pages could not be given back.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// The host refused. The frames of this run and those not yet reached are resident still;
    /// their contents may be zeros.
    #[error("give back {} frames from frame {}: {errno}: the guest keeps them", run.count, run.first)]
    Punch {
        /// The first run that was refused.
        run: FrameRange,
        /// What the host said.
        errno: Errno,
    },
}

impl GuestMemory {
    /// Gives the pages of `frames` back to the host. On return they have left the process.
    ///
    /// The contents are lost; the next access finds zeros. A frame in use by a device, or touched
    /// by the guest before it could be punched, is kept. Discarding a frame that has no page only
    /// changes its state (a ballooned one stays ballooned, an absent one forgets its source).
    ///
    /// Must not be called by a vCPU inside guest code; in its exit handler it may.
    pub fn discard(
        &self,
        frames: impl IntoIterator<Item = Frame>,
        why: Discard,
    ) -> Result<Discarded, DiscardError> {
        let mut frames: Vec<Frame> = frames.into_iter().collect();
        frames.sort_unstable();
        frames.dedup();
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = Discarded::default();
        // Their addresses would show the slots still. One that cannot be copied is kept, like one in use.
        let _ = self.unshare(frames.iter().copied());
        let all = frames.len();
        frames.retain(|&frame| frame.0 >= self.table.len() || !self.is_from_pool(frame));
        report.kept += (all - frames.len()) as u32;
        self.keep_all(&frames);
        let leaving = self.begin(&frames, why, &mut report);
        if leaving.is_empty() {
            return Ok(report);
        }
        self.revoke(Revocation::Frames(&FrameRange::coalesce(&leaving, u32::MAX)));
        self.punch(&leaving, why, &mut report)?;
        Ok(report)
    }

    /// Marks the frames as leaving and answers those that have a page to give back.
    fn begin(&self, frames: &[Frame], why: Discard, report: &mut Discarded) -> Vec<Frame> {
        let mut leaving = Vec::with_capacity(frames.len());
        let unseen = self.observer().is_some_and(|observer| observer.maps_by_itself());
        for &frame in frames {
            if frame.0 >= self.table.len() {
                report.unknown += 1;
                continue;
            }
            match self.table.begin_discard(frame, why.target(), unseen) {
                Begun::Leaving => leaving.push(frame),
                Begun::Done => report.discarded += 1,
                Begun::Kept => report.kept += 1,
            }
        }
        leaving
    }

    fn punch(
        &self,
        leaving: &[Frame],
        why: Discard,
        report: &mut Discarded,
    ) -> Result<(), DiscardError> {
        let mut done = 0;
        for chunk in leaving.chunks(PUNCH_FRAMES as usize) {
            done += chunk.len();
            if let Err(error) = self.punch_chunk(chunk, why, report) {
                leaving[done..].iter().for_each(|&frame| self.table.cancel_discard(frame));
                return Err(error);
            }
        }
        Ok(())
    }

    fn punch_chunk(
        &self,
        chunk: &[Frame],
        why: Discard,
        report: &mut Discarded,
    ) -> Result<(), DiscardError> {
        let mut punching = chunk.to_vec();
        punching.retain(|&frame| self.table.begin_punch(frame));
        report.kept += (chunk.len() - punching.len()) as u32;
        let mut refused = None;
        for run in FrameRange::coalesce(&punching, PUNCH_FRAMES) {
            // After a refusal the rest is put back without asking: no frame may stay busy.
            if refused.is_none()
                && let Err(errno) = self.ram.punch(run)
            {
                refused = Some(DiscardError::Punch { run, errno });
            }
            let target = refused.is_none().then(|| why.target());
            run.frames().for_each(|frame| self.table.punched(frame, target));
            if let Some(events) = self.events().filter(|_| refused.is_none()) {
                run.frames().for_each(|frame| events.tell(Event::Freed { frame }));
            }
            report.discarded += if refused.is_none() { run.count } else { 0 };
        }
        refused.map_or(Ok(()), Err)
    }

    /// Takes `frames` out of the balloon: the guest may use them again, and finds zeros. Frames
    /// that are not ballooned (the guest touched them first) stay as they are. Answers how many
    /// left the balloon.
    pub fn return_from_balloon(&self, frames: impl IntoIterator<Item = Frame>) -> u32 {
        let mut returned = 0;
        for frame in frames {
            if frame.0 < self.table.len() && self.table.leave_balloon(frame) {
                returned += 1;
            }
        }
        returned
    }
}
