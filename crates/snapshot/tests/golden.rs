//! Snapshots of released versions of the format can be read for ever, and a plain one is written the same to the byte.
//!
//! After a change of the format: `FATHOM_GOLDEN=write cargo test -p snapshot --test golden` makes them anew, which is
//! right only together with a new version.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memory::{DiskBlock, FRAME_SIZE, Frame, FrameRange, RamLayout};
use snapshot::{
    Batch, Checksum, Compression, DiskBlocks, Id, InMemory, Kind, Left, Options, Sharing, Snapshot,
    Writer,
};
use support::description;

const ALL: [(&str, Compression); 3] =
    [("v1-plain", Compression::None), ("v1-lz4", Compression::Lz4), ("v1-zstd", Compression::Zstd)];

const FRAMES: u32 = 24;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Words that count from the frame's number, each four times.
fn page(frame: u32) -> [u8; FRAME_SIZE] {
    let mut page = [0; FRAME_SIZE];
    for (word, n) in page.as_chunks_mut::<4>().0.iter_mut().zip(0u32..) {
        *word = (frame * 1000 + n / 4).to_le_bytes();
    }
    page
}

/// The compressed ones add to the plain one: frame 6 is its, frame 7 is new.
fn write(folder: &Path, name: &str, compression: Compression) {
    let layout = RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).unwrap();
    let is_child = compression != Compression::None;
    let parent = is_child.then(|| Arc::new(Snapshot::open(folder.join("v1-plain")).unwrap()));
    let id = Some(Id([compression as u8 + 1; 16]));
    let options = Options { compression, parent, id, ..Options::new(layout) };
    let writer = Writer::create(folder.join(name), options).unwrap();
    let run = |first, count| FrameRange { first: Frame(first), count };
    writer.leave(run(0, 4), Left::Free).unwrap();
    writer.leave(run(4, 2), Left::Ballooned).unwrap();
    let mut lane = writer.lane().unwrap();
    if is_child {
        writer.unchanged(run(6, 1)).unwrap();
    } else {
        lane.write(Frame(6), &page(6)).unwrap();
    }
    lane.write(Frame(8), &page(8)).unwrap();
    lane.write(Frame(7), &page(if is_child { 107 } else { 7 })).unwrap();
    lane.write(Frame(9), &[0; FRAME_SIZE]).unwrap();
    lane.finish().unwrap();
    for frame in 10..12 {
        let block = DiskBlock { disk: 1, block: 1000 + u64::from(frame) };
        writer.leave_on_disk(Frame(frame), block, &page(frame)).unwrap();
    }
    writer.leave(run(12, 12), Left::Zero).unwrap();
    writer.finish(description(), b"{\"machine\": true}\n", &[Frame(7), Frame(6)]).unwrap();
}

/// Has frames 6 and 7 in common with the plain one, at other places, and 9 twice in itself.
fn write_shared(folder: &Path) {
    let layout = RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).unwrap();
    let plain = Arc::new(Snapshot::open(folder.join("v1-plain")).unwrap());
    let (sharing, id) = (Some(Sharing::new(vec![plain]).at_least(1)), Some(Id([9; 16])));
    let options = Options { sharing, id, ..Options::new(layout) };
    let writer = Writer::create(folder.join("v1-extents"), options).unwrap();
    let mut lane = writer.lane().unwrap();
    let pages = SHARED.map(|(_, number)| number.map_or([0; FRAME_SIZE], page));
    for ((frame, _), page) in SHARED.iter().zip(&pages) {
        lane.write(Frame(*frame), page).unwrap();
    }
    lane.finish().unwrap();
    writer.leave(FrameRange { first: Frame(0), count: 3 }, Left::Free).unwrap();
    writer.leave(FrameRange { first: Frame(10), count: FRAMES - 10 }, Left::Zero).unwrap();
    writer.finish(description(), b"{\"machine\": true}\n", &[Frame(4), Frame(8)]).unwrap();
}

/// Frames, and whose contents they have.
const SHARED: [(u32, Option<u32>); 7] = [
    (3, Some(6)),
    (4, Some(7)),
    (5, Some(50)),
    (6, None),
    (7, Some(50)),
    (8, Some(60)),
    (9, Some(50)),
];

#[test]
fn extents_are_read_and_written_as_ever() {
    if std::env::var_os("FATHOM_GOLDEN").is_some_and(|how| how == "write") {
        write_shared(&golden(""));
    }
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "v1-plain", Compression::None);
    write_shared(folder.path());
    let now = InMemory::read(&folder.path().join("v1-extents")).unwrap().parts;
    let then = InMemory::read(&golden("v1-extents")).unwrap().parts;
    assert_eq!(now.keys().collect::<Vec<_>>(), then.keys().collect::<Vec<_>>());
    for (name, bytes) in &now {
        assert!(*bytes == then[name], "{name} differs");
    }
    let snapshot = Snapshot::open(golden("v1-extents")).unwrap();
    snapshot.verify().unwrap();
    assert_eq!(snapshot.shared_frames(), 4);
    for (frame, number) in SHARED {
        let mut read = [1; FRAME_SIZE];
        snapshot.read(Frame(frame), &mut read).unwrap();
        assert!(read == number.map_or([0; FRAME_SIZE], page), "{frame}");
    }
}

struct Disks;

impl DiskBlocks for Disks {
    fn read(&self, block: DiskBlock, into: &mut [u8; FRAME_SIZE]) -> std::io::Result<()> {
        assert_eq!(block.disk, 1);
        *into = page((block.block - 1000) as u32);
        Ok(())
    }
}

fn check(path: &Path, compression: Compression) {
    let mut snapshot = Snapshot::open(path).unwrap();
    snapshot.set_disks(Arc::new(Disks));
    snapshot.verify().unwrap();
    let manifest = snapshot.manifest();
    assert_eq!(manifest.vm, description());
    assert_eq!(manifest.memory.compression, compression);
    assert_eq!(snapshot.machine().unwrap(), b"{\"machine\": true}\n");
    let is_child = compression != Compression::None;
    let in_parent = if is_child { Kind::Parent } else { Kind::Stored };
    let block = |block| Kind::Disk(DiskBlock { disk: 1, block });
    let expected = [
        (0, 4, Kind::Free),
        (4, 2, Kind::Ballooned),
        (6, 1, in_parent),
        (7, 2, Kind::Stored),
        (9, 1, Kind::Zero),
        (10, 2, block(1010)),
        (12, 12, Kind::Zero),
    ];
    let mut kinds = Vec::new();
    for (first, count, kind) in expected {
        kinds.extend(
            (0..count)
                .map(|n| (first + n, if first == 10 { block(1010 + u64::from(n)) } else { kind })),
        );
    }
    for (frame, kind) in kinds {
        assert_eq!(snapshot.kind(Frame(frame)), Some(kind), "{frame}");
        let expected = match (frame, is_child) {
            (7, true) => page(107),
            (6..=8 | 10..=11, _) => page(frame),
            _ => [0; FRAME_SIZE],
        };
        let mut read = [1; FRAME_SIZE];
        snapshot.read(Frame(frame), &mut read).unwrap();
        assert!(read == expected, "{frame}");
    }
    let set = snapshot.working_set().unwrap().unwrap();
    let mut batch = Batch::new();
    set.read(0, &mut batch).unwrap();
    assert_eq!(batch.frames(), [Frame(7), Frame(6)]);
    assert!(batch.get(Frame(6)) == Some(&page(6)));
}

#[test]
fn released_versions_are_read() {
    if std::env::var_os("FATHOM_GOLDEN").is_some_and(|how| how == "write") {
        std::fs::create_dir_all(golden("")).unwrap();
        ALL.iter().for_each(|(name, compression)| write(&golden(""), name, *compression));
    }
    for (name, compression) in ALL {
        check(&golden(name), compression);
    }
}

/// Compressors may find shorter forms one day; a plain snapshot has no choice.
#[test]
fn a_plain_snapshot_is_written_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "v1-plain", Compression::None);
    let (now, then) = (folder.path().join("v1-plain"), golden("v1-plain"));
    let (now, then) = (InMemory::read(&now).unwrap().parts, InMemory::read(&then).unwrap().parts);
    assert_eq!(now.keys().collect::<Vec<_>>(), then.keys().collect::<Vec<_>>());
    for (name, bytes) in &now {
        assert!(*bytes == then[name], "{name} differs");
    }
    assert_eq!(Checksum::of(&then["manifest"]).to_string(), "bddedd7e7a364ec6");
}
