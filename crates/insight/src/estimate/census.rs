//! Every frame counts that was accessed in a window.

use std::sync::Arc;
use std::time::Duration;

use memory::GuestMemory;

use super::{Estimate, Estimator};
use crate::working_set::{WorkingSetSample, WorkingSetTracker};

/// [`WorkingSetTracker`] as one method among others.
#[derive(Debug)]
pub struct Census {
    tracker: WorkingSetTracker,
    window: Duration,
    seen: Vec<u32>,
    latest: Option<WorkingSetSample>,
}

impl Census {
    /// Estimates by `window`.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, epoch_length: Duration, window: Duration) -> Self {
        let tracker = WorkingSetTracker::new(memory, epoch_length);
        Self { tracker, window, seen: Vec::new(), latest: None }
    }

    /// All windows, as of the last epoch.
    #[must_use]
    pub fn latest(&self) -> Option<WorkingSetSample> {
        self.latest
    }

    /// The history.
    #[must_use]
    pub fn tracker(&self) -> &WorkingSetTracker {
        &self.tracker
    }
}

impl Estimator for Census {
    fn name(&self) -> &'static str {
        "census"
    }

    fn look(&mut self) {
        self.seen = self.tracker.look();
    }

    fn tick(&mut self, elapsed: Duration) {
        self.latest = Some(self.tracker.note(elapsed, std::mem::take(&mut self.seen)));
    }

    fn estimate(&self) -> Option<Estimate> {
        self.tracker.working_set(self.window).map(Estimate::exact)
    }
}
