//! Memory that the host takes from guests which do not give it.

use std::fs;
use std::thread;
use std::time::Duration;

use api::{ReclaimStatus, RunState};

use crate::balance::Daemon;
use crate::engine::{announce, is_not_yet_on_kvm};
use crate::kit;
use crate::process::{Resident, mib};
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: u64 = 1 << 20;
/// A file in the guest's memory that nobody else has, half of it random; and what is in it.
fn fill(vm: &mut Vm<'_>) -> String {
    // Two bytes at a time take minutes on a slow host.
    vm.shell("yes | head -c1m >/tmp/block");
    let blocks = "for block in $(seq 32); do cat /tmp/block; done";
    vm.shell(&format!("(head -c32m /dev/urandom; {blocks}) >/tmp/file; rm /tmp/block"));
    hash(vm)
}

fn hash(vm: &mut Vm<'_>) -> String {
    vm.shell("md5sum </tmp/file")
}

fn reclaimed(vm: &Vm<'_>) -> ReclaimStatus {
    vm.status().reclaim.expect("it was asked to")
}

#[test]
fn half_of_a_guests_memory_is_taken_while_it_checks_it() {
    // Half of it goes and comes back right there. Then its guest is too slow: what is asked for five times a second has not come
    // back meanwhile, and there is nothing to take.
    if is_not_yet_on_kvm("memory that the host takes") {
        return;
    }
    let sandbox = Sandbox::new();
    let overlay = sandbox.path("overlay");
    let disk = format!("{},overlay={}", kit::disk_image(), overlay.display());
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    // Clean page cache, while somebody has the disk open.
    vm.shell("exec 3</dev/vda");
    vm.shell("dd if=/dev/vda of=/dev/null bs=1M count=40 2>/dev/null");
    let right = fill(&mut vm);
    let before = Resident::of(vm.pid()).guest;
    let half = before / 2 / MIB * MIB;

    // Idle: it goes, and comes back as it was.
    let store = sandbox.path("store");
    let store = store.to_str().expect("text");
    let size = half.to_string();
    announce(vm.tell("reclaim", &[&size, "--store", store]).trim_end());
    let after = Resident::of(vm.pid()).guest;
    announce(&format!("half is taken: from {:.1} to {:.1} MiB", mib(before), mib(after)));
    assert!(after <= before - half + 8 * MIB, "{after} of {before}");
    let status = reclaimed(&vm);
    assert!(status.written_bytes > 0 && status.disk_bytes >= MIB, "{status:?}");
    assert!(status.store_bytes < status.written_bytes, "half of it is the same word: {status:?}");
    // What it has not used lately went first; now what it needs goes, too.
    vm.tell("reclaim", &[&(56 * MIB).to_string()]);
    assert_eq!(hash(&mut vm), right);
    let status = reclaimed(&vm);
    assert!(status.returned_bytes > 0 && status.prefetched_bytes > 0, "{status:?}");

    // Taken while it is used.
    vm.shell("while [ ! -e /tmp/stop ]; do md5sum </tmp/file; done >/tmp/sums & true");
    for _ in 0..4 {
        vm.tell("reclaim", &[&(32 * MIB).to_string()]);
        thread::sleep(Duration::from_millis(200));
    }
    vm.shell("while [ $(wc -l </tmp/sums) -lt 2 ]; do sleep 1; done; touch /tmp/stop; wait");
    assert_eq!(vm.shell("sort -u /tmp/sums"), right);
    let status = reclaimed(&vm);
    assert!(status.unchanged_bytes > 0, "what came back unchanged needs no writing: {status:?}");

    // More than the store may have: frames stay, and that is said.
    let refused = vm.refusal("reclaim", &[&(200 * MIB).to_string(), "--store-limit", "1M"]);
    assert!(refused.contains("the swap store is full"), "{refused}");
    assert_eq!(hash(&mut vm), right);
    vm.shell("exec 3<&-");
    vm.type_line("poweroff -f");
    vm.ended().well();
    assert!(fs::metadata(sandbox.path("store")).is_err());
}

/// What the daemon lets its only VM have, with what its process takes: less than the guest has.
const LIMIT: &str = "120M";

#[test]
fn a_guest_without_a_balloon_is_kept_within_the_hosts_limit() {
    // Not tried there since the VM's process may answer the faults that come of it.
    if is_not_yet_on_kvm("memory that the host takes") {
        return;
    }
    let sandbox = Sandbox::new();
    let guest = Guest::new("fathom.run=sh").word("module_blacklist=virtio_balloon");
    let mut vm = guest.start(&sandbox);
    vm.wait_for_shell();
    let right = fill(&mut vm);
    let before = Resident::of(vm.pid()).guest;
    assert!(before >= 100 * MIB, "{before}");
    fs::create_dir(sandbox.path("swap")).expect("a folder");
    let swap = sandbox.path("swap");
    let arguments = ["--memory", LIMIT, "--swap", swap.to_str().expect("text")];

    // Killed in the middle, and another goes on where it was.
    let daemon = Daemon::start_with(&sandbox, &arguments);
    vm.wait_until("taken from", |status| {
        status.reclaim.as_ref().is_some_and(|reclaim| reclaim.written_bytes > 0)
    });
    daemon.kill();
    let daemon = Daemon::start_with(&sandbox, &arguments);
    let status = vm.wait_until("within the limit", |status| {
        status.state == RunState::Running && status.resident_bytes <= 104 * MIB
    });
    announce(&format!(
        "without a balloon: {:.1} MiB to {:.1}",
        mib(before),
        mib(status.resident_bytes)
    ));
    assert_eq!(status.ballooned_bytes, 0);
    assert_eq!(hash(&mut vm), right);
    let log = daemon.log();
    assert!(log.contains("are taken: "), "{log}");
    let replayed = sandbox.success(&[
        "balance",
        "--replay",
        sandbox.path("serve.log").to_str().expect("text"),
    ]);
    assert!(replayed.ends_with("decisions come out the same\n"), "{replayed}");
    daemon.end();
    assert_eq!(fs::read_dir(swap).expect("the folder").count(), 0);
    vm.wait_until("running", |status| status.state == RunState::Running);
    assert_eq!(hash(&mut vm), right);
    vm.tell("stop", &[]);
    vm.ended().stopped();
}
