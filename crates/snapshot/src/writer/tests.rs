//! A host that refuses at each step, once or for ever; and what is in the way of a snapshot.

use std::fs;

use super::*;
use crate::manifest::{Cpu, Time};
pub(super) use crate::testing::Refusing;

pub(super) const FRAMES: u32 = 256;

pub(super) fn layout() -> RamLayout {
    RamLayout::new(u64::from(FRAMES) * 4096).expect("a layout")
}

pub(super) fn vm() -> Description {
    Description {
        saved_at: Time { seconds: 1_700_000_000, nanoseconds: 5 },
        writer: "test".into(),
        engine: "none".into(),
        cpu: Cpu::default(),
        vcpus: 1,
        machine_version: 1,
        disks: Vec::new(),
        generation: None,
        agent: false,
    }
}

/// Refuses nothing, and waits for no disk.
pub(super) fn good() -> Arc<dyn Host> {
    Arc::new(Refusing::new(u32::MAX, 0))
}

/// Saves 100 frames of `byte`; the first 20 are as in `parent`, if there is one.
fn save(
    path: &Path,
    byte: u8,
    compression: Compression,
    parent: Option<Arc<Snapshot>>,
    host: Arc<dyn Host>,
) -> Result<Saved, SnapshotError> {
    let first = if parent.is_some() { 20 } else { 0 };
    let options = Options { compression, parent, ..Options::new(layout()) };
    let writer = Writer::create_on(path, options, host)?;
    let run = |first: u32, count| FrameRange { first: Frame(first), count };
    if first > 0 {
        writer.unchanged(run(0, first))?;
    }
    let mut lane = writer.lane()?;
    for frame in first..100 {
        lane.write(Frame(frame), &[byte; 4096])?;
    }
    lane.finish()?;
    writer.leave(run(100, FRAMES - 100), Left::Zero)?;
    writer.finish(vm(), &[byte; 100], &[Frame(50), Frame(3), Frame(200)])
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn byte_of(path: &Path) -> u8 {
    let snapshot = Snapshot::open(path).expect("whole");
    snapshot.verify().expect("all of it");
    let mut contents = [0; 4096];
    snapshot.read(Frame(60), &mut contents).expect("read");
    assert_eq!(contents, [contents[0]; 4096]);
    contents[0]
}

/// Whatever fails, once: the error names a file, the old snapshot is there, and nothing else.
#[test]
fn a_step_that_fails_leaves_the_old_one_and_nothing_else() {
    for (compression, with_parent) in
        [(Compression::None, false), (Compression::Zstd, false), (Compression::Lz4, true)]
    {
        let mut failures = 0;
        for step in 0.. {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("vm");
            let base = folder.path().join("base");
            save(&base, 1, compression, None, good()).expect("saved");
            save(&path, 2, compression, None, good()).expect("saved");
            let parent = with_parent.then(|| Arc::new(Snapshot::open(&base).expect("whole")));
            let host = Refusing::new(step, 1);
            let done = save(&path, 3, compression, parent, Arc::new(host.clone()));
            if host.steps() <= step {
                assert_eq!((done.expect("no step failed").old, byte_of(&path)), (None, 3));
                break;
            }
            match done {
                Err(error) => {
                    failures += 1;
                    let text = error.to_string();
                    assert!(text.contains(&folder.path().display().to_string()), "{text}");
                    assert_eq!(
                        (byte_of(&path), names(folder.path())),
                        (2, vec!["base".into(), "vm".into()])
                    );
                }
                // The new one has its place; the old one could not be removed.
                Ok(saved) => {
                    assert_eq!(
                        (byte_of(&path), saved.old),
                        (3, Some(folder.path().join("vm.new")))
                    );
                }
            }
        }
        assert!(failures > 40, "{failures}");
    }
}

/// The disk dies at a step and stays dead: what has the name is whole, and the next save cleans up.
#[test]
fn a_dead_host_leaves_a_whole_one_and_the_next_cleans_up() {
    for step in 0.. {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vm");
        save(&path, 2, Compression::Lz4, None, good()).expect("saved");
        let host = Refusing::new(step, u32::MAX);
        let done = save(&path, 3, Compression::Lz4, None, Arc::new(host.clone()));
        if host.steps() <= step {
            done.expect("no step failed");
            break;
        }
        assert!([2, 3].contains(&byte_of(&path)));
        save(&path, 4, Compression::None, None, good()).expect("saved");
        assert_eq!((byte_of(&path), names(folder.path())), (4, vec!["vm".into()]));
    }
}

#[test]
fn a_new_one_that_fails_is_absent() {
    for step in 0.. {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vm");
        let host = Refusing::new(step, 1);
        let done = save(&path, 3, Compression::None, None, Arc::new(host.clone()));
        if host.steps() <= step {
            done.expect("no step failed");
            break;
        }
        done.expect_err("a step failed");
        assert!(names(folder.path()).is_empty(), "{step}: {:?}", names(folder.path()));
    }
}

/// Opening and reading everything: each read that fails is an error, never a panic or wrong contents.
#[test]
fn a_read_that_fails_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, path) = (folder.path().join("base"), folder.path().join("vm"));
    save(&base, 1, Compression::Zstd, None, good()).expect("saved");
    let parent = Some(Arc::new(Snapshot::open(&base).expect("whole")));
    save(&path, 2, Compression::None, parent, good()).expect("saved");
    let mut steps = 0;
    for step in 0.. {
        let host = Refusing::new(step, 1);
        let read = || {
            let snapshot =
                Snapshot::open_store(host.store(&path).map_err(SnapshotError::host("open", "x"))?)?;
            for frame in [3, 60, 120] {
                let mut contents = [0; 4096];
                snapshot.read(Frame(frame), &mut contents)?;
                assert_eq!(contents[9], [1, 2, 0][frame as usize / 60]);
            }
            snapshot.verify()
        };
        let done = read();
        if host.steps() <= step {
            done.expect("no step failed");
            break;
        }
        let error = done.expect_err("a step failed");
        assert!(matches!(error, SnapshotError::Host { .. }), "{error}");
        steps = step;
    }
    assert!(steps > 30, "{steps}");
}

#[test]
fn what_is_no_snapshot_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm");
    let refused = || {
        let error = Writer::create(&path, Options::new(layout())).expect_err("in the way");
        assert!(matches!(error, SnapshotError::Refused { .. }), "{error}");
    };
    fs::write(&path, "mine").expect("written");
    refused();
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    refused();
    fs::write(path.join("manifest"), "").expect("written");
    fs::write(path.join("thesis.tex"), "mine").expect("written");
    refused();
    fs::remove_dir_all(&path).expect("removed");
    let new = folder.path().join("vm.new");
    fs::create_dir(&new).expect("made");
    fs::write(new.join("thesis.tex"), "mine").expect("written");
    refused();
    assert!(new.join("thesis.tex").exists());
    fs::remove_file(new.join("thesis.tex")).expect("removed");
    fs::write(new.join("memory"), "left by a crash").expect("written");
    save(&path, 1, Compression::None, None, good()).expect("saved");
    assert_eq!((byte_of(&path), names(folder.path())), (1, vec!["vm".into()]));
}

#[test]
fn one_save_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm");
    let first = Writer::create(&path, Options::new(layout())).expect("begun");
    let error = Writer::create(&path, Options::new(layout())).expect_err("busy");
    assert!(error.to_string().contains("another process"), "{error}");
    drop(first);
    assert!(names(folder.path()).is_empty());
    drop(Writer::create(&path, Options::new(layout())).expect("begun"));
}

#[test]
fn each_frame_is_told_once_or_there_is_no_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm");
    let begin = || Writer::create(&path, Options::new(layout())).expect("begun");
    let all = FrameRange { first: Frame(0), count: FRAMES };
    let finish = |writer: Writer, why: &str| {
        let error = writer.finish(vm(), b"", &[]).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
        assert!(names(folder.path()).is_empty());
    };

    let writer = begin();
    writer.leave(FrameRange { count: FRAMES - 1, ..all }, Left::Free).expect("left");
    finish(writer, "frame 255: not told");

    let writer = begin();
    writer.leave(all, Left::Free).expect("left");
    let mut lane = writer.lane().expect("a lane");
    lane.write(Frame(9), &[1; 4096]).expect_err("twice");
    drop(lane);
    finish(writer, "after an error");

    let writer = begin();
    writer.leave(FrameRange { first: Frame(1), count: FRAMES }, Left::Zero).expect_err("too many");
    finish(writer, "after an error");

    let writer = begin();
    writer.leave(FrameRange { count: 255, ..all }, Left::Zero).expect("left");
    let mut lane = writer.lane().expect("a lane");
    lane.write(Frame(255), &[1; 4096]).expect("held");
    drop(lane);
    finish(writer, "after an error");

    let writer = begin();
    writer.unchanged(FrameRange { count: 1, ..all }).expect_err("since when");
    let lane = writer.lane().expect("a lane");
    finish(writer, "not finished");
    drop(lane);
}

#[test]
fn a_child_does_not_take_its_parents_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm");
    save(&path, 1, Compression::None, None, good()).expect("saved");
    let parent = Arc::new(Snapshot::open(&path).expect("whole"));
    let error = save(&path, 2, Compression::None, Some(Arc::clone(&parent)), good());
    assert!(matches!(error, Err(SnapshotError::Refused { .. })));
    let larger = RamLayout::new(2 << 20).expect("a layout");
    let options = Options { parent: Some(parent), ..Options::new(larger) };
    let error = Writer::create(folder.path().join("child"), options).expect_err("another size");
    assert!(error.to_string().contains("bytes of guest memory"), "{error}");
    assert_eq!(byte_of(&path), 1);
}

/// A copy from elsewhere: each write that fails leaves the old one and nothing else; each read that fails, too.
#[test]
fn a_copy_is_whole_or_absent() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, child) = (folder.path().join("base"), folder.path().join("child"));
    save(&base, 1, Compression::Lz4, None, good()).expect("saved");
    let parent = Some(Arc::new(Snapshot::open(&base).expect("whole")));
    save(&child, 2, Compression::None, parent, good()).expect("saved");
    for from in [&base, &child] {
        let mut failures = 0;
        for (step, of_reads) in (0..).flat_map(|step| [(step, false), (step, true)]) {
            let place = tempfile::tempdir().expect("a folder");
            // Where the parent is, but for the copy of itself.
            let path = place.path().join("vm");
            save(&path, 9, Compression::None, None, good()).expect("saved");
            let (reads, writes) = (Refusing::new(step, 1), Refusing::new(step, 1));
            let store = if of_reads { reads.store(from) } else { good().store(from) };
            let done = store
                .map_err(SnapshotError::host("open", "it"))
                .and_then(Snapshot::open_store)
                .and_then(|snapshot| {
                    let host: Arc<dyn Host> =
                        if of_reads { good() } else { Arc::new(writes.clone()) };
                    snapshot.copy_on(&path, host, |_| ())
                });
            let steps = if of_reads { reads.steps() } else { writes.steps() };
            let all = |of: &Path| -> Vec<Vec<u8>> {
                names(of).iter().map(|name| fs::read(of.join(name)).expect("a part")).collect()
            };
            match done {
                Ok(None) => {
                    assert_eq!(all(&path), all(from), "the same files, byte by byte");
                    assert_eq!(names(place.path()), ["vm"]);
                }
                Ok(Some(old)) => assert_eq!((all(&path), old.exists()), (all(from), true)),
                Err(error) => {
                    failures += 1;
                    assert!(matches!(error, SnapshotError::Host { .. }), "{error}");
                    assert_eq!((byte_of(&path), names(place.path())), (9, vec!["vm".into()]));
                }
            }
            if steps <= step && of_reads {
                break;
            }
        }
        assert!(failures > 30, "{failures}");
    }
}

#[test]
fn a_working_set_that_is_made_is_the_one_that_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm");
    for compression in [Compression::None, Compression::Zstd] {
        save(&path, 3, compression, None, good()).expect("saved");
        let snapshot = Snapshot::open(&path).expect("whole");
        let frames: Vec<Frame> = (0..FRAMES).rev().map(Frame).collect();
        let made = crate::WorkingSet::make(&snapshot, &frames, compression).expect("made");
        crate::WorkingSet::replace(&snapshot, &frames, compression).expect("written");
        assert_eq!(made, fs::read(path.join("working-set")).expect("a file"));
        let known = snapshot.working_set().expect("read").expect("one").frames().len();
        assert_eq!(known, 100, "those that have contents");
    }
}
