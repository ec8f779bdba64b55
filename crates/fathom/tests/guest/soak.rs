//! The same things many times, and many VMs at once: nothing may be left behind.
//!
//! Too long for every run: `cargo xtask soak` runs these, `cargo xtask soak --short` a part of them. What
//! starting and stopping leaves inside one process is measured in `vmm/tests/leaks.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use api::RunState;

use crate::console::deadline;
use crate::engine::announce;
use crate::process::{Usage, mib};
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm, shown};

/// Overhead that may come to a process over all pauses: caches under load.
const GROWTH_MAX: u64 = 8 << 20;
/// Pauses before the first look at what the process has.
const WARM_UP: u32 = 3;

/// `full` times, or `short` where `FATHOM_SOAK=short`.
pub(crate) fn times(full: u32, short: u32) -> u32 {
    match std::env::var("FATHOM_SOAK").as_deref() {
        Err(_) | Ok("full") => full,
        Ok("short") => short,
        Ok(other) => panic!("FATHOM_SOAK={other}: write full or short"),
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn pauses_under_load_leave_nothing() {
    let sandbox = Sandbox::new();
    let read = sandbox.file("read", &vec![0x5a; 1 << 20]);
    let written = sandbox.file("written", &vec![0; 1 << 20]);
    let mut vm = Guest::new("fathom.run=sh").cpus(2).disk(read).disk(written).start(&sandbox);
    vm.wait_for_shell();
    load(&mut vm);
    (0..WARM_UP).for_each(|_| pause_and_resume(&vm));
    let before = Usage::of(vm.pid());
    let count = times(50, 10);
    (0..count).for_each(|_| pause_and_resume(&vm));
    let after = settled(&vm, before);
    announce(&format!("{count} pauses: before {before:?}, after {after:?}"));
    assert_eq!((after.threads, after.descriptors), (before.threads, before.descriptors));
    assert!(after.overhead <= before.overhead + GROWTH_MAX, "{} MiB", mib(after.overhead));

    // What still reads when the disk goes has its read refused, and the kernel complains.
    vm.shell("until [ -s /tmp/sums ]; do sleep 1; done");
    vm.shell("kill %1 %2 %3; wait; sync; sleep 1");
    assert_eq!(vm.shell("sort -u /tmp/sums | wc -l"), "1", "the disk read differently");
    vm.type_line("poweroff -f");
    assert_eq!(vm.ended().well().report.pauses, u64::from(WARM_UP + count));
}

/// Both processors busy, one disk read and checked, another written and flushed.
fn load(vm: &mut Vm<'_>) {
    let jobs = [
        "while :; do :; done",
        "while :; do echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/vda >>/tmp/sums; done",
        "while :; do dd if=/dev/zero of=/dev/vdb bs=64k conv=fsync; done >/dev/null 2>&1",
    ];
    for job in jobs {
        vm.shell(&format!("{{ {job} & }}"));
    }
}

/// A paused guest does nothing; a resumed one goes on.
fn pause_and_resume(vm: &Vm<'_>) {
    vm.tell("pause", &[]);
    let paused = vm.status();
    assert_eq!(paused.state, RunState::Paused);
    thread::sleep(Duration::from_millis(100));
    vm.stood_since(&paused);
    vm.tell("resume", &[]);
    vm.wait_until("resumed", |status| status.guest_cpu_seconds > paused.guest_cpu_seconds + 0.1);
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn a_daemon_is_killed_often() {
    crate::host_killed::killed(times(100, 20));
}

/// The thread of the last question ends a moment after its answer.
fn settled(vm: &Vm<'_>, before: Usage) -> Usage {
    let deadline = deadline();
    loop {
        let usage = Usage::of(vm.pid());
        let same = (usage.threads, usage.descriptors) == (before.threads, before.descriptors);
        if same || Instant::now() > deadline {
            return usage;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn many_vms_at_once_come_and_go() {
    let sandbox = Sandbox::new();
    let names: Vec<String> = (0..times(8, 3)).map(|number| format!("vm{number}")).collect();
    let start = |name: &String| {
        Guest::new("fathom.run=boot fathom.end=stay").beside_others(name).start(&sandbox)
    };
    let mut vms: Vec<Vm<'_>> = names.iter().map(start).collect();
    for vm in &mut vms {
        vm.console.event("end");
    }
    assert_eq!(listed(&sandbox), names.iter().cloned().collect());
    for verb in ["pause", "resume"] {
        thread::scope(|scope| {
            for vm in &vms {
                scope.spawn(|| vm.tell(verb, &[]));
            }
        });
    }
    assert!(vms.iter().all(|vm| vm.status().state == RunState::Running));

    // What a process that was killed leaves does not stand in the way of the next.
    vms.pop().expect("a VM").kill();
    let last = names.last().expect("a name");
    assert!(!listed(&sandbox).contains(last));
    vms.push(start(last));
    for vm in vms {
        vm.tell("stop", &[]);
        vm.ended().stopped();
    }
    nothing_is_left(&sandbox);
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn starts_and_stops_by_command_leave_nothing() {
    let sandbox = Sandbox::new();
    for cycle in 0..times(200, 10) {
        let words = "earlyprintk=ttyS0 loglevel=7 fathom.modules=none fathom.end=stay";
        let mut vm = Guest::new(words).cpus(1 + cycle % 2).start(&sandbox);
        vm.console.wait_for("ACPI: RSDP");
        vm.tell("stop", &[]);
        vm.ended().stopped();
        nothing_is_left(&sandbox);
    }
}

fn listed(sandbox: &Sandbox) -> BTreeSet<String> {
    shown(sandbox, &["list", "--json"]).into_iter().map(|vm| vm.name).collect()
}

/// No VM, no socket, no process that was told of this sandbox.
fn nothing_is_left(sandbox: &Sandbox) {
    assert_eq!(listed(sandbox), BTreeSet::new());
    let files = fs::read_dir(sandbox.path("fathom")).expect("socket directory");
    let sockets: Vec<_> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    assert!(sockets.is_empty(), "{sockets:?}");
    let folder = sandbox.path("").into_os_string().into_encoded_bytes();
    let processes: Vec<_> = fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| line.windows(folder.len()).any(|window| window == folder))
        .collect();
    assert!(processes.is_empty(), "{processes:?}");
}
