//! What a VM shows of itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use insight::picture::Picture;
use serde::Serialize;

use crate::control::RunState;
use crate::host_cache::HostCacheReport;
use crate::restore::RestoreReport;
use crate::swap::ReclaimStatus;

/// A VM at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Name of the engine.
    pub engine: &'static str,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether it runs.
    pub state: RunState,
    /// What it waits for, where that is why it stands, or why a device of it does: a source of its memory that fails or
    /// does not answer.
    pub waits_for: Option<String>,
    /// Since the VM was started, reboots included.
    pub uptime_seconds: f64,
    /// Guest RAM as configured.
    pub configured_bytes: u64,
    /// Guest RAM with a host page behind it.
    pub resident_bytes: u64,
    /// In the balloon.
    pub ballooned_bytes: u64,
    /// What the balloon was asked to hold.
    pub balloon_target_bytes: u64,
    /// `None` until measured: measuring starts with the first question.
    pub working_set: Option<WorkingSet>,
    /// What was known of its memory when somebody last looked: a second ago while watched.
    pub picture: Arc<Picture>,
    /// CPU time of all vCPU threads.
    pub guest_cpu_seconds: f64,
    /// Exits by kind.
    pub exits: BTreeMap<&'static str, u64>,
    /// The cache of disk blocks in this process, where there is one.
    pub host_cache: Option<HostCacheReport>,
    /// What the host has taken of its memory, where it was ever asked to.
    pub reclaim: Option<ReclaimStatus>,
    /// Of its memory, what is in pages that other guests may have, too.
    pub shared_bytes: u64,
}

/// Bytes accessed in the last 1, 10 and 60 seconds, or since the measurement began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct WorkingSet {
    pub window_1s_bytes: u64,
    pub window_10s_bytes: u64,
    pub window_60s_bytes: u64,
}

/// A working-set sample of the report, in time since the VM was started.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct WorkingSetPoint {
    pub t_seconds: f64,
    pub resident_bytes: u64,
    pub window_1s_bytes: u64,
    pub window_10s_bytes: u64,
    pub window_60s_bytes: u64,
}

/// What a run came to.
#[derive(Clone, PartialEq, Debug)]
pub struct RunReport {
    /// Name of the engine.
    pub engine: &'static str,
    /// From start to end.
    pub wall_seconds: f64,
    /// CPU time of the whole process, user and system.
    pub cpu_seconds: f64,
    /// Guest instructions, where the engine counts them.
    pub guest_instructions: Option<u64>,
    /// Exits by kind.
    pub exits: BTreeMap<&'static str, u64>,
    /// Frames by state at the end.
    pub frames: BTreeMap<&'static str, u64>,
    /// What the engine's translator did, by name; empty on an engine without.
    pub translation: BTreeMap<&'static str, u64>,
    /// Disk blocks that came into the guest's memory and left it, by name; empty where nobody listened.
    pub cache: BTreeMap<&'static str, u64>,
    /// The cache of disk blocks in this process, where there is one.
    pub host_cache: Option<HostCacheReport>,
    /// One point a second.
    pub working_set: Vec<WorkingSetPoint>,
    /// How the memory came, where the last life was saved before.
    pub restore: Option<RestoreReport>,
    /// What is known of the guest's memory at the end; of the last life.
    pub picture: Arc<Picture>,
    /// Resident memory of this process at the end, guest frames included.
    pub host_resident_bytes: u64,
    /// Times the VM was paused.
    pub pauses: u64,
}

/// CPU seconds of a thread of this process (field 1 of schedstat, in nanoseconds).
pub(crate) fn thread_cpu_seconds(tid: u64) -> f64 {
    let path = format!("/proc/self/task/{tid}/schedstat");
    let text = std::fs::read_to_string(Path::new(&path)).unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
    nanoseconds.unwrap_or(0) as f64 / 1e9
}

/// CPU seconds of this process.
pub(crate) fn process_cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident memory of this process but for what it shares, which is guest RAM: that may be mapped more
/// than once, and resident without being mapped.
pub(crate) fn process_private_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    (kib("RssAnon:") + kib("RssFile:")) * 1024
}
