//! Starting and stopping VMs leaves nothing behind in the process: the only test of its program, since it
//! counts what the whole process has.

mod machine;

use std::fs;
use std::iter;
use std::ops::Range;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use machine::{Host, PRINT, REBOOT, SPIN};
use vmm::Outcome;

/// In which the allocator's caches and those of thread stacks fill.
const WARM_UP: u32 = 100;
/// Each is looked at by itself. What a life leaves behind shows in every one of them; that the heap once grows
/// by some hundred KiB because threads met by chance does not.
const ROUNDS: u32 = 4;
const LIVES: u32 = 50;
/// Growth of a round: a mapping or a page left by each life would be more.
const MAPPINGS_MAX: usize = 12;
const RESIDENT_MAX: usize = 128 << 10;

/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(60);

/// With several heaps it is chance how much each of them keeps.
const ONE_HEAP: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

#[test]
fn many_lives_leave_nothing() {
    if std::env::var_os(ONE_HEAP.0).is_none() {
        return in_a_process_with_one_heap();
    }
    let start = Usage::now();
    let warm = peak(0..WARM_UP, start);
    let rounds = (0..ROUNDS).map(|round| {
        let first = WARM_UP + round * LIVES;
        peak(first..first + LIVES, start)
    });
    let usages: Vec<Usage> = iter::once(warm).chain(rounds).collect();
    let end = Usage::settled(start.threads);
    assert_eq!((end.threads, end.descriptors), (start.threads, start.descriptors));
    let grew = |of: fn(&Usage) -> usize, most: usize| {
        usages.windows(2).all(|pair| of(&pair[1]) > of(&pair[0]) + most)
    };
    assert!(!grew(|usage| usage.mappings, MAPPINGS_MAX), "{usages:#?}");
    assert!(!grew(|usage| usage.resident_bytes, RESIDENT_MAX), "{usages:#?}");
}

fn in_a_process_with_one_heap() {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["many_lives_leave_nothing", "--exact", "--nocapture", "--include-ignored"]);
    let status = command.env(ONE_HEAP.0, ONE_HEAP.1).status().expect("it runs");
    assert!(status.success(), "{status}");
}

/// The most that the process had between two of these lives.
fn peak(lives: Range<u32>, start: Usage) -> Usage {
    lives.fold(start, |peak, number| {
        live(number);
        let now = Usage::settled(start.threads);
        Usage {
            threads: peak.threads.max(now.threads),
            descriptors: peak.descriptors.max(now.descriptors),
            mappings: peak.mappings.max(now.mappings),
            resident_bytes: peak.resident_bytes.max(now.resident_bytes),
        }
    })
}

/// One VM, ended in the midst of what it does: spinning, printing, rebooting; asked, paused, or neither.
fn live(number: u32) {
    let host = Host::new();
    let vm = host.start([SPIN, PRINT, REBOOT][number as usize % 3]);
    if number.is_multiple_of(2) {
        // Begins to measure its working set, on a thread.
        vm.watch();
        assert_eq!(vm.status().vcpus, 2);
    }
    if number % 4 < 2 {
        vm.pause().expect("paused");
    }
    if number % 8 < 3 {
        vm.resume().expect("resumed");
    }
    vm.stop();
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    assert!(vm.report().is_some());
    assert!(!host.path("vsock").exists(), "the socket is removed");
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
    /// A supervisor thread outlives `VmHandle::wait` by a moment.
    fn settled(threads: usize) -> Self {
        let deadline = Instant::now() + PATIENCE;
        while Self::now().threads > threads && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        Self::now()
    }

    fn now() -> Self {
        let entries = |path| fs::read_dir(path).expect("proc").count();
        let text = |path| fs::read_to_string(path).expect("proc");
        let status = text("/proc/self/status");
        let kib = |name| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
            rest.trim().trim_end_matches(" kB").parse::<usize>().expect("a size")
        };
        Self {
            threads: entries("/proc/self/task"),
            descriptors: entries("/proc/self/fd"),
            mappings: text("/proc/self/maps").lines().count(),
            // Not pages of our program's file, which come and go as the host likes.
            resident_bytes: (kib("RssAnon:") + kib("RssShmem:")) << 10,
        }
    }
}
