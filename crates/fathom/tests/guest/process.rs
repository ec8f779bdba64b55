//! What the host's kernel knows of a VM's process.

use std::fs;
use std::time::Duration;

/// Resident memory, in bytes, as smaps has it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    /// Of the mappings of guest RAM.
    pub(crate) guest: u64,
    /// Of all others: the VMM's own.
    pub(crate) overhead: u64,
}

impl Resident {
    pub(crate) fn of(pid: u32) -> Self {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
        Self::parse(&smaps)
    }

    fn parse(smaps: &str) -> Self {
        let (mut resident, mut in_guest) = (Self::default(), false);
        for line in smaps.lines() {
            if let Some(rest) = line.strip_prefix("Rss:") {
                let kib = rest.trim().trim_end_matches(" kB").parse::<u64>().expect("a size");
                *(if in_guest { &mut resident.guest } else { &mut resident.overhead }) += kib << 10;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
                in_guest = line.contains("memfd:fathom-guest-ram");
            }
        }
        resident
    }
}

/// CPU time of all threads that live.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    // A thread may end between the two looks.
    let times =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    Duration::from_nanos(times.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[test]
fn guest_memory_is_told_from_the_rest() {
    let smaps = "\
7f0000000000-7f0010000000 rw-s 00000000 00:01 1029 /memfd:fathom-guest-ram (deleted)
Size:             262144 kB
Rss:               79544 kB
55d000000000-55d000100000 r-xp 00000000 fe:00 12 /usr/bin/fathom
Rss:                3536 kB
VmFlags: rd ex
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Rss:                   4 kB
";
    let resident = Resident::parse(smaps);
    assert_eq!((resident.guest, resident.overhead), (79544 << 10, 3540 << 10));
}
