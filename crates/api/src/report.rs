//! What `fathom run --report` writes.

use std::collections::BTreeMap;

use insight::picture::Picture;
use serde::{Deserialize, Serialize};

use crate::HostCache;

/// One run of a VM, from start to end.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Engine that ran it.
    pub engine: String,
    /// `poweroff`, `reboot`, `panic`, `stopped` or `failed`.
    pub outcome: String,
    /// Time from start to end.
    pub wall_seconds: f64,
    /// Host CPU time of the whole process.
    pub cpu_seconds: f64,
    /// Guest instructions run, if the engine counts them: one that interprets them all.
    pub guest_instructions: Option<u64>,
    /// Exits, by kind.
    pub exits: BTreeMap<String, u64>,
    /// Frames at the end, by state.
    pub frames: BTreeMap<String, u64>,
    /// What became of guest code on an engine that translates it, by name; absent on another.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub translation: BTreeMap<String, u64>,
    /// Disk blocks that came into the guest's memory and left it, by name; absent where nobody listened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cache: BTreeMap<String, u64>,
    /// The cache of disk blocks in the VM's process; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cache: Option<HostCache>,
    /// The working set, one sample an interval, oldest first.
    pub working_set: Vec<WorkingSetSample>,
    /// How its memory came; absent where it was not restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// What was known of the guest's memory at the end.
    #[serde(default)]
    pub memory: Picture,
    /// Host memory of the whole process at the end.
    pub host_resident_bytes: u64,
    /// Times that the guest was paused.
    pub pauses: u64,
}

/// How the memory of a restored VM came. Times are in seconds since it was asked for.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Restore {
    /// `eager`, `lazy` or `working-set`.
    pub mode: String,
    /// Until a vCPU ran.
    pub first_instruction_seconds: f64,
    /// Until all memory was there; absent if the VM ended before.
    pub complete_seconds: Option<f64>,
    /// Contents read, as many as they are uncompressed.
    pub bytes_read: u64,
    /// Frames of the working set that was known.
    pub working_set_frames: u64,
    /// Frames that came before anybody needed them.
    pub frames_prefetched: u64,
    /// Frames that came late.
    pub faults: RestoreFaults,
    /// How long each vCPU waited for memory, its start included.
    pub blocked_seconds: Vec<f64>,
    /// Time to responsiveness.
    pub ttr: Vec<TimeToResponsiveness>,
    /// Of vCPU 0: from which time on, how much of each second it has at least.
    pub curve: Vec<[f64; 2]>,
}

/// Frames that came late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RestoreFaults {
    /// Fetched since somebody needed them.
    pub demand: u64,
    /// Came along with these.
    pub neighbours: u64,
    /// Waits of vCPUs for a frame that another was fetching.
    pub waited: u64,
    /// Waits of devices.
    pub device: u64,
}

/// The time from which on each window of a vCPU has so much of its time (Zhang and others, VEE 2011).
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct TimeToResponsiveness {
    /// Length of a window.
    pub window_seconds: f64,
    /// What is asked of it, 0 to 1.
    pub utilization: f64,
    /// Mean of the vCPUs.
    pub mean_seconds: f64,
    /// The slowest vCPU's.
    pub worst_seconds: f64,
}

/// The working set at one time. A window is absent until it has passed once.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WorkingSetSample {
    /// Since the start.
    pub t_seconds: f64,
    /// Guest memory that the host holds.
    pub resident_bytes: u64,
    /// Used in the second before.
    pub window_1s_bytes: Option<u64>,
    /// Used in the ten seconds before.
    pub window_10s_bytes: Option<u64>,
    /// Used in the minute before.
    pub window_60s_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_can_be_read_back() {
        let report = Report {
            exits: BTreeMap::from([("mmio".to_owned(), 3)]),
            working_set: vec![WorkingSetSample {
                t_seconds: 1.0,
                window_1s_bytes: Some(4096),
                ..WorkingSetSample::default()
            }],
            ..Report::default()
        };
        let json = serde_json::to_string(&report).expect("json");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("report"), report);
    }
}
