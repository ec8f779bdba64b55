//! A working set that is learnt while the snapshot is in use takes its place when it is used next, or not at all.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use memory::{FRAME_SIZE, Frame, FrameRange, RamLayout};
use snapshot::{Batch, Compression, Learning, Left, Options, Snapshot, WorkingSet, Writer};
use support::description;

const FRAMES: u32 = 256;

/// A snapshot whose odd frames have contents, and whose working set is frame 1.
fn snapshot(folder: &Path, compression: Compression) -> PathBuf {
    let path = folder.join("saved");
    let layout = RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).unwrap();
    let writer = Writer::create(&path, Options { compression, ..Options::new(layout) }).unwrap();
    let mut lane = writer.lane().unwrap();
    for number in 0..FRAMES {
        let frame = Frame(number);
        match number % 2 {
            0 => writer.leave(FrameRange { first: frame, count: 1 }, Left::Free).unwrap(),
            _ => lane.write(frame, &[number as u8; FRAME_SIZE]).unwrap(),
        }
    }
    lane.finish().unwrap();
    writer.finish(description(), b"{}", &[Frame(1)]).unwrap();
    path
}

fn working_set(snapshot: &Snapshot) -> Vec<Frame> {
    snapshot.working_set().unwrap().unwrap().frames().to_vec()
}

#[test]
fn what_was_learnt_is_taken_over_by_who_comes_next() {
    for compression in [Compression::None, Compression::Lz4] {
        let folder = tempfile::tempdir().unwrap();
        let path = snapshot(folder.path(), compression);
        let first = Snapshot::open(&path).unwrap();
        let learning = Learning::begin(&first).unwrap().unwrap();
        assert!(Learning::begin(&first).unwrap().is_none(), "two learn at once");
        // Somebody else uses it meanwhile, and sees nothing of that.
        let second = Snapshot::open(&path).unwrap();
        WorkingSet::adopt(&second).unwrap();
        assert_eq!(working_set(&second), [Frame(1)]);
        assert!(Learning::begin(&second).unwrap().is_none());
        // Frames without contents, and those that were there, are left out.
        let learnt = [Frame(7), Frame(2), Frame(5), Frame(7), Frame(1)];
        learning.finish(&first, &learnt, compression).unwrap();
        let third = Snapshot::open(&path).unwrap();
        WorkingSet::adopt(&third).unwrap();
        assert_eq!(working_set(&third), [Frame(7), Frame(5), Frame(1)]);
        let mut batch = Batch::new();
        third.working_set().unwrap().unwrap().read(0, &mut batch).unwrap();
        assert!(batch.iter().all(|(frame, page)| *page == [frame.0 as u8; FRAME_SIZE]));
        third.verify().unwrap();
        assert!(Learning::begin(&third).unwrap().is_some(), "the next one learns");
    }
}

#[test]
fn what_is_not_whole_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = snapshot(folder.path(), Compression::None);
    let new = path.join("working-set.new");
    let old = Snapshot::open(&path).unwrap();
    let leave = || {
        let learning = Learning::begin(&old).unwrap().unwrap();
        learning.finish(&old, &[Frame(3), Frame(9)], Compression::None).unwrap();
        fs::read(&new).unwrap()
    };
    let whole = leave();
    fs::remove_file(&new).unwrap();
    let mut spoilt = whole.clone();
    spoilt[20] ^= 1;
    for bytes in [&[][..], &whole[..100], &whole[..whole.len() - 1], &spoilt] {
        fs::write(&new, bytes).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        WorkingSet::adopt(&snapshot).unwrap();
        assert!(!new.exists());
        assert_eq!(working_set(&snapshot), [Frame(1)]);
    }
    // A process that ended before it knew anything.
    drop(Learning::begin(&old).unwrap().unwrap());
    assert!(new.exists());
    WorkingSet::adopt(&old).unwrap();
    assert!(!new.exists());
    leave();
    WorkingSet::adopt(&old).unwrap();
    assert_eq!(working_set(&old), [Frame(3), Frame(9)]);
}

#[test]
fn a_place_around_a_frame_is_as_small_as_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let layout = RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).unwrap();
    let writer = Writer::create(&path, Options::new(layout)).unwrap();
    let mut lane = writer.lane().unwrap();
    (0..FRAMES - 3).for_each(|n| lane.write(Frame(n), &[n as u8 | 1; FRAME_SIZE]).unwrap());
    lane.finish().unwrap();
    writer.leave(FrameRange { first: Frame(FRAMES - 3), count: 3 }, Left::Zero).unwrap();
    writer.finish(description(), b"{}", &[]).unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    let mut batch = Batch::new();
    for (frame, frames, expected) in [
        (77, 1, 77..78),
        (77, 16, 64..80),
        (77, 64, 64..128),
        (250, 16, 240..253),
        (5, 1000, 0..64),
    ] {
        let place = snapshot.place_around(Frame(frame), frames).unwrap().unwrap();
        snapshot.read_place(place, &mut batch).unwrap();
        assert!(batch.frames().iter().copied().eq(expected.map(Frame)), "{frame}, {frames}");
    }
    assert_eq!(snapshot.place_around(Frame(FRAMES - 1), 16).unwrap(), None);
}
