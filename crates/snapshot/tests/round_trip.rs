//! What is written is read, in all ways of reading, through parents, by any compression.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use memory::{
    Access, DeviceView, DiskBlock, FRAME_SIZE, Frame, FrameRange, FrameState, Gpa, GuestMemory,
    RamLayout, Source,
};
use proptest::prelude::*;
use snapshot::{
    Batch, Compression, DiskBlocks, InMemory, Kind, Left, Options, Snapshot, SnapshotError,
    WorkingSet, Writer,
};
use support::description;

const FRAMES: u32 = 300;

type Page = [u8; FRAME_SIZE];

/// What a frame is told to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Contents(u64),
    Left(Left),
    OnDisk(u8, u64),
    Unchanged,
}

/// What must be read of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Model {
    Zeros(Left),
    Contents(u64),
    Disk(u8, u64),
}

/// Contents by a number: zeros, what compresses, or what does not.
fn page(number: u64) -> Page {
    let mut page = [0; FRAME_SIZE];
    let words = page.as_chunks_mut::<8>().0.iter_mut().zip(0u64..);
    match number % 4 {
        0 => {}
        1 => words.for_each(|(word, n)| *word = (number ^ (n / 16)).to_le_bytes()),
        2 => page[number as usize % FRAME_SIZE] = 1,
        _ => words.for_each(|(word, n)| {
            let mixed = (number.wrapping_add(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *word = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes();
        }),
    }
    page
}

struct Disks;

impl DiskBlocks for Disks {
    fn read(&self, block: DiskBlock, into: &mut Page) -> io::Result<()> {
        *into = on_disk(block.disk, block.block);
        Ok(())
    }
}

fn on_disk(disk: u8, block: u64) -> Page {
    page(block.wrapping_mul(4) + 1 + u64::from(disk) * 0x1_0000)
}

fn layout() -> RamLayout {
    RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).unwrap()
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        4 => (0..64u64).prop_map(Told::Contents),
        1 => Just(Told::Left(Left::Zero)),
        1 => Just(Told::Left(Left::Free)),
        1 => Just(Told::Left(Left::Ballooned)),
        1 => (0..3u8, 0..40u64).prop_map(|(disk, block)| Told::OnDisk(disk, block)),
        3 => Just(Told::Unchanged),
    ]
}

/// Runs of frames told alike, as guests have them.
fn telling() -> impl Strategy<Value = Vec<Told>> {
    prop::collection::vec((told(), 1..40u32, any::<bool>()), 1..60).prop_map(|runs| {
        let run = |(told, count, rising): (Told, u32, bool)| {
            (0..count).map(move |n| match told {
                Told::Contents(number) if rising => Told::Contents(number + u64::from(n)),
                Told::OnDisk(disk, block) => Told::OnDisk(disk, block + u64::from(n)),
                same => same,
            })
        };
        let mut frames: Vec<Told> = runs.into_iter().flat_map(run).collect();
        frames.resize(FRAMES as usize, Told::Contents(3));
        frames
    })
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)]
}

/// Writes it by three threads, and tells what must be read.
fn save(
    path: &Path,
    told: &[Told],
    compression: Compression,
    parent: Option<(Arc<Snapshot>, &[Model])>,
    working_set: &[Frame],
) -> Vec<Model> {
    // What cannot be unchanged has new contents.
    let told: Vec<Told> = told
        .iter()
        .enumerate()
        .map(|(frame, told)| match (told, &parent) {
            (Told::Unchanged, None) => Told::Contents(5),
            (Told::Unchanged, Some((_, models))) => match models[frame] {
                Model::Contents(_) | Model::Zeros(Left::Zero) => Told::Unchanged,
                _ => Told::Contents(frame as u64),
            },
            (told, _) => *told,
        })
        .collect();
    let snapshot = parent.as_ref().map(|(snapshot, _)| Arc::clone(snapshot));
    let options = Options { compression, parent: snapshot, ..Options::new(layout()) };
    let writer = Writer::create(path, options).unwrap();
    thread::scope(|scope| {
        for thread in 0..3 {
            let (writer, told) = (&writer, &told);
            scope.spawn(move || {
                let mut lane = writer.lane().unwrap();
                let frames = told.iter().zip(0u32..).filter(|(_, frame)| frame / 30 % 3 == thread);
                for (told, frame) in frames {
                    let one = FrameRange { first: Frame(frame), count: 1 };
                    match *told {
                        Told::Contents(number) => lane.write(Frame(frame), &page(number)).unwrap(),
                        Told::Left(why) => writer.leave(one, why).unwrap(),
                        Told::OnDisk(disk, block) => {
                            let contents = on_disk(disk, block);
                            let block = DiskBlock { disk, block };
                            writer.leave_on_disk(Frame(frame), block, &contents).unwrap();
                        }
                        Told::Unchanged => writer.unchanged(one).unwrap(),
                    }
                }
                lane.finish().unwrap();
            });
        }
    });
    let saved = writer.finish(description(), b"{\"state\": 1}", working_set).unwrap();
    assert_eq!(saved.old, None);
    let model = |(told, frame): (&Told, usize)| match *told {
        Told::Contents(number) if page(number) == [0; FRAME_SIZE] => Model::Zeros(Left::Zero),
        Told::Contents(number) => Model::Contents(number),
        Told::Left(why) => Model::Zeros(why),
        Told::OnDisk(disk, block) => Model::Disk(disk, block),
        Told::Unchanged => parent.as_ref().unwrap().1[frame],
    };
    told.iter().zip(0..).map(model).collect()
}

fn contents(model: Model) -> Page {
    match model {
        Model::Zeros(_) => [0; FRAME_SIZE],
        Model::Contents(number) => page(number),
        Model::Disk(disk, block) => on_disk(disk, block),
    }
}

/// By frame, by run, by place; and a check of all.
fn check(snapshot: &Snapshot, models: &[Model]) {
    snapshot.verify().unwrap();
    assert_eq!(snapshot.machine().unwrap(), b"{\"state\": 1}");
    let mut at = 0;
    for run in snapshot.runs() {
        assert_eq!(run.first.0, at);
        at += run.count;
    }
    assert_eq!(at, FRAMES);
    let mut stored = BTreeMap::new();
    for (frame, model) in (0..).map(Frame).zip(models) {
        let kind = snapshot.kind(frame).unwrap();
        let right = match model {
            Model::Zeros(Left::Zero) => kind == Kind::Zero,
            Model::Zeros(Left::Free) => kind == Kind::Free,
            Model::Zeros(Left::Ballooned) => kind == Kind::Ballooned,
            Model::Contents(_) => matches!(kind, Kind::Stored | Kind::Parent),
            Model::Disk(disk, block) => {
                kind == Kind::Disk(DiskBlock { disk: *disk, block: *block })
            }
        };
        assert!(right, "{frame}: {kind:?}, {model:?}");
        let mut read = [0xff; FRAME_SIZE];
        snapshot.fetch(frame, &mut read).unwrap();
        assert!(read == contents(*model), "{frame}");
        if let Model::Contents(_) | Model::Disk(..) = model {
            stored.insert(frame, contents(*model));
        }
        let place = snapshot.place_of(frame).unwrap();
        assert_eq!(place.is_some(), stored.contains_key(&frame));
        if let Some(place) = place {
            let mut batch = Batch::new();
            snapshot.read_place(place, &mut batch).unwrap();
            assert!(batch.get(frame) == Some(&read), "{frame}");
        }
    }
    let mut batch = Batch::new();
    for place in snapshot.places() {
        snapshot.read_place(place, &mut batch).unwrap();
        for (frame, page) in batch.iter() {
            assert!(stored.remove(&frame).as_ref() == Some(page), "{frame}");
        }
    }
    assert!(stored.is_empty(), "{:?}", stored.keys());
    let beyond = snapshot.read(Frame(FRAMES), &mut [0; FRAME_SIZE]);
    assert!(matches!(beyond, Err(SnapshotError::Bug(_))));
}

fn open(path: &Path) -> Snapshot {
    let mut snapshot = Snapshot::open(path).unwrap();
    snapshot.set_disks(Arc::new(Disks));
    snapshot
}

/// The working set has each frame once, in order, with its contents.
fn check_working_set(snapshot: &Snapshot, expected: &[Frame], models: &[Model]) {
    let set = snapshot.working_set().unwrap().unwrap();
    assert_eq!(set.frames(), expected);
    let mut batch = Batch::new();
    let mut frames = Vec::new();
    for chunk in 0..set.chunks() {
        set.read(chunk, &mut batch).unwrap();
        frames.extend_from_slice(batch.frames());
        for (frame, page) in batch.iter() {
            assert!(*page == contents(models[frame.index()]), "{frame}");
        }
    }
    assert_eq!(frames, expected);
    assert!(set.read(set.chunks(), &mut batch).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_written_is_read(
        generations in prop::collection::vec((telling(), compression()), 1..4),
        order in prop::collection::vec(0..FRAMES + 10, 0..150),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut last: Option<(Arc<Snapshot>, Vec<Model>)> = None;
        let order: Vec<Frame> = order.into_iter().map(Frame).collect();
        for (n, (told, compression)) in generations.iter().enumerate() {
            let path = folder.path().join(format!("generation-{n}"));
            let parent = last.as_ref().map(|(snapshot, models)| (Arc::clone(snapshot), &models[..]));
            let models = save(&path, told, *compression, parent, &order);
            let snapshot = open(&path);
            check(&snapshot, &models);

            let wanted = |on_disk: bool| {
                let mut seen = Vec::new();
                for frame in order.iter().filter(|frame| frame.0 < FRAMES) {
                    let wanted = match models[frame.index()] {
                        Model::Contents(_) => true,
                        Model::Disk(..) => on_disk,
                        Model::Zeros(_) => false,
                    };
                    if wanted && !seen.contains(frame) {
                        seen.push(*frame);
                    }
                }
                seen
            };
            if order.is_empty() {
                prop_assert!(snapshot.working_set().unwrap().is_none());
            } else {
                check_working_set(&snapshot, &wanted(false), &models);
            }
            // What was learnt later may also have what is on disks.
            WorkingSet::replace(&snapshot, &order, *compression).unwrap();
            check_working_set(&snapshot, &wanted(true), &models);
            snapshot.verify().unwrap();
            last = Some((Arc::new(snapshot), models));
        }
        // The folder may be moved as a whole.
        let moved = folder.path().with_extension("moved");
        std::fs::rename(folder.path(), &moved).unwrap();
        let (_, models) = last.unwrap();
        check(&open(&moved.join(format!("generation-{}", generations.len() - 1))), &models);
        std::fs::remove_dir_all(&moved).unwrap();
    }
}

fn mixed() -> Vec<Told> {
    let mut told = vec![Told::Contents(1); 100];
    told.extend(vec![Told::Left(Left::Free); 50]);
    told.extend((0..50).map(|block| Told::OnDisk(1, block)));
    told.extend(vec![Told::Contents(3); 99]);
    told.push(Told::Left(Left::Ballooned));
    told
}

#[test]
fn a_guest_runs_on_frames_that_come_when_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let models = save(&path, &mixed(), Compression::Zstd, None, &[]);
    let snapshot = Arc::new(open(&path));
    let memory = Arc::new(GuestMemory::new(layout()).unwrap());
    let source = memory.add_source(Arc::clone(&snapshot) as Arc<dyn Source>).unwrap();
    let absent = snapshot.runs().iter().filter(|run| run.kind.has_contents());
    let absent = absent.flat_map(|run| FrameRange { first: run.first, count: run.count }.frames());
    assert_eq!(memory.make_absent(absent, source).unwrap(), 249);
    let view = DeviceView::new(Arc::clone(&memory));
    for (frame, model) in models.iter().enumerate() {
        let mut read = [0; FRAME_SIZE];
        view.read(Gpa((frame * FRAME_SIZE) as u64), &mut read).unwrap();
        assert!(read == contents(*model), "{frame}");
    }
    assert_eq!(memory.counts().absent, 0);
}

/// And the frame stays absent: the guest does not go on with what is wrong.
#[test]
fn a_disk_that_has_other_contents_is_refused() {
    struct Changed;
    impl DiskBlocks for Changed {
        fn read(&self, _: DiskBlock, into: &mut Page) -> io::Result<()> {
            into.fill(7);
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    save(&path, &mixed(), Compression::None, None, &[]);
    let mut snapshot = Snapshot::open(&path).unwrap();
    let mut page = [0; FRAME_SIZE];
    let error = snapshot.read(Frame(160), &mut page).unwrap_err();
    assert!(matches!(error, SnapshotError::NoDisks { .. }), "{error}");
    snapshot.set_disks(Arc::new(Changed));
    let error = snapshot.read(Frame(160), &mut page).unwrap_err().to_string();
    assert!(error.contains("disk 1: offset 40960: checksum of a block"), "{error}");

    let memory = GuestMemory::new(layout()).unwrap();
    let source = memory.add_source(Arc::new(snapshot)).unwrap();
    memory.make_absent([Frame(160)], source).unwrap();
    memory.resolve(Frame(160), Access::Read).unwrap_err();
    let state = memory.facts(Frame(160)).unwrap().state;
    assert_eq!(state, FrameState::Absent(source));
}

#[test]
fn a_plain_image_has_each_frame_at_its_place_and_holes() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let mut told = vec![Told::Left(Left::Zero); 300];
    told[128] = Told::Contents(3);
    save(&path, &told, Compression::None, None, &[]);
    let snapshot = Snapshot::open(&path).unwrap();
    let image = snapshot.plain_image().unwrap();
    let file = std::fs::File::from(image.file.try_clone_to_owned().unwrap());
    let mut read = [0; FRAME_SIZE];
    file.read_exact_at(&mut read, image.offset + 128 * FRAME_SIZE as u64).unwrap();
    assert!(read == page(3));
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (300 * FRAME_SIZE as u64, 0o600));
    assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());

    let other = folder.path().join("compressed");
    save(&other, &told, Compression::Lz4, None, &[]);
    assert!(Snapshot::open(&other).unwrap().plain_image().is_none());
}

/// A snapshot that is open stays what it is when another gets its name.
#[test]
fn a_reader_keeps_the_one_that_it_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let models = save(&path, &[Told::Contents(1); 300], Compression::Lz4, None, &[]);
    let old = Snapshot::open(&path).unwrap();
    let others = save(&path, &[Told::Contents(3); 300], Compression::None, None, &[Frame(1)]);
    check(&old, &models);
    assert!(old.working_set().unwrap().is_none());
    check(&open(&path), &others);
}

#[test]
fn another_parent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (folder.path().join("base"), folder.path().join("child"));
    let models = save(&base, &[Told::Contents(1); 300], Compression::Lz4, None, &[]);
    let parent = Arc::new(Snapshot::open(&base).unwrap());
    save(&child, &[Told::Unchanged; 300], Compression::None, Some((parent, &models)), &[]);
    save(&base, &[Told::Contents(1); 300], Compression::Lz4, None, &[]);
    let error = Snapshot::open(&child).unwrap_err();
    assert!(matches!(error, SnapshotError::Parent { .. }), "{error}");
    std::fs::remove_dir_all(&base).unwrap();
    let error = Snapshot::open(&child).unwrap_err().to_string();
    assert!(error.contains("the parent of") && error.contains("check the path"), "{error}");
}

#[test]
fn ancestors_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = |n: usize| folder.path().join(n.to_string());
    let mut models = save(&path(0), &mixed(), Compression::None, None, &[]);
    for n in 1..=33 {
        let parent = Some((Arc::new(Snapshot::open(path(n - 1)).unwrap()), &models[..]));
        models = save(&path(n), &mixed_unchanged(&models), Compression::None, parent, &[]);
    }
    check(&open(&path(32)), &models);
    let error = Snapshot::open(path(33)).unwrap_err().to_string();
    assert!(error.contains("more than 32 ancestors"), "{error}");
}

fn mixed_unchanged(models: &[Model]) -> Vec<Told> {
    let told = |model: &Model| match *model {
        Model::Zeros(Left::Zero) | Model::Contents(_) => Told::Unchanged,
        Model::Zeros(why) => Told::Left(why),
        Model::Disk(disk, block) => Told::OnDisk(disk, block),
    };
    models.iter().map(told).collect()
}

/// From anywhere that has positioned reads.
#[test]
fn parts_may_be_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (folder.path().join("base"), folder.path().join("child"));
    let models = save(&base, &mixed(), Compression::Lz4, None, &[]);
    let parent = Arc::new(Snapshot::open(&base).unwrap());
    let mut told = mixed_unchanged(&models);
    told[7] = Told::Contents(3);
    let models = save(&child, &told, Compression::Zstd, Some((parent, &models)), &[Frame(7)]);
    let parent = Some(Arc::new(InMemory::read(&base).unwrap()));
    let store = InMemory { parent, ..InMemory::read(&child).unwrap() };
    let mut snapshot = Snapshot::open_store(Box::new(store)).unwrap();
    snapshot.set_disks(Arc::new(Disks));
    check(&snapshot, &models);
    check_working_set(&snapshot, &[Frame(7)], &models);
    let error = WorkingSet::replace(&snapshot, &[Frame(1)], Compression::None).unwrap_err();
    assert!(matches!(error, SnapshotError::Refused { .. }), "{error}");
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
        (293, 16, 288..297),
        (5, 1000, 0..64),
    ] {
        let place = snapshot.place_around(Frame(frame), frames).unwrap().unwrap();
        snapshot.read_place(place, &mut batch).unwrap();
        assert!(batch.frames().iter().copied().eq(expected.map(Frame)), "{frame}, {frames}");
    }
    assert_eq!(snapshot.place_around(Frame(FRAMES - 1), 16).unwrap(), None);
}
