//! Epochs: which frames were accessed or changed, and when. A census, not a sample.
//!
//! Nothing is paid for while nobody advances the epoch: every access finds its fact recorded.

use std::sync::PoisonError;

use crate::address::{Epoch, Frame};
use crate::guest_memory::GuestMemory;
use crate::revoke::{MappingObserver, Revocation};

impl GuestMemory {
    /// Begins the next epoch and has the engine forget its translations, so that the first access
    /// to each frame in the new epoch is seen.
    ///
    /// A vCPU forgets at its next safe point: what it accesses before that, through translations
    /// of the epoch that ended, counts as accessed in that one.
    pub fn advance_epoch(&self) -> Epoch {
        self.end_epoch(0);
        self.epoch()
    }

    /// As [`GuestMemory::advance_epoch`], and answers [`GuestMemory::accesses_by_age`] of the epoch
    /// that ends, its own accesses at 0: counted first and ended second, so that an access meanwhile
    /// is still one of the epoch that ends.
    pub fn end_epoch(&self, ages: usize) -> Vec<u32> {
        self.end_epoch_after(|| self.accesses_by_age(ages))
    }

    /// As [`GuestMemory::end_epoch`], with any look at the epoch that ends: the engine has told what it knows of it.
    pub fn end_epoch_after<T>(&self, look: impl FnOnce() -> T) -> T {
        self.ask(|observer| observer.end_epoch());
        let seen = look();
        let epoch = self.table.advance_epoch();
        self.revoke(Revocation::Epoch(epoch));
        seen
    }

    /// Has the engine tell what it knows of accesses up to now. Before a question about the running
    /// epoch or about which frames are resident: an engine whose guests reach frames by themselves
    /// tells only then. Nothing to do on others.
    pub fn catch_up(&self) {
        self.ask(|observer| observer.report());
    }

    /// The engine looks first and tells afterwards what it saw. No frame is given back between the two: told of
    /// a frame that has just been ballooned, the table would take it for one that the guest has touched again.
    fn ask(&self, look: impl FnOnce(&dyn MappingObserver)) {
        if let Some(observer) = self.observer() {
            let _no_discard = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
            look(&*observer);
        }
    }

    /// The frames last accessed in `since` or later, in order.
    pub fn accessed_since(&self, since: Epoch) -> impl Iterator<Item = Frame> + '_ {
        self.table.frames().filter(move |&frame| self.table.accessed(frame) >= since)
    }

    /// The frames whose contents changed in `since` or later, in order: written by the guest or a
    /// device, or discarded (look at the state to tell).
    pub fn written_since(&self, since: Epoch) -> impl Iterator<Item = Frame> + '_ {
        self.table.frames().filter(move |&frame| self.table.written(frame) >= since)
    }

    /// Frames by the age of their last access, in one pass: element `n` counts those last accessed
    /// `n` epochs before the current one. Older and never accessed frames are left out.
    pub fn accesses_by_age(&self, ages: usize) -> Vec<u32> {
        let mut counts = vec![0; ages];
        if ages == 0 {
            return counts;
        }
        let now = self.epoch();
        for frame in self.table.frames() {
            let accessed = self.table.accessed(frame);
            // An access may be recorded in an epoch that began after `now` was read: it is fresh.
            let age = now.0.saturating_sub(accessed.0) as usize;
            if accessed != Epoch::NEVER
                && let Some(count) = counts.get_mut(age)
            {
                *count += 1;
            }
        }
        counts
    }
}
