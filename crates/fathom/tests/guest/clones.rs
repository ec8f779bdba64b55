//! Guests that fork: they go on from where they were cloned, each by itself, and so does their parent.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::console::deadline;
use crate::engine::announce;
use crate::kit::{self, Kernel};
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm, shown};

const MIB: u64 = 1 << 20;

/// Checks a file in memory for as long as it runs, and says on the console who it is and what it found. Whoever has
/// another random number than what it was told before, says so: clones have one each.
const WORK: &str = "head -c16m /dev/urandom >/tmp/file; md5sum </tmp/file >/tmp/sum; \
    head -c16 /dev/urandom | md5sum >/tmp/nonce";
const CHECK: &str = "{ while :; do head -c1m /dev/urandom >/tmp/own; cp /tmp/file /tmp/copy; \
    md5sum </tmp/copy | cmp - /tmp/sum && echo round $(cat /tmp/nonce) $(md5sum </tmp/own) >/dev/console || \
    echo WR''ONG >/dev/console; done & }";

/// Ends what a test has left running, however it ends: clones are nobody's children.
pub(crate) struct Clones<'a>(pub(crate) &'a Sandbox);

impl Drop for Clones<'_> {
    fn drop(&mut self) {
        let listed = self.0.fathom(&["list", "--json"]).stdout;
        let listed: Value = serde_json::from_slice(&listed).unwrap_or_default();
        for vm in listed.as_array().into_iter().flatten() {
            self.0.fathom(&["stop", vm["name"].as_str().unwrap_or_default()]);
        }
    }
}

fn clone(sandbox: &Sandbox, vm: &Vm<'_>, arguments: &[&str]) -> Value {
    let folder = output(sandbox);
    let said = vm.tell("clone", &[&["--json", "--output", &folder], arguments].concat());
    announce(&format!("clone: {}", &said[..said.find("\"clones\"").unwrap_or(0)]));
    serde_json::from_str(&said).expect("json")
}

/// Where clones print to.
pub(crate) fn output(sandbox: &Sandbox) -> String {
    let folder = sandbox.path("output");
    fs::create_dir_all(&folder).expect("a folder");
    folder.to_str().expect("text").to_owned()
}

pub(crate) fn names(done: &Value) -> Vec<String> {
    let clones = done["clones"].as_array().expect("clones").iter();
    clones.map(|clone| clone["name"].as_str().expect("a name").to_owned()).collect()
}

/// What a clone has printed, once there are so many lines that begin like that.
pub(crate) fn lines(sandbox: &Sandbox, name: &str, beginning: &str, count: usize) -> Vec<String> {
    let until = deadline();
    let path = sandbox.path("output").join(format!("{name}.console"));
    loop {
        let console = fs::read_to_string(&path).unwrap_or_default();
        let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<String> = whole
            .lines()
            .filter_map(|line| line.trim_end().strip_prefix(beginning).map(str::to_owned))
            .collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < until, "{name} printed:\n{console}");
        thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn clones_of_a_busy_guest_go_on_and_differ() {
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let mut vm = Guest::new("fathom.run=sh").kernel(Kernel::Full).start(&sandbox);
    vm.wait_for_shell();
    vm.shell(WORK);
    let nonce = vm.shell("cut -c1-32 /tmp/nonce");
    vm.tell("balloon", &["32M"]);
    vm.wait_until("inflated", |status| status.ballooned_bytes == 32 * MIB);
    vm.shell(CHECK);
    let count = if processor::in_lab() { 2 } else { 4 };
    let first = clone(&sandbox, &vm, &["--count", &count.to_string()]);
    assert_eq!(first["copied_bytes"], 0, "{first}");
    let expected: Vec<String> = (1..=count).map(|number| format!("guest-{number}")).collect();
    assert_eq!(names(&first), expected);
    // Over an image already, and it goes on writing.
    vm.console.wait_for("round ");
    let second = clone(&sandbox, &vm, &["--name", "later"]);
    assert!(second["copied_bytes"].as_u64() > Some(MIB), "{second}");
    let all: Vec<String> = names(&first).into_iter().chain(names(&second)).collect();
    let rounds = if processor::in_lab() { 2 } else { 4 };
    let mut drawn = BTreeSet::new();
    for name in &all {
        let lines = lines(&sandbox, name, "round ", rounds);
        assert!(lines.iter().all(|line| line.starts_with(&nonce)), "{name} is another: {lines:?}");
        // Beyond the one that may have been drawn before.
        drawn.extend(lines[1..rounds].iter().map(|line| line[nonce.len()..].to_owned()));
    }
    assert_eq!(drawn.len(), all.len() * (rounds - 1), "the same random numbers twice");
    (0..rounds).for_each(|_| drop(vm.console.wait_for(&format!("round {nonce}"))));
    assert!(!vm.console.so_far().contains("WRONG"));
    let listed = shown(&sandbox, &["list", "--json"]);
    assert_eq!(listed.len(), all.len() + 1, "{listed:?}");
    for name in &all {
        let output = sandbox.path("output");
        let console = fs::read_to_string(output.join(format!("{name}.console"))).expect("printed");
        assert!(!console.contains("WRONG"), "{name}:\n{console}");
        let log = fs::read_to_string(output.join(format!("{name}.log"))).expect("a log");
        assert_eq!(log.lines().count(), 1, "{name}:\n{log}");
        let status = listed.iter().find(|vm| &vm.name == name).expect("listed");
        assert_eq!(status.ballooned_bytes, 32 * MIB, "{name}");
    }
    // A clone is a VM like any other: it can be cloned, and outlives who it is of.
    let grandchild: Value = serde_json::from_str(&sandbox.success(&[
        "clone",
        "later",
        "--json",
        "--name",
        "last",
        "--output",
        sandbox.path("output").to_str().expect("text"),
    ]))
    .expect("json");
    assert_eq!(names(&grandchild), ["last"]);
    vm.tell("stop", &[]);
    vm.ended().stopped();
    for name in &all {
        sandbox.success(&["stop", name]);
    }
    assert!(lines(&sandbox, "last", "round ", rounds)[rounds - 1].starts_with(&nonce));
    sandbox.success(&["stop", "last"]);
}

/// Each has an overlay of its own: a copy of the parent's, as it was.
/// From a snapshot, as often as one wants; one of them is cloned in turn.
#[test]
fn a_snapshot_is_activated_many_times() {
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let mut vm = Guest::new("fathom.run=sh").start(&sandbox);
    vm.wait_for_shell();
    vm.shell(WORK);
    let nonce = vm.shell("cut -c1-32 /tmp/nonce");
    vm.shell(CHECK);
    let path = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    let (packed, plain) = (path("packed"), path("plain"));
    vm.tell("save", &[&packed, "--compress", "lz4", "--watch", "0"]);
    vm.tell("save", &[&plain, "--stop"]);
    let folder = output(&sandbox);
    // Of what cannot be mapped there is a copy: as a path, and in a store.
    for (packed, name) in [(packed.clone(), "packed"), (format!("file://{packed}"), "stored")] {
        let one = ["activate", &packed, "--name", name, "--output", &folder];
        sandbox.success(&one);
        let lines = lines(&sandbox, name, "round ", 2);
        assert!(lines.iter().all(|line| line.starts_with(&nonce)), "{name} is another: {lines:?}");
        sandbox.success(&["stop", name]);
    }
    let activate = ["activate", &plain, "--count", "2", "--json", "--output", &folder];
    let done: Value = serde_json::from_str(&sandbox.success(&activate)).expect("json");
    assert_eq!(names(&done), ["guest-1", "guest-2"]);
    sandbox.success(&["clone", "guest-1", "--name", "again", "--output", &folder]);
    for name in ["guest-1", "guest-2", "again"] {
        let lines = lines(&sandbox, name, "round ", 2);
        assert!(lines.iter().all(|line| line.starts_with(&nonce)), "{name} is another: {lines:?}");
        let console = fs::read_to_string(format!("{folder}/{name}.console")).expect("printed");
        assert!(!console.contains("WRONG"), "{name}:\n{console}");
        sandbox.success(&["stop", name]);
    }
    // They have written nothing to it; and what is not as it was saved is not started.
    sandbox.success(&["activate", &plain, "--paused"]);
    sandbox.success(&["stop", "guest-1"]);
    let memory = sandbox.path("plain").join("memory");
    let mut bytes = fs::read(&memory).expect("the image");
    let at = bytes.iter().position(|&byte| byte == 0x5a).expect("some byte");
    bytes[at] ^= 1;
    fs::write(&memory, bytes).expect("written");
    let refused = sandbox.refusal(2, &["activate", &plain]);
    assert!(refused.contains("checksum of a frame"), "{refused}");
    assert_eq!(sandbox.success(&["list", "--json"]), "[]\n");
}

#[test]
fn clones_have_disks_of_their_own() {
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let overlay = sandbox.path("changes");
    let disk = format!("{},overlay={}", kit::disk_image(), overlay.display());
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    vm.shell("mkdir /mnt; mount -t ext4 /dev/vda /mnt && echo before >/mnt/file && sync");
    vm.shell(
        "{ while :; do sleep 1; cat /mnt/file >/dev/console; \
              echo own $(cat /proc/sys/kernel/random/uuid) >>/mnt/file; sync; done & }",
    );
    let done = clone(&sandbox, &vm, &["--count", "2"]);
    for name in names(&done) {
        assert!(sandbox.path(&format!("changes.{name}")).is_file());
        assert!(!lines(&sandbox, &name, "before", 3).is_empty());
        assert!(!lines(&sandbox, &name, "own ", 6).is_empty());
        sandbox.success(&["stop", &name]);
    }
    assert_eq!(vm.shell("head -1 /mnt/file"), "before");
    // Parent and clones run: it was resumed once its overlay was copied.
    vm.console.wait_for("own ");
    let taken = sandbox.refusal(1, &["clone", "guest", "--count", "2"]);
    assert!(taken.contains("changes.guest-1: File exists"), "{taken}");
    vm.shell("true");
    vm.tell("stop", &[]);
    vm.ended().stopped();
}

#[test]
fn what_a_clone_cannot_have_is_refused() {
    let sandbox = Sandbox::new();
    let disk = sandbox.file("disk", &vec![0; 1 << 20]);
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    let refused = sandbox.refusal(1, &["clone", "guest"]);
    assert!(refused.contains("run the VM with --disk"), "{refused}");
    let refused = sandbox.refusal(2, &["clone", "guest", "--count", "0"]);
    assert!(refused.contains("write 1 to"), "{refused}");
    vm.shell("true");
    vm.tell("stop", &[]);
    vm.ended().stopped();
}
