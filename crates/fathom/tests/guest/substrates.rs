//! Guests that are kept in memory, together, and go on from there as often as one wants.

use std::fs;

use serde_json::Value;

use crate::clones::{Clones, lines, names, output};
use crate::engine::{self, announce};
use crate::kit;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: u64 = 1 << 20;

/// Each has a number that is nowhere but in its memory, and checks a file there for as long as it runs.
const WORK: &str = "head -c2m /dev/urandom >/tmp/file; md5sum </tmp/file >/tmp/sum; \
    head -c16 /dev/urandom | md5sum >/tmp/nonce";
const CHECK: &str = "{ while :; do cp /tmp/file /tmp/copy; sleep 0.2; \
    md5sum </tmp/copy | cmp - /tmp/sum && echo round $(cat /tmp/nonce) >/dev/console || \
    echo WR''ONG >/dev/console; done & }";

fn json(said: &str) -> Value {
    serde_json::from_str(said).expect("json")
}

fn dock(vm: &Vm<'_>, arguments: &[&str]) -> Value {
    let said = vm.tell("dock", &[&["--json"], arguments].concat());
    announce(&format!("dock: {said}"));
    json(&said)
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("{name} of {of}"))
}

fn start<'a>(sandbox: &'a Sandbox, name: &str) -> (Vm<'a>, String) {
    let mut vm = Guest::new("fathom.run=sh").beside_others(name).start(sandbox);
    vm.wait_for_shell();
    vm.shell(WORK);
    let nonce = vm.shell("cut -c1-32 /tmp/nonce");
    vm.shell(CHECK);
    (vm, nonce)
}

/// Starts so many, and sees each go on as who it was.
fn activate(sandbox: &Sandbox, name: &str, count: usize, nonce: &str) {
    let folder = output(sandbox);
    let count = count.to_string();
    let arguments = ["activate", name, "--count", &count, "--json", "--output", &folder];
    let done = json(&sandbox.success(&arguments));
    for name in names(&done) {
        let lines = lines(sandbox, &name, "round ", 3);
        assert!(lines.iter().all(|line| line.starts_with(nonce)), "{name} is another: {lines:?}");
        let console = fs::read_to_string(format!("{folder}/{name}.console")).expect("printed");
        assert!(!console.contains("WRONG"), "{name}:\n{console}");
        sandbox.success(&["stop", &name]);
        fs::remove_file(format!("{folder}/{name}.console")).expect("removed");
    }
}

#[test]
fn guests_of_one_kernel_are_kept_once() {
    if engine::is_long_on_kvm("substrates of one kernel") {
        return;
    }
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let count = if processor::in_lab() { 1 } else { 3 };
    let (web, nonce_of_web) = start(&sandbox, "web");
    let of_web = dock(&web, &[]);
    drop(web);
    let (mut db, nonce_of_db) = start(&sandbox, "db");
    let of_db = dock(&db, &["--as", "base", "--keep-running"]);
    db.console.wait_for(&format!("round {nonce_of_db}"));
    assert!(number(&of_web, "own_bytes") < 100 * MIB, "{of_web}");
    // Beside its own 2 MiB and what it writes all the time, little of it is its own.
    let (own, shared) = (number(&of_db, "own_bytes"), number(&of_db, "shared_bytes"));
    assert!(own < number(&of_web, "own_bytes") / 2 && shared > own, "{of_db}");
    let taken = sandbox.refusal(2, &["dock", "db", "--as", "web"]);
    assert!(taken.contains("is there already"), "{taken}");
    let listed = json(&sandbox.success(&["pool", "--json"]));
    announce(&format!("pool: {listed}"));
    let rows: Vec<&str> = listed["substrates"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["name"].as_str())
        .collect();
    assert_eq!(rows, ["base", "web"]);
    assert!(number(&listed, "together_bytes") + shared / 2 < number(&listed, "apart_bytes"));
    activate(&sandbox, "web", count, &nonce_of_web);
    activate(&sandbox, "base", count, &nonce_of_db);
    // What they have in common goes with the last of them.
    sandbox.success(&["pool", "remove", "web"]);
    let gone = sandbox.refusal(2, &["activate", "web"]);
    assert!(gone.contains("no such substrate"), "{gone}");
    activate(&sandbox, "base", 1, &nonce_of_db);
    // It is a snapshot like any other: it can be restored, added to, and docked again.
    let path = sandbox.path("pool").join("base");
    let path = path.to_str().expect("text");
    let folder = output(&sandbox);
    let console = format!("{folder}/again.console");
    let mut again = sandbox.command(&["restore", path, "--name", "again", "--console", &console]);
    let mut again = again.stderr(std::process::Stdio::null()).spawn().expect("the program runs");
    assert!(
        lines(&sandbox, "again", "round ", 2).iter().all(|line| line.starts_with(&nonce_of_db))
    );
    let child = sandbox.path("child");
    let child = child.to_str().expect("text");
    sandbox.success(&["save", "again", child, "--incremental", path, "--stop"]);
    assert!(again.wait().expect("ended").success());
    let copied = json(&sandbox.success(&["dock", child, "--as", "copy", "--json"]));
    assert!(number(&copied, "shared_bytes") > number(&copied, "own_bytes"), "{copied}");
    sandbox.success(&["pool", "remove", "base"]);
    activate(&sandbox, "copy", 1, &nonce_of_db);
    drop(db);
    // What is damaged is listed, and in nobody's way.
    fs::write(sandbox.path("pool/copy/frames"), "").expect("written");
    let table = sandbox.success(&["pool"]);
    assert!(
        table.lines().any(|line| line.starts_with("copy") && line.ends_with("damaged")),
        "{table}"
    );
    sandbox.success(&["pool", "remove", "copy"]);
    assert_eq!(fs::read_dir(sandbox.path("pool")).expect("a folder").count(), 0);
}

#[test]
fn a_substrate_has_disks_of_its_own() {
    if engine::is_long_on_kvm("disks of substrates") {
        return;
    }
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let overlay = sandbox.path("changes");
    let disk = format!("{},overlay={}", kit::disk_image(), overlay.display());
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    vm.shell("mkdir /mnt; mount -t ext4 /dev/vda /mnt && echo before >/mnt/file && sync");
    vm.shell("find /mnt -xdev -type f | xargs cat | head -c 64m >/dev/null");
    vm.shell(
        "{ while :; do sleep 1; cat /mnt/file >/dev/console; \
              echo own $(cat /proc/sys/kernel/random/uuid) >>/mnt/file; sync; done & }",
    );
    let docked = dock(&vm, &["--keep-running"]);
    assert!(number(&docked, "taken_bytes") > MIB, "its cache of files: {docked}");
    let folder = output(&sandbox);
    let disks = sandbox.path("disks");
    fs::create_dir(&disks).expect("a folder");
    let disks = disks.to_str().expect("text");
    let arguments = ["activate", "guest", "--count", "2", "--json", "--output", &folder];
    let done = json(&sandbox.success(&[&arguments[..], &["--disks", disks]].concat()));
    for name in names(&done) {
        assert!(sandbox.path("disks").join(format!("{name}.guest.disk-0")).is_file());
        assert!(!lines(&sandbox, &name, "before", 3).is_empty());
        assert!(!lines(&sandbox, &name, "own ", 3).is_empty());
        sandbox.success(&["stop", &name]);
    }
    vm.console.wait_for("own ");
    vm.shell("true");
    vm.tell("stop", &[]);
    vm.ended().stopped();
    sandbox.success(&["pool", "remove", "guest"]);
    assert_eq!(fs::read_dir(sandbox.path("pool")).expect("a folder").count(), 0);
}

#[test]
fn what_cannot_be_docked_is_refused_and_goes_on() {
    let sandbox = Sandbox::new();
    let disk = sandbox.file("disk", &vec![0; 1 << 20]);
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    let refused = sandbox.refusal(1, &["dock", "guest"]);
    assert!(refused.contains("run the VM with --disk"), "{refused}");
    assert_eq!(fs::read_dir(sandbox.path("pool")).expect("a folder").count(), 0);
    let refused = sandbox.refusal(2, &["dock", "guest", "--as", "a/b"]);
    assert!(refused.contains("a name has"), "{refused}");
    sandbox.refusal(2, &["dock", "./nothing"]);
    vm.shell("true");
    vm.tell("stop", &[]);
    vm.ended().stopped();
}
