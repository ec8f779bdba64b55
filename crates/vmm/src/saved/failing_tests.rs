//! Saves of a running VM in which each read and write fails once, on either side's sockets and on the file system, one
//! save a step, until a step is not met: the error says why in a line, what was at the path is there, and the guest goes on.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use snapshot::testing::Refusing;
use snapshot::{Checksum, Snapshot};

use super::stream::faults::{Faults, How};
use super::{Draft, DraftOptions, Kept, Progress, SaveLanes, SaveOptions, SaveReport, SavedError};
use crate::error::RequestError;
use crate::handle::VmHandle;
use crate::{Outcome, RunState};

#[path = "../../tests/machine/mod.rs"]
mod machine;

use machine::Host;

/// Prints the alphabet for ever: `mov dx, 0x3f8; a: mov al, 'a'; b: out dx, al; inc al; cmp al, 'z' + 1; jne b; jmp a`
const ALPHABET: &[u8] =
    &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'a', 0xee, 0xfe, 0xc0, 0x3c, b'z' + 1, 0x75, 0xf9, 0xeb, 0xf5];
const MEMORY: u64 = 32 << 20;
/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// The sockets of the VM.
    Vm,
    /// Those of who keeps it.
    Keeper,
    /// The file system of who keeps it.
    Files,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    live: bool,
    incremental: bool,
    stop: bool,
}

/// What both sides say.
struct Done {
    sent: Result<SaveReport, RequestError>,
    kept: Result<Kept, SavedError>,
    /// Whether the step was met.
    met: bool,
}

struct Bench {
    host: Host,
    vm: VmHandle,
    /// What the snapshot at the path is.
    old: Checksum,
}

impl Bench {
    fn new() -> Self {
        let host = Host::new();
        let vm = host.start(ALPHABET);
        let bench = Self { host, vm, old: Checksum(0) };
        bench.goes_on();
        let no_way = Way { live: false, incremental: false, stop: false };
        for name in ["parent", "web"] {
            let done = bench.save(name, no_way, Side::Vm, 0, None);
            done.sent.expect("sent");
            done.kept.expect("kept");
        }
        let old = bench.open("web").checksum();
        Self { old, ..bench }
    }

    fn open(&self, name: &str) -> Snapshot {
        let mut snapshot = Snapshot::open(self.host.path(name)).expect("whole");
        snapshot.set_disks(Arc::new(super::images::Images::that_can_be_read(&[])));
        snapshot.verify().expect("all of it");
        snapshot
    }

    /// Prints more of the alphabet.
    fn goes_on(&self) {
        assert_eq!(self.vm.status().state, RunState::Running);
        let length = || fs::metadata(self.host.path("console")).map_or(0, |file| file.len());
        let (before, deadline) = (length(), Instant::now() + PATIENCE);
        while length() < before + 27 {
            assert!(Instant::now() < deadline, "the guest does not go on");
            thread::sleep(Duration::from_micros(500));
        }
    }

    fn save(&self, name: &str, way: Way, side: Side, at: u32, how: Option<How>) -> Done {
        let path = self.host.path(name);
        let parent = way.incremental.then(|| Arc::new(self.open("parent")));
        // Where the VM waits for an answer, the lane that it comes on is the one that fails.
        let lanes = if way.stop { 1 } else { 2 };
        let options = DraftOptions { parent, lanes, ..DraftOptions::default() };
        let refuses = side == Side::Files && how.is_some();
        let files = Refusing::new(if refuses { at } else { u32::MAX }, 1);
        let faults = how.map_or(Faults::default(), |how| Faults::at(at, how));
        let draft = Draft::create_refused(&path, MEMORY, options, &files);
        let (mut draft, sockets) = match draft {
            Ok(draft) => draft,
            Err(error) => {
                let sent = Ok(SaveReport::default());
                return Done { sent, kept: Err(error), met: files.steps() > at };
            }
        };
        let mut lanes = SaveLanes::new(sockets).expect("lanes");
        match side {
            Side::Vm => lanes.plant(&faults),
            Side::Keeper => draft.plant(&faults),
            Side::Files => {}
        }
        let options = SaveOptions { stop: way.stop, live: way.live, ..SaveOptions::default() };
        let (sent, kept) = thread::scope(|scope| {
            // The VM's end is closed when it is done with it.
            let sent = scope.spawn(move || self.vm.save(&lanes, options));
            let kept = draft.keep(&Progress::default());
            (sent.join().expect("no panic"), kept)
        });
        let met = if refuses { files.steps() > at } else { faults.met() };
        Done { sent, kept, met }
    }

    fn names(&self) -> Vec<String> {
        let folder = self.host.path("web");
        let entries = fs::read_dir(folder.parent().expect("a folder")).expect("entries");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.retain(|name| name.contains("web") || name.contains("parent"));
        names.sort();
        names
    }

    /// Each step from `from` on, once, until none is met or the VM has ended as it was to: how many saves failed, and the
    /// next step if there may be one.
    fn every_step(&mut self, way: Way, side: Side, how: How, from: u32) -> (u32, Option<u32>) {
        let mut failed = 0;
        let folder = self.host.path("web");
        let folder = folder.parent().expect("a folder").display().to_string();
        for at in from.. {
            let Done { sent, kept, met } = self.save("web", way, side, at, Some(how));
            let step = format!("{way:?}, {side:?}, {how:?}, step {at}");
            if !met || !how.is_failure() {
                assert!(sent.is_ok(), "{step}: {:?}", sent.err());
            }
            match &kept {
                Ok(_) => {
                    self.old = self.open("web").checksum();
                    // Where the answer was lost, the VM does not end: its snapshot is one of a past.
                    assert!(!way.stop || sent.is_ok() || met, "{step}");
                }
                Err(error) => {
                    assert!(met && how.is_failure(), "{step}: {error}");
                    let error = error.to_string();
                    match side {
                        Side::Files => assert!(error.contains(&folder), "{step}: {error}"),
                        Side::Vm | Side::Keeper => says_why(&step, &error),
                    }
                    assert!(!error.contains('\n'), "{step}: {error}");
                    let names = self.names();
                    assert_eq!(names, ["parent", "web"], "{step}");
                }
            }
            failed += u32::from(kept.is_err() || sent.is_err());
            if let Err(error) = &sent {
                says_why(&step, &error.to_string());
            }
            assert_eq!(self.open("web").checksum(), self.old, "{step}: the old one");
            if way.stop && sent.is_ok() && kept.is_ok() {
                assert_eq!(self.vm.wait(), Ok(Outcome::Stopped), "{step}");
                return (failed, met.then_some(at + 1));
            }
            self.goes_on();
            if !met {
                break;
            }
        }
        (failed, None)
    }
}

/// In a line: what failed, or that the other end did.
fn says_why(step: &str, error: &str) {
    let words =
        ["planted", "stopped in the middle", "has not kept it", "roken pipe", "reset by peer"];
    let named = words.iter().any(|word| error.contains(word));
    assert!(named && !error.contains('\n'), "{step}: {error}");
}

/// What was printed all the while is the alphabet.
fn check_console(host: &Host) {
    let text = fs::read(host.path("console")).expect("console");
    let expected: Vec<u8> = (b'a'..=b'z').cycle().take(text.len()).collect();
    assert!(text == expected, "the guest has not gone on where it was");
}

fn all_steps(way: Way) {
    let mut bench = Bench::new();
    for side in [Side::Vm, Side::Keeper] {
        for how in How::ALL {
            let (failed, _) = bench.every_step(way, side, how, 0);
            let least = if how.is_failure() { 10 } else { 0 };
            assert!(failed >= least, "{way:?}, {side:?}, {how:?}: {failed}");
        }
    }
    let (failed, _) = bench.every_step(way, Side::Files, How::Refused, 0);
    assert!(failed > 20, "{way:?}: {failed}");
    bench.vm.stop();
    assert_eq!(bench.vm.wait(), Ok(Outcome::Stopped));
    check_console(&bench.host);
}

#[test]
fn each_step_of_a_save_fails() {
    all_steps(Way { live: false, incremental: false, stop: false });
}

#[test]
fn each_step_of_a_live_save_fails() {
    all_steps(Way { live: true, incremental: false, stop: false });
}

#[test]
fn each_step_of_an_incremental_save_fails() {
    all_steps(Way { live: false, incremental: true, stop: false });
}

/// It ends when it is kept, and not before.
#[test]
fn each_step_of_a_last_save_fails() {
    let way = Way { live: false, incremental: false, stop: true };
    for (side, how) in [
        (Side::Vm, How::Refused),
        (Side::Vm, How::Vanished),
        (Side::Keeper, How::Refused),
        (Side::Keeper, How::Vanished),
        (Side::Files, How::Refused),
    ] {
        let (mut failures, mut next) = (0, Some(0));
        while let Some(from) = next {
            let mut bench = Bench::new();
            let (failed, rest) = bench.every_step(way, side, how, from);
            (failures, next) = (failures + failed, rest);
            check_console(&bench.host);
        }
        assert!(failures >= 10, "{side:?}, {how:?}: {failures}");
    }
}

/// A lane that is no lane: the test's own tools refuse what they are told to.
#[test]
fn faults_are_met_at_their_step() {
    use std::io::Write;
    let (near, _far) = UnixStream::pair().expect("sockets");
    let mut stream = super::stream::Stream::from(near);
    stream.faults = Faults::at(1, How::Refused);
    let write = || (&stream).write(&[1; 8]);
    assert_eq!(write().expect("step 0"), 8);
    assert!(!stream.faults.met());
    assert_eq!(write().expect_err("step 1").kind(), io::ErrorKind::Other);
    assert!(stream.faults.met() && write().is_ok());
}
