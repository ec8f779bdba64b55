//! The walls around a VM's process, as the host's kernel shows them. That each holds is tested in `confine`.

use std::fs;
use std::path::{Path, PathBuf};

/// Filters that every thread inherits; one that has no more has forgotten its own.
const OF_THE_PROCESS: u32 = 3;

/// Asserts that the process has given up what it can.
pub(crate) fn is_confined(pid: u32) {
    let process = PathBuf::from(format!("/proc/{pid}"));
    for thread in threads(&process) {
        let status = fs::read_to_string(thread.join("status")).expect("status");
        assert_eq!(field(&status, "NoNewPrivs"), "1", "{status}");
        assert_eq!(field(&status, "Seccomp"), "2", "{status}");
        let filters: u32 = field(&status, "Seccomp_filters").parse().expect("a number");
        assert!(filters > OF_THE_PROCESS, "{status}");
    }
}

fn threads(process: &Path) -> Vec<PathBuf> {
    let tasks = fs::read_dir(process.join("task")).expect("threads");
    tasks.flatten().map(|task| task.path()).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| *found == name).expect(name).1.trim()
}
