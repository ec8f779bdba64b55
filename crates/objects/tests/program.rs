//! `fathom-store serve`, as `fathom restore` starts it, and what it does when the process that answers is killed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memory::{Frame, FrameRange, RamLayout};
use remote::Remote;
use rustix::process::{Pid, Signal};
use snapshot::{Description, Left, Options, Snapshot, Time, Writer};

const FRAMES: u32 = 4096;

fn save(path: &Path, byte: u8) {
    let layout = RamLayout::new(u64::from(FRAMES) * 4096).expect("a layout");
    let writer = Writer::create(path, Options::new(layout)).expect("begun");
    let mut lane = writer.lane().expect("a lane");
    for frame in 0..FRAMES / 2 {
        let mut contents = [byte; 4096];
        contents[..4].copy_from_slice(&frame.to_le_bytes());
        lane.write(Frame(frame), &contents).expect("written");
    }
    lane.finish().expect("finished");
    let rest = FrameRange { first: Frame(FRAMES / 2), count: FRAMES / 2 };
    writer.leave(rest, Left::Free).expect("left");
    let vm = Description {
        saved_at: Time { seconds: 0, nanoseconds: 0 },
        writer: "test".into(),
        engine: "none".into(),
        cpu: Default::default(),
        vcpus: 1,
        machine_version: 1,
        disks: Vec::new(),
        generation: None,
        agent: false,
    };
    writer.finish(vm, b"{}", &[]).expect("whole");
}

/// Reads the snapshot at `path` by the program.
fn served(path: &Path) -> (Child, Snapshot) {
    let (near, far) = remote::pair().expect("a pair");
    let url = format!("file://{}", path.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_fathom-store"));
    let store = command.args(["serve", &url]).stdin(far).stderr(Stdio::null()).spawn();
    // The other end is theirs only.
    drop(command);
    let snapshot = Snapshot::open_store(Box::new(Remote::new(near, url)));
    (store.expect("the program runs"), snapshot.expect("a snapshot"))
}

/// Who was started by the process `of`.
fn child(of: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

/// Kills who answers, and waits until somebody else does.
fn kill(store: &Child) {
    let before = child(store.id()).expect("somebody answers");
    rustix::process::kill_process(before, Signal::KILL).expect("killed");
    let deadline = Instant::now() + Duration::from_secs(60);
    while child(store.id()).is_none_or(|now| now == before) {
        assert!(Instant::now() < deadline, "nobody has come in its place");
        thread::sleep(Duration::from_millis(5));
    }
}

fn check(snapshot: &Snapshot, frame: u32, byte: u8) -> Result<(), snapshot::SnapshotError> {
    let mut contents = [0; 4096];
    snapshot.read(Frame(frame), &mut contents)?;
    assert_eq!(contents[..4], frame.to_le_bytes());
    assert!(contents[4..].iter().all(|it| *it == byte));
    Ok(())
}

#[test]
fn another_one_answers_when_it_is_killed() {
    let sandbox = tempfile::tempdir().expect("a folder");
    let path = sandbox.path().join("web");
    save(&path, 7);
    let (mut store, snapshot) = served(&path);
    for (round, frames) in [0..100, 100..600, 600..700, 1500..2048].into_iter().enumerate() {
        // Several ask all the time.
        thread::scope(|scope| {
            for part in 0..3 {
                let (snapshot, frames) = (&snapshot, frames.clone());
                scope.spawn(move || {
                    for frame in frames.filter(|frame| frame % 3 == part) {
                        check(snapshot, frame, 7).expect("read");
                    }
                });
            }
            if round > 0 {
                kill(&store);
            }
        });
    }
    // Another snapshot has got the name meanwhile: who comes next must not answer with its frames.
    fs::remove_dir_all(&path).expect("removed");
    save(&path, 8);
    kill(&store);
    let refused = check(&snapshot, 1000, 7).expect_err("another snapshot").to_string();
    assert!(refused.contains("another snapshot is there now"), "{refused}");
    // It ends with the VM.
    drop(snapshot);
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < deadline, "it has not ended with the VM");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(store.wait().expect("ended").success());
}
