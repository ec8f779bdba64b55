//! Guests whose memory comes from where it can fail: a store behind a network, a file that is damaged, a disk that is full.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::console::deadline;
use crate::engine::{self, announce};
use crate::processor;
use crate::s3::{BUCKET, S3};
use crate::sandbox::{Sandbox, text};
use crate::vm::{Guest, Vm};

const MIB: u64 = 1 << 20;

/// A guest with a file of noise in its memory; answers what only it knows, and the file's sum.
fn guest<'a>(sandbox: &'a Sandbox, mebibytes: u32) -> (Vm<'a>, String, String) {
    let mut vm = Guest::new("fathom.run=sh").start(sandbox);
    vm.wait_for_shell();
    let nonce = vm.shell("head -c16 /dev/urandom | md5sum | tee /tmp/nonce");
    let noise = format!("head -c{mebibytes}m /dev/urandom >/tmp/file; md5sum </tmp/file");
    let sum = vm.shell(&noise);
    (vm, nonce, sum)
}

/// Of noise: more than any limit here.
fn large() -> u32 {
    if processor::in_lab() { 32 } else { 64 }
}

fn is_the_same(vm: &mut Vm<'_>, nonce: &str, sum: &str) {
    assert_eq!(vm.shell("cat /tmp/nonce"), nonce);
    assert_eq!(vm.shell("md5sum </tmp/file"), sum);
}

/// From each store, in each mode; what is learnt is written back, and the VM's process has no keys.
#[test]
fn a_guest_comes_from_a_store_in_every_mode() {
    // It has passed once there, in two and a half minutes.
    if engine::is_not_yet_on_kvm("object stores") {
        return;
    }
    let sandbox = Sandbox::new();
    let s3 = S3::start(&sandbox.path("s3"));
    sandbox.set(&s3.environment());
    fs::create_dir(sandbox.path("folder")).expect("made");
    let path = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    let (mut vm, nonce, sum) = guest(&sandbox, 32);
    vm.tell("save", &[&path("parent")]);
    vm.shell("head -c4m /dev/urandom >/tmp/more");
    let more = vm.shell("md5sum </tmp/more");
    vm.tell("save", &[&path("child"), "--incremental", &path("parent"), "--compress", "zstd"]);
    vm.tell("stop", &[]);
    let stores = [format!("s3://{BUCKET}/vms"), format!("file://{}", path("folder"))];
    for store in &stores {
        for name in ["parent", "child"] {
            sandbox.success(&["push", &path(name), &format!("{store}/{name}")]);
        }
    }
    let [in_s3, in_folder] = stores.map(|store| move |name: &str| format!("{store}/{name}"));
    let all = [
        (path("parent"), "lazy"),
        (in_s3("parent"), "lazy"),
        (in_s3("child"), "working-set"),
        (in_folder("child"), "eager"),
        (in_s3("parent"), "working-set"),
        (in_s3("child"), "lazy"),
        (in_s3("child"), "eager"),
        (in_folder("parent"), "lazy"),
        (in_folder("child"), "working-set"),
    ];
    // Each takes half a minute there.
    let count = if processor::in_lab() { 4 } else { all.len() };
    for (from, mode) in all.into_iter().take(count) {
        let (sent, begun) = (s3.sent(), Instant::now());
        vm.begin_again(&from, &["--mode", mode]);
        let environment = fs::read(format!("/proc/{}/environ", vm.pid())).expect("environment");
        // It has the ones of the test where it needs none.
        assert!(!from.contains("://") || !text(&environment).contains("AWS_"));
        vm.shell("echo");
        let responded = begun.elapsed();
        is_the_same(&mut vm, &nonce, &sum);
        if from.ends_with("child") {
            assert_eq!(vm.shell("md5sum </tmp/more"), more);
        }
        // What is learnt is made of the snapshot, which is read again for that.
        let sent = s3.sent() - sent;
        vm.tell("stop", &[]);
        let restore = vm.report_of_a_restore();
        assert_eq!(restore.working_set_frames > 0, mode == "working-set");
        announce(&format!(
            "{from}, {mode}: first instruction after {:.1} ms, an answer of the shell after {:.0} ms, {} KiB of {} read came from S3",
            restore.first_instruction_seconds * 1e3,
            responded.as_secs_f64() * 1e3,
            sent >> 10,
            restore.bytes_read >> 10,
        ));
    }
    // What was seen before the save was little; the file was read after each restore.
    // It is kept after the VM has ended.
    let deadline = deadline();
    let learnt = loop {
        let parts = fs::read_dir(sandbox.path("s3").join(BUCKET).join("vms/parent"));
        let parts = parts.expect("a folder").flatten();
        let sets = parts.filter_map(|part| fs::metadata(part.path().join("working-set")).ok());
        let learnt: u64 = sets.map(|set| set.len()).sum();
        if learnt > 32 * MIB || Instant::now() > deadline {
            break learnt;
        }
        thread::sleep(Duration::from_millis(100));
    };
    let before = fs::metadata(sandbox.path("parent").join("working-set"));
    announce(&format!("working set: {learnt} bytes learnt, {:?} here", before.map(|it| it.len())));
    assert!(learnt > 32 * MIB, "{learnt}");
}

/// The same [`guest`], saved, ended, and in a store at `url`.
fn pushed<'a>(sandbox: &'a Sandbox, mebibytes: u32, url: &str) -> (S3, Vm<'a>, String, String) {
    let s3 = S3::start(&sandbox.path("s3"));
    sandbox.set(&s3.environment());
    let path = sandbox.path("saved").to_str().expect("text").to_owned();
    let (vm, nonce, sum) = guest(sandbox, mebibytes);
    vm.tell("save", &[&path, "--stop"]);
    sandbox.success(&["push", &path, url]);
    (s3, vm, nonce, sum)
}

/// A server that dies in the middle of an answer, and one that says nothing: the guest stands, and goes on.
#[test]
fn a_store_that_dies_or_stalls_leaves_the_guest_standing() {
    // It has passed once there, in a minute; once the push before it timed out, beside many builds.
    if engine::is_not_yet_on_kvm("a store that dies") {
        return;
    }
    let sandbox = Sandbox::new();
    let url = format!("s3://{BUCKET}/web");
    let (s3, mut vm, nonce, sum) = pushed(&sandbox, large(), &url);
    for mode in ["lazy", "working-set"] {
        // Enough for it to run, and less than its file.
        s3.kill_after(24 * MIB);
        vm.begin_again(&url, &["--mode", mode, "--learn", "false"]);
        vm.type_line("md5sum </tmp/file");
        let status = vm.wait_until("short of memory", |status| status.waits_for.is_some());
        let reason = status.waits_for.expect("a reason");
        announce(&format!("{mode}, dead: {reason}"));
        assert!(reason.contains(&url), "{reason}");
        // Whoever stands can be paused, and stays so when the store is back.
        vm.tell("pause", &[]);
        s3.start_again();
        vm.tell("resume", &[]);
        vm.console.wait_for(&sum);
        is_the_same(&mut vm, &nonce, &sum);
        vm.tell("stop", &[]);
    }
    s3.kill_after(24 * MIB);
    vm.begin_again(&url, &["--mode", "lazy", "--learn", "false"]);
    vm.type_line("md5sum </tmp/file");
    vm.wait_until("short of memory", |status| status.waits_for.is_some());
    s3.stall(true);
    s3.start_again();
    let status = vm.wait_until("told that there is no answer", |status| {
        status.waits_for.as_ref().is_some_and(|reason| reason.contains("no answer"))
    });
    announce(&format!("silent: {}", status.waits_for.unwrap_or_default()));
    s3.stall(false);
    vm.console.wait_for(&sum);
    is_the_same(&mut vm, &nonce, &sum);
    vm.type_line("poweroff -f");
    vm.ended().well();
}

/// The process that reads the store for `url`, which somebody else holds in case it dies.
fn who_answers(url: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let is_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        words.next() == Some(b"answer") && words.next() == Some(url.as_bytes())
    };
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Pid::from_raw(pids.find(is_it)?)
}

/// Kills it.
fn kill_who_answers(url: &str) -> Pid {
    let pid = who_answers(url).expect("somebody answers");
    kill_process(pid, Signal::KILL).expect("killed");
    pid
}

/// The process that reads the store is killed, at work and with questions that it has not answered: the next one answers.
#[test]
fn the_process_that_reads_a_store_is_killed_and_the_guest_goes_on() {
    // It has passed once there, in two and a half minutes.
    if engine::is_not_yet_on_kvm("a process that reads a store and dies") {
        return;
    }
    let sandbox = Sandbox::new();
    // No other test's.
    let url = format!("s3://{BUCKET}/killed-{}", std::process::id());
    let (s3, mut vm, nonce, sum) = pushed(&sandbox, 64, &url);
    for mode in ["lazy", "working-set"] {
        let sent = s3.sent();
        vm.begin_again(&url, &["--mode", mode, "--learn", "false"]);
        vm.type_line("md5sum </tmp/file");
        let mut killed = Vec::new();
        for mebibytes in [16, 32, 48] {
            while s3.sent() - sent < mebibytes * MIB {
                thread::sleep(Duration::from_millis(1));
            }
            killed.push(kill_who_answers(&url));
            let deadline = Instant::now() + Duration::from_secs(60);
            while who_answers(&url).is_none_or(|now| killed.contains(&now)) {
                assert!(Instant::now() < deadline, "nobody has come in its place");
                thread::sleep(Duration::from_millis(1));
            }
        }
        vm.console.wait_for(&sum);
        is_the_same(&mut vm, &nonce, &sum);
        announce(&format!("{mode}: killed {}", killed.len()));
        vm.tell("stop", &[]);
    }
    // With questions that wait for the store for sure.
    s3.kill_after(24 * MIB);
    vm.begin_again(&url, &["--mode", "lazy", "--learn", "false"]);
    vm.type_line("md5sum </tmp/file");
    vm.wait_until("short of memory", |status| status.waits_for.is_some());
    s3.stall(true);
    s3.start_again();
    vm.wait_until("told that there is no answer", |status| {
        status.waits_for.as_ref().is_some_and(|reason| reason.contains("no answer"))
    });
    kill_who_answers(&url);
    // It can be paused while nobody answers.
    vm.tell("pause", &[]);
    s3.stall(false);
    vm.tell("resume", &[]);
    vm.console.wait_for(&sum);
    is_the_same(&mut vm, &nonce, &sum);
    vm.type_line("poweroff -f");
    vm.ended().well();
}

/// A snapshot's file that is cut short under a guest, and put back.
#[test]
fn a_file_that_is_cut_short_leaves_the_guest_standing() {
    if engine::is_long_on_kvm("a file cut short") {
        return;
    }
    let sandbox = Sandbox::new();
    let path = sandbox.path("saved").to_str().expect("text").to_owned();
    let (mut vm, nonce, sum) = guest(&sandbox, large());
    vm.tell("save", &[&path, "--stop"]);
    let image = fs::read(sandbox.path("saved").join("memory")).expect("an image");
    vm.begin_again(&path, &["--mode", "lazy", "--learn", "false", "--paused"]);
    let memory = fs::File::options().write(true).open(sandbox.path("saved").join("memory"));
    let memory = memory.expect("an image");
    memory.set_len(0).expect("cut short");
    vm.tell("resume", &[]);
    vm.type_line("md5sum </tmp/file");
    let status = vm.wait_until("short of memory", |status| status.waits_for.is_some());
    let reason = status.waits_for.expect("a reason");
    announce(&reason);
    assert!(reason.contains("saved/memory") && reason.contains("shorter"), "{reason}");
    // From its beginning: what is there is right at any time.
    memory.write_all_at(&image, 0).expect("put back");
    memory.sync_all().expect("put back");
    vm.console.wait_for(&sum);
    is_the_same(&mut vm, &nonce, &sum);
    vm.type_line("poweroff -f");
    vm.ended().well();
}

/// On a disk that is full, and at a limit on the size of files: an error, nothing new, the guest goes on, and what was
/// there is there.
#[test]
fn a_disk_that_is_full_costs_the_snapshot_only() {
    if engine::is_long_on_kvm("a full disk") {
        return;
    }
    let sandbox = Sandbox::new();
    let (mut vm, nonce, sum) = guest(&sandbox, large());
    let full = sandbox.path("full");
    fs::create_dir(&full).expect("a folder");
    let program = sandbox.command(&[]).get_program().to_owned();
    let under = |words: &str, script: &str, arguments: &[&str]| -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{words} {script}"), "sh"]).arg(&program).args(arguments);
        command.env("XDG_RUNTIME_DIR", sandbox.path(".")).env_remove("FATHOM_LOG");
        command.output().expect("a shell")
    };
    let path = full.join("saved").to_str().expect("text").to_owned();
    let old = sandbox.path("old").to_str().expect("text").to_owned();
    vm.tell("save", &[&old]);
    let before = fs::read(sandbox.path("old").join("manifest")).expect("a manifest");
    for more in [&[][..], &["--live"], &["--compress", "lz4"]] {
        // Blocks of 512 bytes.
        let limit = "trap '' XFSZ; ulimit -f 20480;";
        let save = [&["save", "guest", &path], more].concat();
        let failed = under(limit, r#"exec "$@""#, &save);
        let said = text(&failed.stderr);
        announce(said.trim_end());
        // A plain image has its whole length at once, which is refused before the guest is asked anything.
        assert!(matches!(failed.status.code(), Some(1 | 2)) && said.lines().count() == 1, "{said}");
        assert!(said.contains("File too large"), "{said}");
        assert!(fs::read_dir(&full).expect("a folder").next().is_none(), "something is left");
        // A file system of its own, which only this command sees: what it leaves there, it tells itself.
        let mount = format!("mount -t tmpfs -o size=24m none {} || exit 99;", full.display());
        let save = format!(r#"{mount} "$@"; status=$?; ls {}; exit $status"#, full.display());
        let mut command = Command::new("unshare");
        let owner = if rustix::process::getuid().is_root() { "-m" } else { "-rm" };
        command.args([owner, "sh", "-c", &save, "sh"]).arg(&program);
        command.args(["save", "guest", &path]).args(more);
        command.env("XDG_RUNTIME_DIR", sandbox.path(".")).env_remove("FATHOM_LOG");
        let failed = command.output().expect("unshare");
        let said = text(&failed.stderr);
        announce(said.trim_end());
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(said.contains("free some space"), "{said}");
        assert_eq!(text(&failed.stdout), "", "something is left");
        // It is well, and has been told.
        is_the_same(&mut vm, &nonce, &sum);
    }
    let replace = under(
        "trap '' XFSZ; ulimit -f 20480;",
        r#"exec "$@""#,
        &["save", "guest", &old, "--replace"],
    );
    assert!(!replace.status.success(), "{}", text(&replace.stderr));
    assert_eq!(fs::read(sandbox.path("old").join("manifest")).expect("a manifest"), before);
    vm.tell("save", &[&path, "--stop"]);
    vm.begin_again(&path, &[]);
    is_the_same(&mut vm, &nonce, &sum);
    vm.type_line("poweroff -f");
    vm.ended().well();
}
