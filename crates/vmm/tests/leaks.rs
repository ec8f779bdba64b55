//! Starting and stopping VMs leaves nothing behind in the process: the only test of its program, since it
//! counts what the whole process has.

mod machine;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use machine::{Host, PRINT, REBOOT, SPIN};
use vmm::Outcome;

const CYCLES: u32 = 200;
/// Caches of the allocator and of thread stacks fill meanwhile.
const WARM_UP: u32 = 40;
/// A mapping or a few pages left by each cycle would be more.
const MAPPINGS_MAX: usize = CYCLES as usize / 4;
const RESIDENT_MAX: usize = CYCLES as usize * (8 << 10);

/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn two_hundred_lives_leave_nothing() {
    (0..WARM_UP).for_each(live);
    let before = Usage::now();
    (0..CYCLES).for_each(live);
    // The supervisor thread outlives `wait` by a moment.
    let deadline = Instant::now() + PATIENCE;
    while Usage::now().threads > before.threads && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let after = Usage::now();
    println!("before {before:?}, after {after:?}");
    assert_eq!((after.threads, after.descriptors), (before.threads, before.descriptors));
    assert!(after.mappings <= before.mappings + MAPPINGS_MAX, "{before:?} {after:?}");
    assert!(after.resident_bytes <= before.resident_bytes + RESIDENT_MAX, "{before:?} {after:?}");
}

/// One VM, ended in the midst of what it does: spinning, printing, rebooting; asked, paused, or neither.
fn live(cycle: u32) {
    let host = Host::new();
    let vm = host.start([SPIN, PRINT, REBOOT][cycle as usize % 3]);
    if cycle.is_multiple_of(2) {
        // Begins to measure its working set, on a thread.
        assert_eq!(vm.status().vcpus, 2);
    }
    if cycle % 4 < 2 {
        vm.pause().expect("paused");
    }
    if cycle % 8 < 3 {
        vm.resume().expect("resumed");
    }
    vm.stop();
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    assert!(vm.report().is_some());
}

/// What this process has.
#[derive(Clone, Copy, Debug)]
struct Usage {
    threads: usize,
    descriptors: usize,
    mappings: usize,
    resident_bytes: usize,
}

impl Usage {
    fn now() -> Self {
        let entries = |path| fs::read_dir(path).expect("proc").count();
        let text = |path| fs::read_to_string(path).expect("proc");
        let status = text("/proc/self/status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|rest| rest.trim().split(' ').next()?.parse::<usize>().ok());
        Self {
            threads: entries("/proc/self/task"),
            descriptors: entries("/proc/self/fd"),
            mappings: text("/proc/self/maps").lines().count(),
            resident_bytes: kib.expect("VmRSS") << 10,
        }
    }
}
