//! Snapshots with any bytes in them: used by tests and by the fuzz target `snapshot`.
//!
//! The input says which of a few small snapshots is meant, whether checksums are made right again, and then,
//! in steps of 8 bytes, what is changed: which part, how, where, by what.

use std::sync::{Arc, OnceLock};

use memory::{DiskBlock, FRAME_SIZE, Frame, FrameRange, RamLayout};
use snapshot::{
    Batch, Checksum, Compression, DiskBlocks, Id, InMemory, Left, Options, Sharing, Snapshot,
    SnapshotError, Writer,
};

use super::support::description;

pub(crate) const FRAMES: u32 = 160;
/// Bytes of a chunk's record: docs/formats/snapshot.md.
const RECORD: usize = 288;

pub(crate) type Page = [u8; FRAME_SIZE];

/// A frame's contents in the snapshots, whatever it is told to be.
pub(crate) fn page(frame: Frame) -> Page {
    match frame.0 {
        0..20 | 150.. => [0; FRAME_SIZE],
        number => {
            let mut page = [number as u8; FRAME_SIZE];
            page[..4].copy_from_slice(&number.to_le_bytes());
            page
        }
    }
}

struct Disk;

impl DiskBlocks for Disk {
    fn read(&self, block: DiskBlock, into: &mut Page) -> std::io::Result<()> {
        *into = page(Frame(block.block as u32));
        Ok(())
    }
}

/// Plain, and children of it: compressed by either, and plain; and one that has contents in common with it.
fn all() -> &'static [InMemory; 5] {
    static ALL: OnceLock<[InMemory; 5]> = OnceLock::new();
    ALL.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let save = |name: &str, compression, parent: Option<Arc<Snapshot>>, sharing| {
            let path = folder.path().join(name);
            let layout = RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).expect("a layout");
            let (id, is_child) = (Some(Id([compression as u8; 16])), parent.is_some());
            let options = Options { compression, parent, id, sharing, layout };
            let writer = Writer::create(&path, options).expect("begun");
            let run = |first, count| FrameRange { first: Frame(first), count };
            writer.leave(run(0, 10), Left::Zero).expect("left");
            writer.leave(run(10, 10), Left::Free).expect("left");
            let mut lane = writer.lane().expect("a lane");
            for frame in (20..130).map(Frame) {
                if is_child && frame.0 < 50 {
                    writer.unchanged(run(frame.0, 1)).expect("unchanged");
                } else {
                    lane.write(frame, &page(frame)).expect("written");
                }
            }
            lane.finish().expect("written");
            for frame in (130..150).map(Frame) {
                let block = DiskBlock { disk: 3, block: u64::from(frame.0) };
                writer.leave_on_disk(frame, block, &page(frame)).expect("left");
            }
            writer.leave(run(150, 10), Left::Ballooned).expect("left");
            let order: Vec<Frame> = (40..125).rev().map(Frame).collect();
            writer.finish(description(), &[b' '; 500], &order).expect("saved");
            path
        };
        let base = save("base", Compression::None, None, None);
        let plain = Arc::new(InMemory::read(&base).expect("read"));
        let parent = Arc::new(Snapshot::open(&base).expect("whole"));
        let child = |name, compression| {
            let path = save(name, compression, Some(Arc::clone(&parent)), None);
            let parent = Some(Arc::clone(&plain));
            InMemory { parent, ..InMemory::read(&path).expect("read") }
        };
        let [lz4, zstd] =
            [("lz4", Compression::Lz4), ("zstd", Compression::Zstd)].map(|(n, c)| child(n, c));
        let last = child("plain", Compression::None);
        // Of what the first frames are in the base, so that there are extents of both and frames at their place.
        let few = {
            let path = folder.path().join("few");
            let layout = RamLayout::new(u64::from(FRAMES) * FRAME_SIZE as u64).expect("a layout");
            let writer = Writer::create(&path, Options::new(layout)).expect("begun");
            let mut lane = writer.lane().expect("a lane");
            (0..FRAMES).filter(|frame| frame % 32 < 20).map(Frame).for_each(|frame| {
                lane.write(frame, &page(frame)).expect("written");
            });
            lane.finish().expect("written");
            for first in (20..FRAMES).step_by(32) {
                let run = FrameRange { first: Frame(first), count: 12 };
                writer.leave(run, Left::Zero).expect("left");
            }
            writer.finish(description(), b"{}", &[]).expect("saved");
            Arc::new(Snapshot::open(&path).expect("whole"))
        };
        let path = save("shares", Compression::None, None, Some(Sharing::new(vec![few])));
        let shares = InMemory::read(&path).expect("read");
        assert!(shares.parts.contains_key("shared-1"));
        [(*plain).clone(), lz4, zstd, last, shares]
    })
}

/// Changes a snapshot as `input` says, and reads it in all ways. An error is an answer; wrong contents are not,
/// unless the checksums were made to fit.
pub(crate) fn run(input: &[u8]) -> Result<(), SnapshotError> {
    let Some((&which, steps)) = input.split_first() else { return Ok(()) };
    let mut store = all()[usize::from(which & 0x7f) % 5].clone();
    for step in steps.chunks_exact(8) {
        change(&mut store, step);
    }
    let sealed = which & 0x80 != 0;
    if sealed {
        seal(&mut store);
    }
    read_all(store, !sealed)
}

fn change(store: &mut InMemory, step: &[u8]) {
    let (part, how, value) = (usize::from(step[0]), step[1], step[2]);
    let at = u32::from_le_bytes([step[3], step[4], step[5], step[6]]);
    let Some(name) = store.parts.keys().nth(part % store.parts.len().max(1)).cloned() else {
        return;
    };
    if how % 16 == 15 {
        store.parts.remove(&name);
        return;
    }
    let Some(bytes) = store.parts.get_mut(&name) else { return };
    let bytes = Arc::make_mut(bytes);
    // Most of what there is to say is at the beginning of each part.
    let at = if how & 0x80 == 0 {
        at as usize % bytes.len().clamp(1, 400)
    } else {
        at as usize % bytes.len().max(1)
    };
    match how % 16 {
        0 => bytes.truncate(at),
        1 => bytes.extend(std::iter::repeat_n(value, at % 5000)),
        2 => {
            let end = bytes.len().min(at + 8);
            let number = u64::from(value) << (step[7] % 64);
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        3 => {
            let (end, fill) = (bytes.len().min(at + usize::from(step[7])), value);
            bytes[at..end].fill(fill);
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= value;
            }
        }
    }
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

fn put(bytes: &mut [u8], at: usize, checksum: Checksum) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = checksum.0.to_le_bytes();
    }
}

/// Makes checksums right, so that what they hide is looked at.
pub(crate) fn seal(store: &mut InMemory) {
    let memory = store.parts.get("memory").cloned().unwrap_or_default();
    if let Some(records) = store.parts.get_mut("chunks") {
        let records = Arc::make_mut(records);
        records.chunks_exact_mut(RECORD).for_each(|record| seal_record(record, &memory));
    }
    if let Some(set) = store.parts.get_mut("working-set") {
        seal_working_set(Arc::<Vec<u8>>::make_mut(set));
    }
    let Some(manifest) = store.parts.get("manifest") else { return };
    let line = manifest.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let mut json = manifest[line..].to_vec();
    if let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&json) {
        for (name, bytes) in &store.parts {
            if let Some(part) = value.pointer_mut(&format!("/parts/{name}")) {
                *part = serde_json::json!({
                    "bytes": bytes.len(),
                    "checksum": Checksum::of(bytes).to_string(),
                });
            }
        }
        if let Some(bytes) = value.pointer_mut("/parts/memory_bytes") {
            *bytes = memory.len().into();
        }
        json = serde_json::to_vec(&value).expect("JSON");
    }
    let mut sealed = format!("FATHOM-SNAPSHOT 1 {}\n", Checksum::of(&json)).into_bytes();
    sealed.extend(json);
    store.parts.insert("manifest".into(), Arc::new(sealed));
}

/// `data`: what the record's offset counts from.
fn seal_record(record: &mut [u8], data: &[u8]) {
    let (Some(offset), Some(stored)) = (long(record, 0), long(record, 8)) else { return };
    let stored = (stored & 0xffff_ffff) as usize;
    let chunk = usize::try_from(offset).ok().and_then(|at| data.get(at..)?.get(..stored));
    if let Some(chunk) = chunk {
        put(record, 16, Checksum::of(chunk));
    }
    let checksum = Checksum::of(&record[..280]);
    put(record, 280, checksum);
}

fn seal_working_set(set: &mut [u8]) {
    let Some(header) = set.get(..48) else { return };
    let (checksum, frames) = (Checksum::of(header), long(header, 32).unwrap_or(0) & 0xffff_ffff);
    put(set, 48, checksum);
    let records = (frames as usize).div_ceil(64).saturating_mul(RECORD);
    let data = 4096usize.saturating_add(records).next_multiple_of(4096);
    if data > set.len() {
        return;
    }
    let (records, data) = set.split_at_mut(data);
    for record in records[4096..].chunks_exact_mut(RECORD) {
        seal_record(record, data);
    }
}

fn read_all(store: InMemory, honest: bool) -> Result<(), SnapshotError> {
    let mut snapshot = Snapshot::open_store(Box::new(store))?;
    snapshot.set_disks(Arc::new(Disk));
    let mut first = Ok(());
    let mut note = |done: Result<(), SnapshotError>| {
        if first.is_ok() {
            first = done;
        }
    };
    note(snapshot.machine().map(drop));
    let check = |frame: Frame, contents: &Page| {
        assert!(!honest || *contents == page(frame), "frame {frame}: other contents, and no error");
    };
    let mut batch = Batch::new();
    // Made-up layouts may be large.
    for frame in (0..snapshot.layout().frames().min(2 * FRAMES)).map(Frame) {
        let mut contents = [0xff; FRAME_SIZE];
        let done = snapshot.read(frame, &mut contents);
        if done.is_ok() {
            check(frame, &contents);
        }
        note(done);
        note(snapshot.place_of(frame).and_then(|place| {
            place.map_or(Ok(()), |place| snapshot.read_place(place, &mut batch))
        }));
    }
    for place in snapshot.places().take(2 * FRAMES as usize) {
        let done = snapshot.read_place(place, &mut batch);
        if done.is_ok() {
            batch.iter().for_each(|(frame, contents)| check(frame, contents));
        }
        note(done);
    }
    match snapshot.working_set() {
        Ok(None) => {}
        Ok(Some(set)) => {
            for chunk in 0..set.chunks() {
                let done = set.read(chunk, &mut batch);
                if done.is_ok() {
                    batch.iter().for_each(|(frame, contents)| check(frame, contents));
                }
                note(done);
            }
        }
        Err(error) => note(Err(error)),
    }
    note(snapshot.verify());
    first
}
