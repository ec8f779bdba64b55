//! A VM for tests of whoever serves or asks one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{
    BalloonTarget, ControlError, GuestProcess, KernelInfo, KernelSymbol, KernelType, RunState,
    VmControl, VmStatus, WorkingSet,
};

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

    /// One that has booted, when it is not paused.
    fn kernel(&self) -> Result<KernelInfo, ControlError> {
        if self.paused.load(Ordering::Relaxed) {
            return Err(ControlError::State("no Linux kernel found".to_owned()));
        }
        let process =
            |pid, name: &str, page_table| GuestProcess { pid, name: name.to_owned(), page_table };
        Ok(KernelInfo {
            release: "6.1.0-9-amd64".to_owned(),
            kaslr_offset: 0x1c00_0000,
            note_address: 0x123_4000,
            symbols: Some(150_000),
            class_bytes: [("free", 200 << 20), ("anonymous", (56 << 20) - 4096)]
                .map(|(class, bytes)| (class.to_owned(), bytes))
                .into(),
            processes: vec![process(1, "init", Some(0x456_7000)), process(2, "kthreadd", None)],
            process_count: 5000,
            missing: vec!["types: BTF unknown: no such symbol".to_owned()],
            ..KernelInfo::default()
        })
    }

    fn kernel_symbol(&self, wanted: &str) -> Result<KernelSymbol, ControlError> {
        match wanted {
            "_stext" => Ok(KernelSymbol { name: wanted.to_owned(), address: 1 << 63, offset: 0 }),
            "0x8000000000000010" => {
                Ok(KernelSymbol { name: "_stext".to_owned(), address: 1 << 63, offset: 16 })
            }
            _ => Err(ControlError::Invalid(format!("guest kernel: no symbol `{wanted}`"))),
        }
    }

    fn kernel_type(&self, _wanted: &str) -> Result<KernelType, ControlError> {
        Ok(KernelType { bit_offset: 64, bits: 128 })
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
