//! A VM for tests of whoever serves or asks one.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{
    BalloonTarget, CacheFigures, CloneReport, CloneRequest, ControlError, CurveOf, CurvePoint,
    FrameClass, GuestProcess, HistoryPoint, KernelInfo, KernelSymbol, KernelType, MemoryCurve,
    MemoryUse, PartFigures, Picture, ReclaimRequest, ReclaimStatus, Recommendation, RunState,
    SaveReport, SaveRequest, VmControl, VmStatus, WorkingSet, WorkingSets,
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
    /// What was asked of it last, and whether a store came along.
    pub reclaimed: Mutex<Option<(ReclaimRequest, bool)>>,
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
            reclaimed: Mutex::default(),
            questions: AtomicU64::new(0),
        }
    }
}

impl FakeVm {
    /// All was taken that was asked for.
    fn reclaim_status(&self) -> Option<ReclaimStatus> {
        let asked = *self.reclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        asked.map(|(request, store)| ReclaimStatus {
            taken_bytes: request.bytes,
            written_bytes: if store { request.bytes } else { 0 },
            zero_bytes: if store { 0 } else { request.bytes },
            store_limit_bytes: store.then_some(u64::MAX),
            ..ReclaimStatus::default()
        })
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
            memory_use: MemoryUse {
                cache_bytes: Some(40 << 20),
                evictions_per_second: Some(12.5),
                ..MemoryUse::default()
            },
            guest_cpu_seconds: questions as f64 / 2.0,
            reclaim: self.reclaim_status(),
            ..VmStatus::default()
        })
    }

    /// 256 MiB of which all is known, after a minute that somebody watched.
    fn memory(&self) -> Result<Picture, ControlError> {
        let watched = self.watched.load(Ordering::Relaxed);
        let resident = |mib: u64, idle: u64| PartFigures {
            bytes: mib << 20,
            resident_bytes: mib << 20,
            by_idle_age: [(mib - idle) << 20, 0, 0, 0, 0, 0, idle << 20, 0, 0],
            ..PartFigures::default()
        };
        let absent = |mib: u64| PartFigures { bytes: mib << 20, ..PartFigures::default() };
        let parts = [
            (FrameClass::FileCache, resident(40, 10)),
            (
                FrameClass::Anonymous,
                PartFigures { shareable_bytes: Some(5 << 20), ..resident(30, 20) },
            ),
            (FrameClass::PageTable, resident(2, 0)),
            (FrameClass::Kernel, resident(28, 0)),
            (FrameClass::Ballooned, absent(16)),
            (FrameClass::Free, absent(40)),
            (FrameClass::Untouched, absent(100)),
        ];
        let point = |mib: u64, miss_ratio| CurvePoint { bytes: mib << 20, miss_ratio };
        let why = "half of what is read again was evicted less than 80 MiB ago".to_owned();
        Ok(Picture {
            at_seconds: 100.0,
            memory_bytes: MEMORY,
            parts: parts.into(),
            classified: true,
            watched_seconds: watched.then_some(90.0),
            working_set: watched.then_some(WorkingSets {
                window_1s_bytes: 30 << 20,
                window_10s_bytes: 50 << 20,
                window_60s_bytes: 70 << 20,
            }),
            cache: Some(CacheFigures {
                cached_bytes: 40 << 20,
                inserted: 20_000,
                evicted: 9_000,
                dropped: 760,
                inserts_per_second: 25.0,
                evictions_per_second: 12.5,
                disk_read_peak_bytes_per_second: f64::from(100 << 20),
                ghost_hits: 7,
                has_swap: false,
            }),
            curve: MemoryCurve {
                allocation_bytes: 240 << 20,
                of: CurveOf::Misses,
                points: vec![point(240, 1.0), point(320, 0.5), point(480, 0.25)],
                recommendation: Some(Recommendation { bytes: 320 << 20, confidence: 0.8, why }),
            },
            history: (0u64..30)
                .map(|second| HistoryPoint {
                    at_seconds: second as f64,
                    parts: [(FrameClass::FileCache, second << 20)].into(),
                    ..HistoryPoint::default()
                })
                .collect(),
            lost_events: 0,
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

    fn save(&self, lanes: Vec<OwnedFd>, request: SaveRequest) -> Result<SaveReport, ControlError> {
        let failed = |error: std::io::Error| ControlError::Failed(error.to_string());
        if lanes.is_empty() {
            return Err(ControlError::Invalid("no socket came along".to_owned()));
        }
        for lane in lanes {
            File::from(lane).write_all(b"its memory").map_err(failed)?;
        }
        if request.stop {
            self.stop()?;
        }
        let (pause_seconds, memory_bytes, sent_bytes) = (0.5, MEMORY, 10);
        Ok(SaveReport { pause_seconds, memory_bytes, sent_bytes, ..SaveReport::default() })
    }

    fn make_clonable(
        &self,
        mut machine: File,
        memory: OwnedFd,
        _: CloneRequest,
    ) -> Result<(CloneReport, Vec<OwnedFd>), ControlError> {
        let failed = |error: std::io::Error| ControlError::Failed(error.to_string());
        machine.write_all(b"the machine").map_err(failed)?;
        let mut image = File::from(memory);
        image.write_all(b"its memory").map_err(failed)?;
        let report = CloneReport {
            pause_seconds: 0.25,
            memory_bytes: MEMORY,
            copied_bytes: 10,
            stands: false,
        };
        Ok((report, vec![image.into()]))
    }

    fn stop(&self) -> Result<(), ControlError> {
        if self.stopped.swap(true, Ordering::Relaxed) {
            return Err(ControlError::State("the guest has ended".to_owned()));
        }
        Ok(())
    }

    fn reclaim(&self, request: ReclaimRequest, store: Option<File>) -> Result<(), ControlError> {
        let mut reclaimed = self.reclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        *reclaimed = Some((request, store.is_some()));
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
