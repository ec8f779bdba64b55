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
    /// What was known of the guest's memory at the end.
    #[serde(default)]
    pub memory: Picture,
    /// Host memory of the whole process at the end.
    pub host_resident_bytes: u64,
    /// Times that the guest was paused.
    pub pauses: u64,
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
