//! What frames are for, as the observer follows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use insight::classes::truth::{self, Comparison};
use insight::kernel::KernelError;
use insight::{CacheTracker, ClassSummary, Classifier, FrameClass, ProcessSeen};
use memory::{EventStream, Frame, GuestMemory, Stamped};
use serde::Serialize;

/// Classes of a guest that stands, and what its kernel says.
#[derive(Debug, Serialize)]
pub struct ClassCheck {
    summary: ClassSummary,
    processes: Vec<ProcessSeen>,
    comparison: Comparison,
    events_lost: u64,
    /// Time of the observer's processor spent on sweeps, and how many.
    sweep_seconds: f64,
    sweeps: u64,
    longest_sweep_seconds: f64,
}

/// A classifier, and what it takes.
#[derive(Debug)]
pub(super) struct Classes {
    classifier: Classifier,
    sweep_time: Duration,
    longest_sweep: Duration,
    sweeps: u64,
}

impl Classes {
    /// `told`: whether each address space is told as a vCPU loads it.
    pub(super) fn new(memory: &Arc<GuestMemory>, told: bool) -> Self {
        let memory = Arc::clone(memory);
        let classifier = if told { Classifier::new(memory) } else { Classifier::searching(memory) };
        let none = Duration::ZERO;
        Self { classifier, sweep_time: none, longest_sweep: none, sweeps: 0 }
    }

    /// Before the tracker is told.
    pub(super) fn tell(&mut self, stamped: &Stamped) {
        self.classifier.tell(stamped);
    }

    /// At the end of an epoch.
    pub(super) fn sweep(&mut self, tracker: &CacheTracker) {
        let begun = Instant::now();
        self.classifier.sweep(tracker);
        let took = begun.elapsed();
        self.sweep_time += took;
        self.longest_sweep = self.longest_sweep.max(took);
        self.sweeps += 1;
    }

    /// Whether all page tables that are known have been looked at.
    pub(super) fn are_known(&self) -> bool {
        self.classifier.has_walked()
    }

    pub(super) fn part(&self, frame: Frame, tracker: &CacheTracker) -> FrameClass {
        self.classifier.class(frame, tracker).0
    }

    /// Frames that could be had again inside the VM: of every class's part, once each.
    pub(super) fn shareable(&self, tracker: &CacheTracker) -> BTreeMap<FrameClass, u64> {
        let mut frames: BTreeMap<_, u64> = FrameClass::ALL.map(|class| (class, 0)).into();
        for (class, shareable) in self.classifier.shareable(tracker) {
            *frames.entry(class).or_default() += shareable;
        }
        frames
    }

    pub(super) fn check(
        &self,
        memory: &Arc<GuestMemory>,
        tracker: &CacheTracker,
    ) -> Result<ClassCheck, KernelError> {
        Ok(ClassCheck {
            summary: self.classifier.summary(tracker),
            processes: self.classifier.processes().collect(),
            comparison: truth::compare(memory, &self.classifier, tracker)?,
            events_lost: memory.events().map_or(0, EventStream::lost),
            sweep_seconds: self.sweep_time.as_secs_f64(),
            sweeps: self.sweeps,
            longest_sweep_seconds: self.longest_sweep.as_secs_f64(),
        })
    }
}
