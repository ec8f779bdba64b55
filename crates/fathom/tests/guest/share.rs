//! Frames that guests have alike are in one page, until one of them writes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use api::VmStatus;

use crate::balance::Daemon;
use crate::console::deadline;
use crate::engine::{announce, is_not_yet_on_kvm};
use crate::process::mib;
use crate::processor;
use crate::reread::{noise, size};
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

/// The part of what is alike that is to be shared, in per cent.
const PART: u64 = 95;

fn guest<'a>(sandbox: &'a Sandbox, name: &str, disk: &str) -> Vm<'a> {
    prepared(Guest::new("fathom.run=sh").beside_others(name).disk(disk.to_owned()).start(sandbox))
}

fn prepared(mut vm: Vm<'_>) -> Vm<'_> {
    vm.wait_for_shell();
    vm.shell("dmesg -n 1");
    // Linux drops what it has of a disk that nobody has open.
    vm.shell("exec 7</dev/vda");
    vm
}

#[test]
fn guests_share_what_they_read_and_a_write_is_ones_own() {
    if is_not_yet_on_kvm("sharing of frames") {
        return;
    }
    let sandbox = Sandbox::new();
    let disk = format!("{},ro", sandbox.file("image", &noise(9)));
    let (mut one, mut other) = (guest(&sandbox, "one", &disk), guest(&sandbox, "other", &disk));
    let right = one.shell("md5sum </dev/vda");
    assert_eq!(other.shell("md5sum </dev/vda"), right);
    let least = size() as u64 * PART / 100;
    let is_shared = |status: &VmStatus| status.shared_bytes >= least;
    let arguments = ["--memory", "4G", "--share"];
    let daemon = Daemon::start_with(&sandbox, &arguments);
    for vm in [&one, &other] {
        let status = vm.wait_until("the image is shared", is_shared);
        let (shared, resident) = (mib(status.shared_bytes), mib(status.resident_bytes));
        announce(&format!("{}: {shared:.1} MiB shared, {resident:.1} of its own", status.name));
    }
    // To read breaks nothing, and what is read is right.
    for vm in [&mut one, &mut other] {
        assert_eq!(vm.shell("md5sum </dev/vda"), right);
        vm.wait_until("shared still", is_shared);
        // Copies, which are the same as what is shared; then others.
        vm.shell("cat </dev/vda >/tmp/file");
    }
    let both = |status: &VmStatus| status.shared_bytes >= 2 * least;
    one.wait_until("the copy is shared, too", both);
    other.wait_until("the copy is shared, too", both);
    one.shell("dd if=/dev/zero of=/tmp/file bs=4k seek=3 count=700 conv=notrunc 2>/dev/null");
    let changed = one.shell("md5sum </tmp/file");
    assert_ne!(changed, right);
    assert_eq!(other.shell("md5sum </tmp/file"), right);
    assert_eq!(
        (one.shell("md5sum </dev/vda"), other.shell("md5sum </dev/vda")),
        (right.clone(), right.clone())
    );

    // Without the daemon it stays as it is, and the next one begins anew.
    daemon.kill();
    assert_eq!(
        (one.shell("md5sum </tmp/file"), other.shell("md5sum </tmp/file")),
        (changed, right.clone())
    );
    let daemon = Daemon::start_with(&sandbox, &arguments);
    let deadline = deadline();
    while !daemon.log().contains(" are saved") {
        assert!(Instant::now() < deadline, "never: shared by the next: {}", daemon.log());
        thread::sleep(Duration::from_millis(200));
    }
    other.wait_until("shared again", both);
    one.tell("stop", &[]);
    one.ended().stopped();
    assert_eq!(other.shell("md5sum </tmp/file"), right);
    daemon.end();
    assert_eq!(other.shell("md5sum </dev/vda"), right);
    other.tell("stop", &[]);
    other.ended().stopped();
}

/// Set for KSM while the test runs, and as it was afterwards.
struct Ksm(Vec<(String, String)>);

impl Ksm {
    /// `None` where this process may not: it takes root, and the setting is the whole host's.
    fn run() -> Option<Self> {
        let mut ksm = Self(Vec::new());
        for (name, value) in [("pages_to_scan", "2000"), ("run", "1")] {
            let path = format!("/sys/kernel/mm/ksm/{name}");
            let before = fs::read_to_string(&path).ok()?;
            fs::write(&path, value).ok()?;
            ksm.0.push((path, before.trim().to_owned()));
        }
        Some(ksm)
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        self.0.iter().rev().for_each(|(path, before)| drop(fs::write(path, before)));
    }
}

/// What the kernel merges is right in each guest, also where it is written, saved while the guest goes on, or taken away.
#[test]
fn on_kvm_the_kernel_merges_what_guests_read() {
    // The setting is the whole host's: only the lab's machine is ours.
    if !processor::in_lab() {
        announce("NOT TESTED outside the lab: pages that the kernel merges");
        return;
    }
    let sandbox = Sandbox::new();
    let disk = format!("{},ro", sandbox.file("image", &noise(9)));
    let guest = |name: &str| {
        let guest = Guest::new("fathom.run=sh").beside_others(name).disk(disk.clone());
        prepared(guest.unwatched().start(&sandbox))
    };
    let (mut one, mut other) = (guest("one"), guest("other"));
    let daemon = Daemon::start_with(&sandbox, &["--memory", "4G", "--share"]);
    let says = |wanted: &str| {
        let deadline = deadline();
        while !daemon.log().contains(wanted) {
            assert!(Instant::now() < deadline, "never: {wanted}: {}", daemon.log());
            thread::sleep(Duration::from_millis(200));
        }
    };
    says("the host's kernel merges no pages: echo 1 | sudo tee /sys/kernel/mm/ksm/run");
    let Some(_ksm) = Ksm::run() else { panic!("the lab's kernel has KSM, and we are its root") };
    says("guests on KVM share by the host's kernel");
    let right = one.shell("md5sum </dev/vda");
    assert_eq!(other.shell("md5sum </dev/vda"), right);
    let least = size() as u64 * PART / 100;
    let is_shared = |status: &VmStatus| status.shared_bytes >= least;
    let is_right = |vm: &mut Vm<'_>| assert_eq!(vm.shell("md5sum </dev/vda"), right);
    for vm in [&one, &other] {
        let status = vm.wait_until("the image is merged", is_shared);
        let (shared, resident) = (mib(status.shared_bytes), mib(status.resident_bytes));
        announce(&format!("{}: {shared:.1} MiB merged, {resident:.1} of its own", status.name));
    }
    is_right(&mut one);
    is_right(&mut other);
    one.shell("cat </dev/vda >/tmp/file");
    other.shell("cat </dev/vda >/tmp/file");
    let copied = |status: &VmStatus| status.shared_bytes >= 2 * least;
    one.wait_until("the copy is merged, too", copied);
    other.wait_until("the copy is merged, too", copied);
    says(" are saved");

    // A write is one's own.
    one.shell("dd if=/dev/zero of=/tmp/file bs=4k seek=3 count=300 conv=notrunc 2>/dev/null");
    let changed = one.shell("md5sum </tmp/file");
    assert_ne!(changed, right);
    assert_eq!(other.shell("md5sum </tmp/file"), right);
    is_right(&mut one);
    is_right(&mut other);

    // Saved while it writes over what was merged: what is saved is of one moment.
    let path = sandbox.path("saved");
    let path = path.to_str().expect("text");
    let writes = "while :; do cat /tmp/file >/tmp/again; done";
    other.shell(&format!("{{ {writes} & }}"));
    announce(other.tell("save", &[path, "--live"]).trim_end());
    assert_eq!(other.shell("md5sum </tmp/file"), right);
    // Taken from it: its memory moves to a file, where nothing is merged.
    one.tell("reclaim", &["32M", "--store", sandbox.path("store").to_str().expect("text")]);
    one.wait_until("it is not merged any more", |status| status.shared_bytes == 0);
    assert_eq!(one.shell("md5sum </tmp/file"), changed);
    is_right(&mut one);
    is_right(&mut other);
    daemon.end();
    one.tell("stop", &[]);
    other.tell("stop", &[]);
    other.begin_again(path, &[]);
    assert_eq!(other.shell("md5sum </tmp/file"), right);
    assert_eq!(other.shell("md5sum </dev/vda"), right);
    other.tell("stop", &[]);
}
