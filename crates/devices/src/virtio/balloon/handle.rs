//! The balloon as the rest of the VMM drives it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::{BalloonError, GuestStatistics};
use crate::Notifier;
use crate::sync::lock;

/// Sets the balloon's target and reads what became of it. Any thread; clones are the same balloon.
#[derive(Clone, Debug)]
pub struct BalloonHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    guest_pages: u32,
    target: AtomicU32,
    /// As the guest says; not checked.
    actual: AtomicU32,
    target_changed: AtomicBool,
    statistics_wanted: AtomicBool,
    statistics: Mutex<Option<GuestStatistics>>,
    pub(super) wake: Notifier,
}

impl BalloonHandle {
    pub(super) fn new(guest_pages: u32) -> io::Result<Self> {
        let shared = Shared {
            guest_pages,
            target: 0.into(),
            actual: 0.into(),
            target_changed: false.into(),
            statistics_wanted: false.into(),
            statistics: Mutex::default(),
            wake: Notifier::new()?,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Asks the guest to have `pages` pages in the balloon. It may take its time, or never get
    /// there: see [`actual`](Self::actual).
    ///
    /// # Errors
    /// The guest does not have as many pages; the target is as it was.
    pub fn set_target(&self, pages: u32) -> Result<(), BalloonError> {
        let limit = self.shared.guest_pages;
        if pages > limit {
            return Err(BalloonError::TargetTooLarge { pages, limit });
        }
        self.shared.set_target(pages);
        Ok(())
    }

    /// Pages the balloon should hold.
    pub fn target(&self) -> u32 {
        self.shared.target.load(Ordering::SeqCst)
    }

    /// Pages the balloon holds, as the guest says.
    pub fn actual(&self) -> u32 {
        self.shared.actual.load(Ordering::SeqCst)
    }

    /// Asks the guest for fresh statistics. A guest without a driver never answers.
    pub fn request_statistics(&self) {
        self.shared.statistics_wanted.store(true, Ordering::SeqCst);
        self.shared.wake.signal();
    }

    /// The guest's last statistics, if it ever sent any.
    pub fn statistics(&self) -> Option<GuestStatistics> {
        *lock(&self.shared.statistics)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    pub(super) fn set_target(&self, pages: u32) {
        self.target.store(pages, Ordering::SeqCst);
        self.target_changed.store(true, Ordering::SeqCst);
        self.wake.signal();
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::SeqCst);
    }

    pub(super) fn set_statistics(&self, statistics: Option<GuestStatistics>) {
        *lock(&self.statistics) = statistics;
    }

    pub(super) fn take_target_changed(&self) -> bool {
        self.target_changed.swap(false, Ordering::SeqCst)
    }

    pub(super) fn statistics_wanted(&self) -> bool {
        self.statistics_wanted.load(Ordering::SeqCst)
    }

    pub(super) fn statistics_asked(&self) {
        self.statistics_wanted.store(false, Ordering::SeqCst);
    }
}
