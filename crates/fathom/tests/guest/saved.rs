//! Guests that are saved and go on in another process, under load and many times.

use std::fs;
use std::ops::Range;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::engine::{self, announce};
use crate::kit::Kernel;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: u64 = 1 << 20;
/// As long as a guest sleeps on the disk.
const AWAY: Duration = Duration::from_secs(4);

/// How often a guest is saved and restored.
fn times() -> u32 {
    if processor::in_lab() { 3 } else { 10 }
}

#[test]
fn a_busy_guest_goes_on_in_another_process() {
    let sandbox = Sandbox::new();
    let disk = sandbox.file("disk", &vec![0; 16 << 20]);
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    let nonce = load(&mut vm);
    // What the balloon holds is in nobody's memory, and not in the snapshot.
    vm.tell("balloon", &["64M"]);
    vm.wait_until("inflated", |status| status.ballooned_bytes == 64 * MIB);
    for round in 0..times() {
        let uptime = seconds(&mut vm, "cut -d' ' -f1 /proc/uptime");
        let before = clock_error(&mut vm);
        let away = if round == 0 { AWAY } else { Duration::ZERO };
        vm.go_on_elsewhere(&format!("snapshot{round}"), || thread::sleep(away), &[]);
        let later = seconds(&mut vm, "cut -d' ' -f1 /proc/uptime");
        assert!(later >= uptime + away.as_secs_f64(), "uptime {uptime}, then {later}");
        let after = clock_error(&mut vm);
        let same = after.start <= before.end + 1.0 && before.start <= after.end + 1.0;
        assert!(same, "the guest's clock was {before:?} s ahead, and is {after:?}");
        assert_eq!(vm.shell("cat /tmp/nonce"), nonce, "another guest, or a reboot");
        assert_eq!(vm.status().ballooned_bytes, 64 * MIB);
        fs::remove_dir_all(sandbox.path(&format!("snapshot{round}"))).expect("removed");
    }
    vm.tell("balloon", &["0"]);
    vm.wait_until("deflated", |status| status.ballooned_bytes == 0);
    is_in_order(&mut vm);
    vm.type_line("poweroff -f");
    vm.ended().well();
}

#[test]
fn two_processors_go_on_together() {
    let sandbox = Sandbox::new();
    let disk = sandbox.file("disk", &vec![0; 16 << 20]);
    let mut vm = Guest::new("fathom.run=sh").cpus(2).disk(disk).start(&sandbox);
    vm.wait_for_shell();
    let nonce = load(&mut vm);
    for round in 0..times() / 2 {
        vm.go_on_elsewhere(&format!("snapshot{round}"), || (), &[]);
        assert_eq!(vm.shell("cat /tmp/nonce"), nonce);
    }
    // Neither has lost its timer, and both read the same clock.
    for processor in ["1", "2"] {
        vm.shell(&format!("taskset {processor} sh -c 'sleep 1; date' >/dev/null"));
    }
    let clocks = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    announce(&format!("clock after the restores: {}", vm.shell(&format!("cat {clocks}"))));
    is_in_order(&mut vm);
    vm.type_line("poweroff -f");
    vm.ended().well();
}

/// Linux with CONFIG_VMGENID draws new random numbers; the one of the cloud knows nothing of generations.
#[test]
fn random_numbers_are_new_and_a_snapshot_is_taken_up_twice() {
    let sandbox = Sandbox::new();
    let mut vm = Guest::new("fathom.run=sh").kernel(Kernel::Full).start(&sandbox);
    vm.wait_for_shell();
    let nonce = vm.shell("head -c16 /dev/urandom | md5sum | tee /tmp/nonce");
    let path = sandbox.path("snapshot").to_str().expect("text").to_owned();
    let said = vm.tell("save", &[&path]);
    announce(&format!("save: {}", said.trim_end()));
    // It goes on: it has no disk that it could change.
    assert_eq!(vm.shell("cat /tmp/nonce"), nonce);
    let refused = sandbox.refusal(2, &["save", "guest", &path]);
    assert!(refused.contains("name a path where nothing is"), "{refused}");
    let refused = sandbox.refusal(2, &["restore", &path]);
    assert!(refused.contains("guest"), "its name is taken: {refused}");
    vm.tell("stop", &[]);
    let mut drawn = vec![nonce.clone()];
    for _ in 0..2 {
        vm.begin_again(&path, &[]);
        assert_eq!(vm.shell("cat /tmp/nonce"), nonce);
        drawn.push(vm.shell("head -c16 /dev/urandom | md5sum"));
        let fork = "dmesg | grep -c 'reseeded due to virtual machine fork'";
        assert_eq!(vm.shell(fork), "1", "the generation is told");
        vm.tell("stop", &[]);
    }
    all_memory_is_the_same(&mut vm, &path);
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 3, "the same random numbers twice: {drawn:?}");
}

/// However its memory is written and comes back, the guest finds in it what it left there.
#[test]
fn memory_is_the_same_by_every_way_there_and_back() {
    if engine::is_long_on_kvm("memory by every way there and back") {
        return;
    }
    let sandbox = Sandbox::new();
    let mut vm = Guest::new("fathom.run=sh").start(&sandbox);
    vm.wait_for_shell();
    let nonce = vm.shell("head -c16 /dev/urandom | md5sum | tee /tmp/nonce");
    let sum = vm.shell("head -c16m /dev/urandom >/tmp/file; md5sum </tmp/file");
    // Memory that changes while it is saved, and says so where it does not hang together.
    let writes = "head -c2m /dev/urandom >/tmp/new; md5sum </tmp/new >/tmp/new.sum; \
                  md5sum </tmp/new | cmp -s - /tmp/new.sum || echo torn >>/tmp/torn";
    vm.shell(&format!("{{ while :; do {writes}; done & }}"));
    let path = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    let (plain, parent) = (path("plain"), path("live"));
    for (name, options) in [
        ("plain", vec![]),
        ("lz4", vec!["--compress", "lz4", "--all", "--together"]),
        ("live", vec!["--live"]),
        ("child", vec!["--incremental", &parent, "--compress", "zstd"]),
        ("livechild", vec!["--incremental", &plain, "--live"]),
    ] {
        let said = vm.tell("save", &[&[path(name).as_str()][..], &options].concat());
        announce(&format!("{name}: {}", said.trim_end()));
    }
    vm.tell("stop", &[]);
    for (name, mode) in [
        ("plain", "eager"),
        ("plain", "lazy"),
        ("plain", "working-set"),
        ("lz4", "lazy"),
        ("lz4", "working-set"),
        ("live", "working-set"),
        ("child", "lazy"),
        ("child", "working-set"),
        ("livechild", "eager"),
    ] {
        vm.begin_again(&path(name), &["--mode", mode]);
        assert_eq!(vm.shell("cat /tmp/nonce"), nonce, "{name}, {mode}");
        assert_eq!(vm.shell("md5sum </tmp/file"), sum, "{name}, {mode}");
        assert_eq!(vm.shell("cat /tmp/torn 2>/dev/null; :"), "", "{name}, {mode}");
        vm.tell("stop", &[]);
        let restore = vm.report_of_a_restore();
        assert_eq!(restore.mode, mode);
        assert!(restore.first_instruction_seconds > 0.0 && restore.ttr.len() == 9);
        let api::RestoreFaults { demand, neighbours, .. } = restore.faults;
        announce(&format!(
            "{name}, {mode}: {} ahead, {demand} and {neighbours} when they were needed",
            restore.frames_prefetched
        ));
        assert!(mode != "eager" || demand == 0, "all was there");
        // It was seen before the save, and has been learnt since.
        assert_eq!(restore.working_set_frames > 0, mode == "working-set");
    }
}

/// Taken up, and saved again before the guest moves: its memory is the same but for what tells it that it has moved.
fn all_memory_is_the_same(vm: &mut Vm<'_>, path: &str) {
    vm.begin_again(path, &["--paused"]);
    let again = format!("{path}.again");
    vm.tell("save", &[&again, "--stop"]);
    let image = |path: &str| fs::read(format!("{path}/memory")).expect("an image");
    let (before, after) = (image(path), image(&again));
    assert_eq!(before.len(), after.len());
    let frames = before.chunks_exact(4096).zip(after.chunks_exact(4096));
    let changed: Vec<usize> =
        frames.enumerate().filter(|(_, (a, b))| a != b).map(|(frame, _)| frame).collect();
    announce(&format!("frames that differ: {changed:x?}"));
    // The generation, the vCPU's record of kvmclock, and the one of the time of day.
    assert!(changed.contains(&0xf0) && changed.len() <= 3, "{changed:x?}");
    // For who waits for the end.
    vm.begin_again(&again, &["--paused"]);
    vm.tell("stop", &[]);
}

/// A processor busy with a file in memory, a disk written, flushed and read; what only this guest knows.
fn load(vm: &mut Vm<'_>) -> String {
    vm.shell("head -c16m /dev/urandom >/tmp/file; md5sum </tmp/file >/tmp/sums");
    vm.shell("{ while :; do md5sum </tmp/file >>/tmp/sums; done & }");
    vm.shell("dd if=/tmp/file of=/dev/vda bs=1M conv=fsync 2>/dev/null");
    let disk = "while :; do dd if=/tmp/file of=/dev/vda bs=64k conv=fsync 2>/dev/null; \
                echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda >>/tmp/sums; done";
    vm.shell(&format!("{{ {disk} & }}"));
    vm.shell("head -c16 /dev/urandom | md5sum | tee /tmp/nonce")
}

/// Nothing that was read differed from what it should be.
fn is_in_order(vm: &mut Vm<'_>) {
    vm.shell("kill %1 %2; wait");
    let rounds: u32 = vm.shell("wc -l </tmp/sums").trim().parse().expect("a number");
    announce(&format!("{rounds} sums over memory and disk"));
    assert!(rounds > 4);
    assert_eq!(vm.shell("sort -u /tmp/sums | wc -l"), "1", "memory or disk read differently");
}

fn seconds(vm: &mut Vm<'_>, command: &str) -> f64 {
    vm.shell(command).parse().expect("seconds")
}

/// How far the guest's time of day is ahead of ours: in the lab a command takes seconds.
fn clock_error(vm: &mut Vm<'_>) -> Range<f64> {
    let asked = now();
    let seconds = seconds(vm, "date +%s");
    seconds - now()..seconds + 1.0 - asked
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}
