//! What the messages carry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Answer to `GET /fathom/version`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// Version of the program that runs the VM.
    pub fathom_version: String,
}

/// Answer to `GET /fathom/vm`, and one row of `fathom top`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct VmStatus {
    /// Name of the VM.
    pub name: String,
    /// Process that runs it.
    pub pid: u32,
    /// Engine that runs it.
    pub engine: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether the guest runs.
    pub state: RunState,
    /// Time since the guest was started.
    pub uptime_seconds: f64,
    /// Size of guest RAM.
    pub configured_bytes: u64,
    /// Guest RAM that takes host memory; at most `configured_bytes`.
    pub resident_bytes: u64,
    /// Guest RAM that the balloon holds.
    pub ballooned_bytes: u64,
    /// What the balloon was asked to hold.
    pub balloon_target_bytes: u64,
    /// What the guest used lately.
    pub working_set: WorkingSet,
    /// Host CPU time that its vCPUs took, all together.
    pub guest_cpu_seconds: f64,
    /// The same since the last time that somebody asked; 100 is one host CPU.
    pub guest_cpu_percent: f64,
    /// Times that a vCPU left guest code for the VMM, by kind.
    pub exits: BTreeMap<String, u64>,
}

/// Whether a guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// vCPUs run.
    #[default]
    Running,
    /// vCPUs stand still until resumed.
    Paused,
    /// The guest has ended; its process is about to.
    Ended,
}

/// Memory that the guest used, over three windows that end now. Absent while there is no full answer: the
/// VM begins to watch when somebody asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Used in the last second.
    pub window_1s_bytes: Option<u64>,
    /// Used in the last ten seconds.
    pub window_10s_bytes: Option<u64>,
    /// Used in the last minute.
    pub window_60s_bytes: Option<u64>,
}

/// Body of `PUT /fathom/vm/balloon`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// How much memory the balloon is to take from the guest; 0 gives all of it back.
    pub target_bytes: u64,
}

/// Body of every answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// One line: what was wrong, what to do.
    pub fault_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_keeps_its_names() {
        let json = serde_json::to_value(VmStatus::default()).expect("json");
        let mut names: Vec<_> = json.as_object().expect("object").keys().cloned().collect();
        names.sort();
        assert_eq!(
            names,
            [
                "balloon_target_bytes",
                "ballooned_bytes",
                "configured_bytes",
                "engine",
                "exits",
                "guest_cpu_percent",
                "guest_cpu_seconds",
                "name",
                "pid",
                "resident_bytes",
                "state",
                "uptime_seconds",
                "vcpus",
                "working_set",
            ]
        );
        assert_eq!(json["state"], "running");
        assert!(json["working_set"]["window_60s_bytes"].is_null());
    }

    #[test]
    fn a_balloon_target_is_exactly_that() {
        let read = serde_json::from_str::<BalloonTarget>;
        assert_eq!(read(r#"{"target_bytes":4096}"#).expect("target").target_bytes, 4096);
        for bad in ["", "{}", r#"{"target_bytes":-1}"#, r#"{"target_bytes":1,"x":2}"#, "[4096.5]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
