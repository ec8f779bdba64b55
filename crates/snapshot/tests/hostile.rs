//! Snapshots that are cut short, changed, or made up to do harm.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/hostile.rs"]
mod hostile;
mod support;

use std::sync::Arc;

use memory::{FRAME_SIZE, Frame, FrameRange, RamLayout};
use proptest::prelude::*;
use snapshot::{
    Checksum, Compression, Extent, InMemory, Left, Options, Sharing, Snapshot, SnapshotError,
    Writer,
};
use support::description;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_change_is_an_error_or_changes_nothing(
        which in 0..5u8,
        steps in prop::collection::vec(any::<u8>(), 8..25),
    ) {
        let _ = hostile::run(&[&[which], &steps[..]].concat());
    }

    #[test]
    fn what_checksums_do_not_find_is_no_panic(
        which in 0x80..0x85u8,
        steps in prop::collection::vec(any::<u8>(), 8..41),
    ) {
        let _ = hostile::run(&[&[which], &steps[..]].concat());
    }
}

#[test]
fn unchanged_they_are_read() {
    for which in [0, 1, 2, 3, 4, 0x80, 0x81, 0x82, 0x83, 0x84] {
        hostile::run(&[which]).unwrap();
    }
}

/// Each bit of each part, one at a time: found, but in the holes of a plain image, which nobody reads, and in the
/// padding of the working set.
#[test]
fn every_flipped_byte_is_found() {
    for which in 0..5u8 {
        let parts = 6 + u8::from(which == 1 || which == 2) + 2 * u8::from(which == 4);
        for part in 0..parts {
            for at in (0..3000u32).step_by(29) {
                let mut input = vec![which, part, 0x84, 0x10];
                input.extend(at.to_le_bytes());
                input.push(0);
                // The index of parts is by name; `memory` of a plain image begins with a hole.
                let holes = (which == 0 || which >= 3) && at < 4096;
                // Of the files of others only that is read which is shared.
                let is_memory = part == parts - 2 || which == 4 && part == parts - 3;
                if hostile::run(&input).is_ok() {
                    let padding = part == parts - 1 && at >= 56;
                    assert!((holes && is_memory) || padding, "{which} {part} {at}");
                }
            }
        }
    }
}

/// A snapshot of 16 frames that has the last 8 of them in common with another, in one extent; and its extents.
fn save_shared() -> (InMemory, Vec<Extent>) {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, first: u8, sharing| {
        let layout = RamLayout::new(16 * FRAME_SIZE as u64).unwrap();
        let path = folder.path().join(name);
        let writer = Writer::create(&path, Options { sharing, ..Options::new(layout) }).unwrap();
        let mut lane = writer.lane().unwrap();
        for frame in 0..15u8 {
            let byte = if frame < 8 { first + frame } else { frame };
            lane.write(Frame(frame.into()), &[byte; FRAME_SIZE]).unwrap();
        }
        lane.finish().unwrap();
        writer.leave(FrameRange { first: Frame(15), count: 1 }, Left::Free).unwrap();
        writer.finish(description(), b"{}", &[]).unwrap();
        path
    };
    let first = Arc::new(Snapshot::open(save("a", 100, None)).unwrap());
    let path = save("b", 200, Some(Sharing::new(vec![first])));
    let snapshot = Snapshot::open(&path).unwrap();
    let extents = snapshot.plain_image().unwrap().extents.to_vec();
    assert_eq!(extents, [Extent { frames: extents[0].frames, file: 1, at: 8 }]);
    (InMemory::read(&path).unwrap(), extents)
}

#[test]
fn extents_that_cannot_be_are_refused_by_place() {
    let (whole, good) = save_shared();
    let with = |extents: &[Extent]| {
        let mut store = whole.clone();
        let bytes = Extent::encode_all(extents);
        let old = store.parts.insert("extents".into(), Arc::new(bytes.clone())).unwrap();
        let (from, to) = (Checksum::of(&old), Checksum::of(&bytes));
        edit(&mut store, &from.to_string(), &to.to_string());
        edit(&mut store, "\"bytes\": 16,", &format!("\"bytes\": {},", bytes.len()));
        Snapshot::open_store(Box::new(store)).err().map(|error| error.to_string())
    };
    let run = |first, count, file, at| Extent {
        frames: FrameRange { first: Frame(first), count },
        file,
        at,
    };
    assert_eq!(with(&good), None);
    let said = |extents: &[Extent], expected: &str| {
        let error = with(extents).unwrap();
        assert_eq!(error, format!("memory/extents: {expected}"));
    };
    said(&[run(8, 0, 1, 8)], "offset 4: frames of an extent: expected 1 to 8, found 0");
    said(&[run(8, 9, 1, 0)], "offset 4: frames of an extent: expected 1 to 8, found 9");
    said(
        &[run(8, u32::MAX, 1, 0)],
        "offset 4: frames of an extent: expected 1 to 8, found 4294967295",
    );
    said(&[run(8, 8, 1, 0)], "offset 0: frames of an extent: expected stored ones, found 15");
    said(&[run(8, 7, 2, 0)], "offset 8: file: expected at most 1, found 2");
    let place = "place of an extent: expected 7 frames before 16, found";
    said(&[run(8, 7, 1, 10)], &format!("offset 12: {place} 10"));
    said(&[run(8, 7, 0, u32::MAX)], &format!("offset 12: {place} 4294967295"));
    let two = [run(8, 2, 1, 8), run(9, 2, 1, 9)];
    said(&two, "offset 16: first frame of an extent: expected at least 10, found 9");
    let many = vec![run(8, 1, 1, 8); 8193];
    let length = "offset 0: length: expected a multiple of 16, at most 131072, found 131088";
    said(&many, length);
    // In a hole of another's, which has other contents: only reading tells.
    assert_eq!(with(&[run(8, 7, 1, 0)]), None);
}

#[test]
fn extents_need_their_feature_and_their_files() {
    let (whole, _) = save_shared();
    let error = |from: &str, to: &str| {
        let mut store = whole.clone();
        edit(&mut store, from, to);
        error_of(store).to_string()
    };
    let needs = "\"needs\": [\n    \"extents\"\n  ]";
    let unnamed = error(needs, "\"needs\": []");
    assert_eq!(unnamed, "memory/manifest: offset 0: needs: expected extents, found []");
    let mut store = whole.clone();
    store.parts.remove("shared-1");
    assert!(error_of(store).to_string().contains("open memory/shared-1"));
    let mut store = whole.clone();
    Arc::make_mut(store.parts.get_mut("shared-1").unwrap()).truncate(9 * FRAME_SIZE);
    let short = "memory/shared-1: offset 36864: length: expected 65536, found 36864";
    assert_eq!(error_of(store).to_string(), short);
}

fn save(bytes: u64, compression: Compression) -> (tempfile::TempDir, InMemory) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let layout = RamLayout::new(bytes).unwrap();
    let options = Options { compression, ..Options::new(layout) };
    let writer = Writer::create(&path, options).unwrap();
    let mut lane = writer.lane().unwrap();
    lane.write(memory::Frame(0), &[3; FRAME_SIZE]).unwrap();
    lane.finish().unwrap();
    let (first, count) = (memory::Frame(1), layout.frames() - 1);
    writer.leave(memory::FrameRange { first, count }, Left::Zero).unwrap();
    writer.finish(description(), b"{}", &[memory::Frame(0)]).unwrap();
    let store = InMemory::read(&path).unwrap();
    (folder, store)
}

/// The manifest with something else in it, and the right checksum.
fn edit(store: &mut InMemory, from: &str, to: &str) {
    let manifest = String::from_utf8(store.parts["manifest"].to_vec()).unwrap();
    let (_, json) = manifest.split_once('\n').unwrap();
    assert!(json.contains(from), "{json}");
    let json = json.replace(from, to);
    let text = format!("FATHOM-SNAPSHOT 1 {}\n{json}", Checksum::of(json.as_bytes()));
    store.parts.insert("manifest".into(), Arc::new(text.into_bytes()));
}

fn error_of(store: InMemory) -> SnapshotError {
    Snapshot::open_store(Box::new(store)).unwrap_err()
}

#[test]
fn errors_say_where_and_what() {
    let (_folder, whole) = save(1 << 20, Compression::Lz4);
    let with = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut store = whole.clone();
        change(Arc::make_mut(store.parts.get_mut(name).unwrap()));
        error_of(store).to_string()
    };
    assert_eq!(
        with("frames", &|bytes| bytes.truncate(30)),
        "memory/frames: offset 30: length: expected 48, found 30"
    );
    assert_eq!(
        with("manifest", &|bytes| bytes[16] = b'2'),
        "memory/manifest: format version 2: expected 1: use the program that wrote it"
    );
    assert_eq!(
        with("manifest", &|bytes| bytes.splice(..6, *b"QEMU  ").for_each(drop)),
        "memory/manifest: offset 0: first line: expected FATHOM-SNAPSHOT, found \"QEMU  -SNAPSHOT 1 22\""
            .replace("22", &String::from_utf8_lossy(&whole.parts["manifest"][18..20]))
    );
    let changed = with("manifest", &|bytes| *bytes.last_mut().unwrap() = b' ');
    assert!(changed.starts_with("memory/manifest: offset 35: checksum: expected "), "{changed}");
    // What a file says goes to a terminal.
    let escaped = with("manifest", &|bytes| bytes[20] = 0x1b);
    assert!(escaped.contains("\\u{1b}") && !escaped.contains('\u{1b}'), "{escaped}");
    assert_eq!(
        with("frames", &|bytes| bytes[24] = 9),
        "memory/frames: offset 24: first frame of a run: expected 1, found 9"
    );
}

#[test]
fn later_features_are_refused_by_name_and_unknown_fields_are_not() {
    let (_folder, whole) = save(1 << 20, Compression::None);
    let mut store = whole.clone();
    edit(&mut store, "\"needs\": []", "\"needs\": [\"encryption\"], \"cipher\": 9");
    let error = error_of(store).to_string();
    assert_eq!(
        error,
        "memory/manifest: needs \"encryption\", which this program does not know: use a newer one"
    );
    let mut store = whole;
    edit(&mut store, "\"needs\": []", "\"needs\": [], \"colour\": {\"of\": [\"the\", \"host\"]}");
    Snapshot::open_store(Box::new(store)).unwrap().verify().unwrap();
}

#[test]
fn large_claims_take_no_memory() {
    // A guest of 8 TiB of zeros has a small snapshot, and it opens.
    let (_folder, mut store) = save(1 << 20, Compression::Lz4);
    let tib8 = 8u64 << 40;
    let frames = (tib8 / FRAME_SIZE as u64) as u32;
    let mut runs = Vec::new();
    for (first, count, kind) in [(0u32, 1u32, 2u32), (1, frames - 1, 1)] {
        [first, count, kind, 0, 0, 0].iter().for_each(|word| runs.extend(word.to_le_bytes()));
    }
    let old = store.parts.insert("frames".into(), Arc::new(runs.clone())).unwrap();
    let (from, to) = (Checksum::of(&old).to_string(), Checksum::of(&runs).to_string());
    edit(&mut store, &from, &to);
    edit(&mut store, "\"zero\": 255", &format!("\"zero\": {}", frames - 1));
    let gib3 = 3u64 << 30;
    let ranges = format!(
        "\"ranges\": [{{\"start\": 0, \"bytes\": {gib3}}}, {{\"start\": {}, \"bytes\": {}}}], \"unused\": [",
        4u64 << 30,
        tib8 - gib3
    );
    edit(&mut store, "\"ranges\": [", &ranges);
    let snapshot = Snapshot::open_store(Box::new(store.clone())).unwrap();
    assert_eq!(snapshot.layout().bytes(), tib8);
    snapshot.verify().unwrap();

    // As many frames in the working set as the guest has, and no such file.
    let set = Arc::make_mut(store.parts.get_mut("working-set").unwrap());
    set[32..36].copy_from_slice(&frames.to_le_bytes());
    let checksum = Checksum::of(&set[..48]);
    set[48..56].copy_from_slice(&checksum.0.to_le_bytes());
    let snapshot = Snapshot::open_store(Box::new(store.clone())).unwrap();
    let error = snapshot.working_set().err().unwrap().to_string();
    assert!(error.contains("working-set: offset 0: length"), "{error}");

    store.parts.insert("manifest".into(), Arc::new(vec![b' '; (1 << 20) + 1]));
    let error = error_of(store).to_string();
    assert!(error.contains("length: expected at most 1048576"), "{error}");
}

#[test]
fn another_layout_is_refused() {
    let (_folder, whole) = save(1 << 20, Compression::None);
    for ranges in ["\"start\": 4096", "\"start\": 0, \"bytes\": 4096}, {\"start\": 4096"] {
        let mut store = whole.clone();
        edit(&mut store, "\"start\": 0", ranges);
        let error = error_of(store);
        assert!(matches!(error, SnapshotError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_manifest_says_what_was_told() {
    let (_folder, store) = save(1 << 20, Compression::Zstd);
    let snapshot = Snapshot::open_store(Box::new(store)).unwrap();
    let manifest = snapshot.manifest();
    assert_eq!(manifest.vm, description());
    assert_eq!((manifest.memory.frames.stored, manifest.memory.frames.zero), (1, 255));
}
