//! A host that refuses at each step, once or for ever; and what is in the way of a snapshot.

use std::fs;
use std::io;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::manifest::{Cpu, Time};
use crate::store::{ReadAt, Store};

const FRAMES: u32 = 256;

fn layout() -> RamLayout {
    RamLayout::new(u64::from(FRAMES) * 4096).expect("a layout")
}

fn vm() -> Description {
    Description {
        saved_at: Time { seconds: 1_700_000_000, nanoseconds: 5 },
        writer: "test".into(),
        engine: "none".into(),
        cpu: Cpu::default(),
        vcpus: 1,
        machine_version: 1,
        disks: Vec::new(),
        generation: None,
    }
}

/// Counts what it is asked, and refuses from step `from` on, `times` times.
#[derive(Clone)]
struct Refusing {
    step: Arc<AtomicU32>,
    from: u32,
    times: u32,
}

impl Refusing {
    fn new(from: u32, times: u32) -> Self {
        Self { step: Arc::default(), from, times }
    }

    fn ask(&self) -> io::Result<()> {
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        if step >= self.from && step - self.from < self.times {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn steps(&self) -> u32 {
        self.step.load(Ordering::Relaxed)
    }
}

struct RefusingFile<T: ?Sized>(Refusing, T);

impl Output for RefusingFile<Box<dyn Output>> {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.0.ask() {
            // A full disk takes a part.
            self.1.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        self.1.write_all_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.ask()?;
        self.1.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.ask()
    }
}

impl ReadAt for RefusingFile<Arc<dyn ReadAt>> {
    fn len(&self) -> io::Result<u64> {
        self.0.ask()?;
        self.1.len()
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.ask()?;
        self.1.read_exact_at(into, offset)
    }
}

impl Store for RefusingFile<Box<dyn Store>> {
    fn name(&self) -> String {
        self.1.name()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>> {
        self.0.ask()?;
        Ok(Arc::new(RefusingFile(self.0.clone(), self.1.open(name)?)))
    }

    fn parent(&self, path: &str) -> io::Result<Box<dyn Store>> {
        self.0.ask()?;
        Ok(Box::new(RefusingFile(self.0.clone(), self.1.parent(path)?)))
    }

    fn directory(&self) -> Option<&Path> {
        self.1.directory()
    }
}

impl Host for Refusing {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        self.ask()?;
        Ok(Box::new(RefusingFile(self.clone(), RealHost.create(path)?)))
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        self.ask()
    }

    fn store(&self, path: &Path) -> io::Result<Box<dyn Store>> {
        self.ask()?;
        Ok(Box::new(RefusingFile(self.clone(), RealHost.store(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.exchange(one, other)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.remove_directory(path)
    }
}

/// Refuses nothing, and waits for no disk.
fn good() -> Arc<dyn Host> {
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

fn names(folder: &Path) -> Vec<String> {
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
