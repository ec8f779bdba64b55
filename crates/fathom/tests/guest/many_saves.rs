//! A guest at work, saved and taken up again and again, each time in a way drawn by lot: how it is saved, how stored, how
//! its memory comes back, or by a clone that goes on in its place.
//!
//! `FATHOM_SEED` draws the same again; the seed is printed.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::console::{deadline, patience};
use crate::engine::{self, Engine, announce};
use crate::kit;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::soak;
use crate::vm::{Guest, Vm};

const LOAD: &str = include_str!("many_saves/load.py");
const ECHO: u32 = 5000;
const CID: u32 = 42;
/// Connections of one echo: the first may come before the guest has learnt that it moved, and so may one more on a slow
/// host.
const CUT_OFF_MAX: u32 = 20;
/// Snapshots that need one another, at most.
const CHAIN_MAX: usize = 4;
/// The generation, the vCPU's record of kvmclock, and the one of the time of day are not as they were saved.
const CHANGED_MAX: u64 = 3;

#[test]
fn a_guest_at_work_is_saved_in_random_ways() {
    if engine::is_not_yet_on_kvm("saves in random ways") {
        return;
    }
    rounds(if processor::in_lab() { 3 } else { 10 });
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn a_hundred_saves_in_random_ways_leave_nothing() {
    rounds(soak::times(100, 20));
}

/// With the processor that both have. What was shown a processor of its own engine's is refused by the other one where
/// that lacks a part of it.
#[test]
fn a_guest_at_work_goes_to_the_other_engine() {
    if engine::is_long_on_kvm("from one engine to the other, at work") {
        return;
    }
    let engine = Engine::under_test();
    if engine != Engine::Kvm {
        announce("*** NOT TESTED: engines change where there are two: run `cargo xtask lab` ***");
        return;
    }
    let sandbox = Sandbox::new();
    let mut moved = Moved::start(&sandbox, Lots(1), &["--cpu-model", "common"]);
    // And back: it is still shown what it was shown first.
    for next in [engine.other(), engine] {
        let path = moved.new_path();
        let said = moved.vm.tell("save", &[&path, "--stop"]);
        announce(&format!("saved: {}", said.trim_end()));
        moved.vm.begin_again_on(next, &path, &["--engine", next.name()]);
        announce(&format!("it goes on, on engine {next}"));
        moved.is_in_order();
    }
    moved.vm.tell("stop", &[]);
}

#[test]
fn what_the_other_engine_lacks_is_refused() {
    let engine = Engine::under_test();
    if engine != Engine::Kvm {
        announce("*** NOT TESTED: the translator shows no processor that KVM lacks ***");
        return;
    }
    let sandbox = Sandbox::new();
    let mut vm = Guest::new("fathom.run=sh").arguments(&["--cpu-model", "full"]).start(&sandbox);
    vm.wait_for_shell();
    let path = sandbox.path("full").to_str().expect("text").to_owned();
    vm.tell("save", &[&path]);
    let shown = vm.shell("grep -m1 flags /proc/cpuinfo");
    vm.tell("stop", &[]);
    vm.ended().stopped();
    let refused = sandbox.refusal(2, &["restore", &path, "--engine", engine.other().name()]);
    announce(&format!("{refused}; it was shown {shown}"));
    assert!(refused.contains("processor"), "{refused}");
}

fn rounds(count: u32) {
    let seed = std::env::var("FATHOM_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let seed = seed.unwrap_or_else(|| now() as u64);
    announce(&format!("the same again: FATHOM_SEED={seed}"));
    let sandbox = Sandbox::new();
    let mut moved = Moved::start(&sandbox, Lots(seed), &[]);
    for round in 0..count {
        let way = moved.draw();
        announce(&format!("round {round}: {way:?}"));
        moved.go(&way);
        moved.is_in_order();
    }
    moved.vm.type_line("poweroff -f");
    moved.vm.ended().well();
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() % all.len() as u64) as usize]
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }
}

/// How a guest comes into its next process.
#[derive(Debug)]
struct Way {
    /// Before it is saved, a clone takes its place.
    cloned: bool,
    save: Save,
    compress: &'static str,
    incremental: bool,
    /// VMs that have the snapshot's memory in common, the first of which takes its place.
    activated: bool,
    mode: &'static str,
    learn: bool,
    /// Nothing moves between this and the next save, and memory is compared.
    compared: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Save {
    /// It ends when it is kept.
    Stop,
    /// It goes on while it is saved; what it has done since is lost.
    Live,
    /// It goes on when it is saved.
    GoOn,
}

/// A guest that moves, and what is known of it.
struct Moved<'a> {
    sandbox: &'a Sandbox,
    vm: Vm<'a>,
    lots: Lots,
    nonce: String,
    rounds: u64,
    vsock: PathBuf,
    /// Snapshots that are there: each needs the one before it.
    chain: Vec<String>,
    /// Snapshots so far.
    count: u32,
}

impl<'a> Moved<'a> {
    fn start(sandbox: &'a Sandbox, lots: Lots, more: &[&str]) -> Self {
        let mut script = LOAD.as_bytes().to_vec();
        // Empty lines up to the sector's end.
        script.resize(script.len().next_multiple_of(512), b'\n');
        let vsock = sandbox.path("v");
        let device = format!("cid={CID},socket={}", vsock.display());
        let guest = Guest::new("fathom.run=disk:/bin/true fathom.run=sh");
        let guest = guest.disk(format!("{},ro", kit::disk_image()));
        let guest = guest.disk(format!("{},ro", sandbox.file("load.py", &script)));
        let mut vm = guest.arguments(&["--vsock", &device]).arguments(more).start(sandbox);
        vm.wait_for_shell();
        vm.shell("cat /dev/vdb >/disk/tmp/load.py");
        vm.shell("{ chroot /disk python3 /tmp/load.py >/disk/tmp/wrong 2>&1 & }");
        vm.shell("until [ -s /disk/tmp/rounds ] || [ -s /disk/tmp/wrong ]; do sleep 1; done");
        let nonce = vm.shell("head -c16 /dev/urandom | md5sum | tee /tmp/nonce");
        let chain = Vec::new();
        let mut moved = Self { sandbox, vm, lots, nonce, rounds: 0, vsock, chain, count: 0 };
        moved.is_in_order();
        moved
    }

    fn draw(&mut self) -> Way {
        let lots = &mut self.lots;
        let save = lots.one_of(&[Save::Stop, Save::Stop, Save::Live, Save::GoOn]);
        let incremental = !self.chain.is_empty() && self.chain.len() < CHAIN_MAX && lots.one_in(2);
        let compress = lots.one_of(&["none", "lz4", "zstd"]);
        Way {
            cloned: lots.one_in(4),
            save,
            compress,
            incremental,
            activated: compress == "none" && !incremental && lots.one_in(2),
            mode: lots.one_of(&["eager", "lazy", "working-set"]),
            learn: lots.one_in(2),
            compared: save == Save::Stop && lots.one_in(2),
        }
    }

    fn go(&mut self, way: &Way) {
        let mut name = "guest".to_owned();
        if way.cloned {
            let folder = self.sandbox.path("");
            let folder = folder.to_str().expect("text");
            let said = self.vm.tell("clone", &["--name", "c", "--output", folder, "--json"]);
            self.takes_its_place(&said);
            name = "c".to_owned();
        }
        let path = self.save(&name, way);
        if way.activated {
            // Its guest works for a moment, over the snapshot's memory.
            let said = self.sandbox.success(&["activate", &path, "--name", "a", "--json"]);
            self.vsock = vsock_of(&said);
            self.echoes();
            self.chain.clear();
            let again = self.new_path();
            self.sandbox.success(&["save", "a", &again, "--stop"]);
            self.chain.push(again.clone());
            fs::remove_dir_all(&path).expect("removed");
            self.begin(&again, way, &[]);
        } else if way.compared {
            self.begin(&path, way, &["--paused"]);
            let again = self.new_path();
            let said = self.vm.tell("save", &[&again, "--stop", "--incremental", &path, "--json"]);
            let said: Value = serde_json::from_str(&said).expect("json");
            let frames = &said["frames"];
            let changed = frames["stored"].as_u64().expect("a number");
            announce(&format!("saved again before it moved: {frames}"));
            assert!(changed <= CHANGED_MAX, "memory is another: {said}");
            self.chain.push(again.clone());
            self.begin(&again, way, &[]);
        } else {
            self.begin(&path, way, &[]);
        }
    }

    /// A clone runs: its parent ends.
    fn takes_its_place(&mut self, said: &str) {
        self.vsock = vsock_of(said);
        self.echoes();
        self.vm.tell("stop", &[]);
    }

    fn new_path(&mut self) -> String {
        self.count += 1;
        self.sandbox.path(&format!("s{}", self.count)).to_str().expect("text").to_owned()
    }

    /// The VM of that name has ended when this returns.
    fn save(&mut self, name: &str, way: &Way) -> String {
        let parent = self.chain.last().filter(|_| way.incremental).cloned();
        let path = self.new_path();
        let mut arguments = vec!["save", name, &path, "--compress", way.compress];
        if let Some(parent) = &parent {
            arguments.extend(["--incremental", parent]);
        }
        arguments.extend(match way.save {
            Save::Stop => Some("--stop"),
            Save::Live => Some("--live"),
            Save::GoOn => None,
        });
        let said = self.sandbox.success(&arguments);
        announce(&format!("saved: {}", said.trim_end()));
        if way.save != Save::Stop {
            self.sandbox.success(&["stop", name]);
        }
        if parent.is_none() {
            for old in self.chain.drain(..) {
                fs::remove_dir_all(old).expect("removed");
            }
        }
        self.chain.push(path.clone());
        path
    }

    /// With a console that is ours.
    fn begin(&mut self, path: &str, way: &Way, more: &[&str]) {
        let learn = if way.learn { "true" } else { "false" };
        let how = ["--name", "guest", "--mode", way.mode, "--learn", learn];
        self.vm.begin_again(path, &[&how[..], more].concat());
    }

    /// It is the guest that it was, it goes on with its work, found nothing wrong, and answers.
    fn is_in_order(&mut self) {
        assert_eq!(self.vm.shell("cat /tmp/nonce"), self.nonce, "another guest, or a reboot");
        assert_eq!(self.vm.shell("cat /disk/tmp/wrong"), "");
        let before = self.work_done();
        assert!(before >= self.rounds, "{before} rounds, {} before", self.rounds);
        self.echoes();
        let until = deadline();
        while self.work_done() < before + 2 {
            assert!(Instant::now() < until, "it does not work: {before} rounds");
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.vm.shell("cat /disk/tmp/wrong"), "");
        // Of a live save what it does from now on may be lost, but not this.
        self.rounds = before + 2;
    }

    fn work_done(&mut self) -> u64 {
        self.vm.shell("cat /disk/tmp/rounds").parse().expect("a number")
    }

    /// Connects to the guest's echo. Whoever calls before the guest has learnt that it moved, which it is told by an event
    /// of the device (virtio 1.2, 5.10.6.7), is cut off when it does.
    fn call(&self) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(&self.vsock).expect("connected");
        stream.set_read_timeout(Some(patience())).expect("timeout");
        stream.set_write_timeout(Some(patience())).expect("timeout");
        writeln!(stream, "CONNECT {ECHO}").expect("asked");
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            answer.extend(byte);
        }
        assert!(answer.starts_with(b"OK "), "{answer:?}");
        Some(stream)
    }

    /// By vsock, from the host to the guest and back.
    fn echoes(&mut self) {
        let bytes: Vec<u8> = (0..64 << 7).flat_map(|_| self.lots.next().to_le_bytes()).collect();
        for _ in 0..CUT_OFF_MAX {
            let back = self.call().map(|stream| echo(&stream, &bytes)).unwrap_or_default();
            assert!(bytes.starts_with(&back), "other bytes came back");
            if back.len() == bytes.len() {
                return;
            }
            announce(&format!("cut off after {} bytes", back.len()));
            thread::sleep(Duration::from_millis(100));
        }
        panic!("the guest takes no connection");
    }
}

/// What came back, until the end or until it was cut off.
fn echo(stream: &UnixStream, bytes: &[u8]) -> Vec<u8> {
    let mut back = Vec::new();
    let mut takes = stream;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sends = stream;
            let _ = sends.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        });
        let _ = takes.read_to_end(&mut back);
    });
    back
}

/// Where the host connects to the one that `clone` or `activate` has started.
fn vsock_of(said: &str) -> PathBuf {
    let said: Value = serde_json::from_str(said).expect("json");
    said["clones"][0]["vsock"].as_str().expect("a path").into()
}
