//! A VM for tests of whoever serves or asks one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{BalloonTarget, ControlError, RunState, VmControl, VmStatus, WorkingSet};

/// Of the guest, in bytes.
const MEMORY: u64 = 256 << 20;

/// A VM that remembers what it was told. Its working set is known from the third question on.
#[derive(Debug)]
pub struct FakeVm {
    name: String,
    /// Told to pause, and not to resume since.
    pub paused: AtomicBool,
    /// Told to stop.
    pub stopped: AtomicBool,
    /// Bytes that the balloon was told to hold.
    pub balloon_target: AtomicU64,
    /// Whether its working set is measured.
    pub watched: AtomicBool,
    /// How often its status was asked.
    pub questions: AtomicU64,
}

impl FakeVm {
    /// One that runs.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            paused: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            balloon_target: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            questions: AtomicU64::new(0),
        }
    }
}

impl VmControl for FakeVm {
    fn status(&self) -> Result<VmStatus, ControlError> {
        let questions = self.questions.fetch_add(1, Ordering::Relaxed) + 1;
        let measured = questions >= 3 && self.watched.load(Ordering::Relaxed);
        let window = measured.then_some(30 << 20);
        let paused = self.paused.load(Ordering::Relaxed);
        Ok(VmStatus {
            name: self.name.clone(),
            pid: std::process::id(),
            engine: "translate".to_owned(),
            vcpus: 2,
            state: if paused { RunState::Paused } else { RunState::Running },
            uptime_seconds: questions as f64,
            configured_bytes: MEMORY,
            resident_bytes: 100 << 20,
            balloon_target_bytes: self.balloon_target.load(Ordering::Relaxed),
            working_set: WorkingSet { window_1s_bytes: window, ..WorkingSet::default() },
            guest_cpu_seconds: questions as f64 / 2.0,
            ..VmStatus::default()
        })
    }

    fn watch(&self) -> Result<(), ControlError> {
        self.watched.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn stop(&self) -> Result<(), ControlError> {
        if self.stopped.swap(true, Ordering::Relaxed) {
            return Err(ControlError::State("the guest has ended".to_owned()));
        }
        Ok(())
    }

    fn set_balloon(&self, target: BalloonTarget) -> Result<(), ControlError> {
        if target.target_bytes > MEMORY {
            return Err(ControlError::Invalid("more than the guest has: ask for less".to_owned()));
        }
        self.balloon_target.store(target.target_bytes, Ordering::Relaxed);
        Ok(())
    }
}
