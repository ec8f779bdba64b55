//! The commands against VMs that the test plays.

mod sandbox;

use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::thread;

use api::{KernelInfo, MemoryCurve, VmStatus};
use sandbox::{Sandbox, text};

fn vms(json: &str) -> Vec<VmStatus> {
    serde_json::from_str(json).expect("an array of VMs")
}

#[test]
fn nothing_runs() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.success(&["list"]).lines().count(), 1, "heads only");
    assert_eq!(sandbox.success(&["list", "--json"]), "[]\n");
    assert_eq!(sandbox.success(&["top", "--once", "--json"]), "[]\n");
}

#[test]
fn verbs_reach_the_vm_of_that_name() {
    let sandbox = Sandbox::new();
    let (web, _web_server) = sandbox.fake_vm("web");
    let (db, _db_server) = sandbox.fake_vm("db");
    assert_eq!(sandbox.success(&["pause", "web"]), "");
    assert!(web.paused.load(Ordering::Relaxed) && !db.paused.load(Ordering::Relaxed));
    assert!(sandbox.success(&["list"]).contains("paused"));
    sandbox.success(&["resume", "web"]);
    assert!(!web.paused.load(Ordering::Relaxed));
    sandbox.success(&["balloon", "db", "64M"]);
    assert_eq!(db.balloon_target.load(Ordering::Relaxed), 64 << 20);
    assert_eq!(sandbox.success(&["balloon", "db"]), "0 of 64M\n");
    let line = sandbox.refusal(1, &["balloon", "db", "1G"]);
    assert!(line.contains("VM `db`: more than the guest has"), "{line}");
    let store = sandbox.path("db.swap");
    let store = store.to_str().expect("text");
    let line = sandbox.success(&["reclaim", "db", "64M", "--store", store]);
    assert!(line.starts_with("64M taken; in all 64M written, 0 dropped"), "{line}");
    let request = db.reclaimed.lock().expect("no panic").expect("asked");
    assert_eq!((request.0.bytes, request.1), (64 << 20, true));
    assert!(!sandbox.path("db.swap").exists(), "its space is free when the VM ends");
    std::fs::write(store, "mine").expect("written");
    assert!(sandbox.refusal(2, &["reclaim", "db", "1M", "--store", store]).contains("exists"));
}

#[test]
fn a_save_is_whole_or_leaves_nothing() {
    let sandbox = Sandbox::new();
    let (_web, _server) = sandbox.fake_vm("web");
    let path = sandbox.path("web.snapshot");
    let name = path.to_str().expect("text");
    // It sends what is no machine.
    let line = sandbox.refusal(1, &["save", "web", name]);
    assert!(line.contains("what the VM sends"), "{line}");
    assert!(!path.exists() && !sandbox.path("web.snapshot.new").exists());
    std::fs::write(&path, "mine").expect("written");
    let line = sandbox.refusal(2, &["save", "web", name]);
    assert!(line.contains("name a path where nothing is"), "{line}");
    let line = sandbox.refusal(2, &["save", "web", name, "--replace"]);
    assert!(line.contains("exists and is no snapshot"), "{line}");
    assert_eq!(std::fs::read(&path).expect("still there"), b"mine");
    let line = sandbox.refusal(2, &["save", "web", "child", "--incremental", "/nowhere/parent"]);
    assert!(line.contains("/nowhere/parent"), "{line}");

    let other = sandbox.path("other");
    let other_name = other.to_str().expect("text");
    let line = sandbox.refusal(1, &["save", "db", other_name]);
    assert!(line.contains("no VM `db`"), "{line}");
    assert!(!other.exists() && !sandbox.path("other.new").exists());
    let line = sandbox.refusal(2, &["save", "web", "/nowhere/web"]);
    assert!(line.contains("/nowhere/web"), "{line}");
}

#[test]
fn inspect_shows_what_the_guests_kernel_says() {
    let sandbox = Sandbox::new();
    let (vm, _server) = sandbox.fake_vm("web");
    let shown = sandbox.success(&["inspect", "web"]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines,
        [
            "Linux 6.1.0-9-amd64, moved by 0x1c000000",
            "found by its note at 0x1234000, 150000 symbols",
            "missing: types: BTF unknown: no such symbol",
            "",
            "MEMORY       MIB",
            "free       200.0",
            "anonymous   56.0",
            "all        256.0",
            "",
            "NAME      PID  PAGE TABLE",
            "init        1   0x4567000",
            "kthreadd    2           -",
            "and 4998 more",
        ]
    );
    let json = sandbox.success(&["inspect", "web", "--json"]);
    let kernel: KernelInfo = serde_json::from_str(&json).expect("a kernel");
    assert_eq!((kernel.types, kernel.process_count), (None, 5000));

    let symbol = |name| sandbox.success(&["inspect", "web", "--symbol", name]);
    assert_eq!(symbol("_stext"), "0x8000000000000000 _stext\n");
    assert_eq!(symbol("0x8000000000000010"), "0x8000000000000010 _stext+0x10\n");
    assert_eq!(sandbox.success(&["inspect", "web", "--type", "page.lru"]), "16 bytes at 8\n");
    let line = sandbox.refusal(1, &["inspect", "web", "--symbol", "no/such name"]);
    assert!(line.contains("VM `web`: guest kernel: no symbol `no!such!name`"), "{line}");
    vm.paused.store(true, Ordering::Relaxed);
    let line = sandbox.refusal(1, &["inspect", "web"]);
    assert!(line.contains("VM `web`: no Linux kernel found"), "{line}");
}

#[test]
fn explain_accounts_for_all_of_the_memory() {
    let sandbox = Sandbox::new();
    let (_vm, _server) = sandbox.fake_vm("web");
    let shown = sandbox.success(&["explain", "web"]);
    assert!(shown.starts_with("VM `web` has 256M, of which the host holds 100M.\n"), "{shown}");
    let json = sandbox.success(&["explain", "web", "--json"]);
    let account: serde_json::Value = serde_json::from_str(&json).expect("json");
    let parts = account["parts"].as_array().expect("parts");
    let sum: u64 = parts.iter().filter_map(|part| part["bytes"].as_u64()).sum();
    assert_eq!((sum, account["memory_bytes"].as_u64()), (256 << 20, Some(256 << 20)));
    assert_eq!(account["idle_seconds"], 60);
}

#[test]
fn curve_is_shown_plotted_and_told() {
    let sandbox = Sandbox::new();
    let (_vm, _server) = sandbox.fake_vm("web");
    let shown = sandbox.success(&["curve", "web"]);
    assert!(shown.contains("1.00 |") && shown.contains("The guest has 240M now"), "{shown}");
    let curve: MemoryCurve =
        serde_json::from_str(&sandbox.success(&["curve", "web", "--json"])).expect("json");
    assert_eq!(curve.points.len(), 3);
    let picture = sandbox.path("web.svg");
    let path = picture.to_str().expect("text");
    assert_eq!(sandbox.success(&["curve", "web", "--svg", path]), "");
    assert!(std::fs::read_to_string(picture).expect("picture").contains("polyline"));
    let line = sandbox.refusal(1, &["curve", "web", "--svg", "/nowhere/web.svg"]);
    assert!(line.contains("plot /nowhere/web.svg: "), "{line}");
}

#[test]
fn stop_returns_when_the_name_is_free() {
    let sandbox = Sandbox::new();
    let (vm, server) = sandbox.fake_vm("web");
    let stopped = vm.clone();
    let ending = thread::spawn(move || {
        while !stopped.stopped.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        drop(server);
    });
    sandbox.success(&["stop", "web"]);
    assert!(sandbox.sockets().names().expect("names").is_empty());
    ending.join().expect("thread");
}

#[test]
fn list_shows_every_vm() {
    let sandbox = Sandbox::new();
    let _servers = [sandbox.fake_vm("web"), sandbox.fake_vm("db")];
    let list = vms(&sandbox.success(&["list", "--json"]));
    assert_eq!(list.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["db", "web"]);
    let table = sandbox.success(&["list"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    let web = table.lines().last().expect("line");
    for part in ["web", "running", "translate", "256M", &std::process::id().to_string()] {
        assert!(web.contains(part), "{part}: {web}");
    }
}

#[test]
fn top_once_waits_for_the_first_figures() {
    let sandbox = Sandbox::new();
    let (vm, _server) = sandbox.fake_vm("web");
    let top = vms(&sandbox.success(&["top", "--once", "--json"]));
    assert_eq!(top[0].working_set.window_1s_bytes, Some(30 << 20));
    assert_eq!(vm.questions.load(Ordering::Relaxed), 3);
    let table = sandbox.success(&["top", "--once"]);
    let web = table.lines().last().expect("line");
    for part in ["web", "100M", "30M", "-"] {
        assert!(web.contains(part), "{part}: {web}");
    }
}

#[test]
fn top_streams_json_until_the_reader_leaves() {
    use std::io::{BufRead, BufReader};
    let sandbox = Sandbox::new();
    let (_vm, _server) = sandbox.fake_vm("web");
    let mut command = sandbox.command(&["top", "--json", "--interval", "0.1"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("spawn");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    for _ in 0..3 {
        let line = lines.next().expect("a line").expect("text");
        assert_eq!(vms(&line)[0].name, "web");
    }
    drop(lines);
    assert!(child.wait().expect("wait").success());
}

/// A process that listens and never answers must not hide the others.
#[test]
fn a_silent_vm_is_named_and_the_others_are_shown() {
    let sandbox = Sandbox::new();
    let (_vm, _server) = sandbox.fake_vm("web");
    let claim = sandbox.sockets().claim("hung").expect("claim");
    let _hung = UnixListener::bind(claim.socket_path()).expect("socket");
    let output = sandbox.fathom(&["list", "--json"]);
    assert!(text(&output.stderr).contains("`hung` did not answer"), "{}", text(&output.stderr));
    assert_eq!(vms(&text(&output.stdout)).len(), 1);
}

#[test]
fn doctor_has_an_answer_everywhere() {
    let sandbox = Sandbox::new();
    let json: serde_json::Value =
        serde_json::from_str(&sandbox.success(&["doctor", "--json"])).expect("json");
    let checks = json["checks"].as_array().expect("checks");
    for name in [
        "engine",
        "kvm",
        "userfaultfd",
        "huge pages, transparent",
        "same-page merging",
        "cgroups",
        "seccomp",
        "landlock",
        "memfd",
    ] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
    assert!(sandbox.success(&["doctor"]).contains("userfaultfd"));
}

#[test]
fn help_goes_to_standard_output() {
    let sandbox = Sandbox::new();
    assert!(sandbox.success(&["--help"]).contains("doctor"));
    assert!(sandbox.success(&["run", "--help"]).contains("Example:"));
    assert!(sandbox.success(&["--version"]).starts_with("fathom "));
}
