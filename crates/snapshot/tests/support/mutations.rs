//! Golden snapshots, mutated: used by tests and by the fuzz target `snapshot`.
//!
//! A mutant is drawn number by number, from a generator or from a fuzzer's input: which golden snapshot, some changes, and
//! whether checksums are made right again. Changes keep what a file is made of where they can: whole records, numbers
//! at their places, pieces of the same part of another snapshot.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memory::{DiskBlock, FRAME_SIZE, Frame};
use serde_json::Value;
use snapshot::{Batch, DiskBlocks, InMemory, Snapshot, SnapshotError};

use super::hostile::{Page, seal};

/// Frames that are looked at of a mutant that says that it has many.
const FRAMES_MAX: u32 = 100;
const NAMES: [&str; 4] = ["v1-plain", "v1-lz4", "v1-zstd", "v1-extents"];
/// What parts consist of: bytes, words, entries, extents, runs, records of chunks, pages.
const GRAINS: [usize; 7] = [1, 4, 8, 16, 24, 288, 4096];

/// Where numbers come from.
pub(crate) type Draw<'a> = &'a mut dyn FnMut() -> u64;

/// A golden snapshot and what its frames have.
pub(crate) struct Golden {
    store: InMemory,
    pages: Vec<Page>,
}

/// Of golden snapshots all blocks are on disk 1: tests/golden.rs.
struct Disk;

impl DiskBlocks for Disk {
    fn read(&self, block: DiskBlock, into: &mut Page) -> std::io::Result<()> {
        let number = (block.block as u32).wrapping_sub(1000).wrapping_mul(1000);
        for (word, n) in into.as_chunks_mut::<4>().0.iter_mut().zip(0u32..) {
            *word = number.wrapping_add(n / 4).to_le_bytes();
        }
        Ok(())
    }
}

pub(crate) fn golden() -> &'static [Golden] {
    static GOLDEN: OnceLock<Vec<Golden>> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Of the fuzz targets, which are a crate of their own.
        let folder = match folder.ends_with("fuzz") {
            true => folder.join("../crates/snapshot/tests/golden"),
            false => folder.join("tests/golden"),
        };
        let read = |name: &str| InMemory::read(&folder.join(name)).expect("a golden snapshot");
        let plain = Arc::new(read(NAMES[0]));
        let with_pages = |name: &&str| {
            let parent = name.ends_with("4") || name.ends_with("zstd");
            let store = InMemory { parent: parent.then(|| Arc::clone(&plain)), ..read(name) };
            let mut snapshot = Snapshot::open_store(Box::new(store.clone())).expect("whole");
            snapshot.set_disks(Arc::new(Disk));
            snapshot.verify().expect("whole");
            let page = |frame| {
                let mut page = [0; FRAME_SIZE];
                snapshot.read(Frame(frame), &mut page).expect("whole");
                page
            };
            Golden { pages: (0..snapshot.layout().frames()).map(page).collect(), store }
        };
        NAMES.iter().map(with_pages).collect()
    })
}

/// A snapshot that is not as it was, perhaps.
pub(crate) struct Mutant {
    pub(crate) store: InMemory,
    /// What the frames must have that can be read; none where checksums were made to fit.
    pub(crate) pages: Option<&'static [Page]>,
    /// For a person.
    pub(crate) what: String,
}

pub(crate) fn draw(draw: Draw<'_>) -> Mutant {
    let which = below(draw, NAMES.len());
    let (mut store, mut what) = (golden()[which].store.clone(), NAMES[which].to_owned());
    for _ in 0..=below(draw, 4) {
        let parent = store.parent.clone().filter(|_| below(draw, 8) == 0);
        let done = match parent {
            Some(parent) => {
                let mut parent = (*parent).clone();
                let done = change(&mut parent, draw);
                store.parent = Some(Arc::new(parent));
                format!("parent's {done}")
            }
            None => change(&mut store, draw),
        };
        what = format!("{what}; {done}");
    }
    let sealed = below(draw, 2) == 1;
    if sealed {
        seal(&mut store);
        what += "; sealed";
    }
    let pages = (!sealed).then(|| &golden()[which].pages[..]);
    Mutant { store, pages, what }
}

fn below(draw: Draw<'_>, end: usize) -> usize {
    (draw() % end.max(1) as u64) as usize
}

/// A number that breaks arithmetic, or is near one that is right.
fn number(draw: Draw<'_>, now: u64) -> u64 {
    match below(draw, 8) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::from(u32::MAX),
        3 => now.wrapping_add(1),
        4 => now.wrapping_sub(1),
        5 => 1 << below(draw, 64),
        6 => (1 << below(draw, 64)) - 1,
        _ => draw(),
    }
}

/// A place in `bytes` and a length from there on, both of whole grains if there are such.
fn piece(draw: Draw<'_>, bytes: usize, grain: usize) -> (usize, usize) {
    let grains = bytes / grain;
    let at = below(draw, grains + 1);
    let count = below(draw, (grains - at).min(8) + 1);
    (at * grain, (count * grain).min(bytes - at * grain))
}

fn change(store: &mut InMemory, draw: Draw<'_>) -> String {
    let how = below(draw, 12);
    if how == 0 {
        return change_manifest(store, draw);
    }
    let names: Vec<String> = store.parts.keys().cloned().collect();
    if names.is_empty() {
        return "nothing left".to_owned();
    }
    let name = names[below(draw, names.len())].clone();
    if how == 1 {
        store.parts.remove(&name);
        return format!("{name} removed");
    }
    let other = &golden()[below(draw, NAMES.len())].store.parts;
    let other = other.get(&name).map_or(&[][..], |part| part);
    let bytes = Arc::make_mut(store.parts.get_mut(&name).expect("it is there"));
    let grain = GRAINS[below(draw, GRAINS.len())];
    let (at, length) = piece(draw, bytes.len(), grain);
    let done = match how {
        2 => {
            bytes.truncate(at);
            "cut"
        }
        3 => {
            bytes.resize(bytes.len() + below(draw, 5000), draw() as u8);
            "longer"
        }
        4 => {
            let end = bytes.len().min(at + [1, 2, 4, 8][below(draw, 4)]);
            let mut now = [0; 8];
            now[..end - at].copy_from_slice(&bytes[at..end]);
            let new = number(draw, u64::from_le_bytes(now)).to_le_bytes();
            bytes[at..end].copy_from_slice(&new[..end - at]);
            "number"
        }
        5 => {
            let from = below(draw, bytes.len().saturating_sub(length) + 1);
            bytes.copy_within(from..from + length, at);
            "copied within"
        }
        6 => {
            let from = below(draw, other.len().saturating_sub(length) + 1).min(other.len());
            let there = &other[from..other.len().min(from + length)];
            bytes[at..at + there.len()].copy_from_slice(there);
            "spliced"
        }
        7 => {
            *bytes = other.to_vec();
            "another's"
        }
        8 => {
            bytes.drain(at..at + length);
            "shorter inside"
        }
        9 => {
            let inside = bytes[at..at + length].to_vec();
            bytes.splice(at..at, inside);
            "doubled inside"
        }
        _ => {
            let at = below(draw, bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << below(draw, 8);
            }
            return format!("{name}: bit at {at}");
        }
    };
    format!("{name}: {done} at {at}, {length}")
}

/// Another number, text or nothing at one place of the manifest's JSON.
fn change_manifest(store: &mut InMemory, draw: Draw<'_>) -> String {
    let Some(manifest) = store.parts.get("manifest") else { return "no manifest".to_owned() };
    let begin = manifest.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let Ok(mut json) = serde_json::from_slice::<Value>(&manifest[begin..]) else {
        return "a manifest without JSON".to_owned();
    };
    let mut places = Vec::new();
    leaves(&json, &mut String::new(), &mut places);
    let place = places[below(draw, places.len())].clone();
    let value = json.pointer_mut(&place).expect("it is there");
    *value = match (below(draw, 8), &*value) {
        (0, _) => Value::Null,
        (1, _) => Value::Array(Vec::new()),
        (2, _) => "\u{1b}[2Jlz4".into(),
        (_, Value::Number(now)) => number(draw, now.as_u64().unwrap_or(0)).into(),
        (_, Value::String(text)) => {
            let mut text = text.clone().into_bytes();
            let at = below(draw, text.len());
            if let Some(byte) = text.get_mut(at) {
                *byte = draw() as u8 & 0x7f;
            }
            String::from_utf8_lossy(&text).into_owned().into()
        }
        (_, other) => Value::Array(vec![other.clone(); 3]),
    };
    let mut text = manifest[..begin].to_vec();
    text.extend(serde_json::to_vec(&json).expect("JSON"));
    store.parts.insert("manifest".to_owned(), Arc::new(text));
    format!("manifest{place}")
}

fn leaves(json: &Value, place: &mut String, found: &mut Vec<String>) {
    let length = place.len();
    let mut inside = |name: &str, value: &Value| {
        place.push('/');
        // An earlier change may have made a name of anything: RFC 6901, section 3.
        place.push_str(&name.replace('~', "~0").replace('/', "~1"));
        leaves(value, place, found);
        place.truncate(length);
    };
    match json {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| inside(name, value)),
        Value::Array(values) if !values.is_empty() => {
            values.iter().enumerate().for_each(|(n, value)| inside(&n.to_string(), value));
        }
        _ => found.push(place.clone()),
    }
}

/// Reads all of it in every way: an error is an answer; a panic is not, nor other contents without an error, nor an
/// error that does not say where.
pub(crate) fn read(mutant: &Mutant) -> Result<(), String> {
    let done = catch_unwind(AssertUnwindSafe(|| read_all(mutant)));
    match done {
        Err(_) => Err(format!("{}: a panic", mutant.what)),
        Ok(Err(what)) => Err(format!("{}: {what}", mutant.what)),
        Ok(Ok(())) => Ok(()),
    }
}

fn read_all(mutant: &Mutant) -> Result<(), String> {
    let mut snapshot = match Snapshot::open_store(Box::new(mutant.store.clone())) {
        Ok(snapshot) => snapshot,
        Err(error) => return says_where(mutant, &error),
    };
    snapshot.set_disks(Arc::new(Disk));
    let answer = |done: Result<(), SnapshotError>| match done {
        Err(error) => says_where(mutant, &error),
        Ok(()) => Ok(()),
    };
    let check = |frame: Frame, contents: &Page| {
        let Some(expected) = mutant.pages else { return Ok(()) };
        match expected.get(frame.index()) {
            Some(expected) if expected == contents => Ok(()),
            _ => Err(format!("frame {frame}: other contents, and no error")),
        }
    };
    answer(snapshot.machine().map(drop))?;
    let mut batch = Batch::new();
    for frame in (0..snapshot.layout().frames().min(FRAMES_MAX)).map(Frame) {
        let mut contents = [0xff; FRAME_SIZE];
        match snapshot.read(frame, &mut contents) {
            Ok(()) => check(frame, &contents)?,
            Err(error) => says_where(mutant, &error)?,
        }
        for wanted in [1, 16, 64] {
            let place = snapshot.place_around(frame, wanted);
            let read = |place| snapshot.read_place(place, &mut batch);
            answer(place.and_then(|place| place.map_or(Ok(()), read)))?;
        }
    }
    for place in snapshot.places().take(FRAMES_MAX as usize) {
        match snapshot.read_place(place, &mut batch) {
            Ok(()) => batch.iter().try_for_each(|(frame, contents)| check(frame, contents))?,
            Err(error) => says_where(mutant, &error)?,
        }
    }
    match snapshot.working_set() {
        Ok(None) => {}
        Ok(Some(set)) => {
            for chunk in 0..set.chunks() {
                match set.read(chunk, &mut batch) {
                    Ok(()) => batch.iter().try_for_each(|(frame, page)| check(frame, page))?,
                    Err(error) => says_where(mutant, &error)?,
                }
            }
        }
        Err(error) => says_where(mutant, &error)?,
    }
    answer(snapshot.verify())
}

/// One line for a terminal, which names a file and, where a file is not what it should be, a place in it.
fn says_where(mutant: &Mutant, error: &SnapshotError) -> Result<(), String> {
    let text = error.to_string();
    if text.chars().any(char::is_control) {
        return Err(format!("control characters: {text:?}"));
    }
    match error {
        SnapshotError::Corrupt { path, offset, expected, found, .. } => {
            if expected == found {
                return Err(format!("what was expected is what was found: {text}"));
            }
            let Some(name) = path.strip_prefix("memory/") else {
                return if path.starts_with("disk ") { Ok(()) } else { Err(text) };
            };
            // Of the parent, too, which has the same name here.
            let parent = mutant.store.parent.as_deref();
            let stores = [Some(&mutant.store), parent].into_iter().flatten();
            let longest = stores.filter_map(|store| store.parts.get(name)).map(|part| part.len());
            match longest.max() {
                // Past the end where more was expected there; and offsets may be what is wrong.
                Some(_) if mutant.pages.is_none() => Ok(()),
                Some(length) if *offset <= length as u64 => Ok(()),
                _ => Err(format!("no such place: {text}")),
            }
        }
        SnapshotError::Bug(what) => Err(format!("a bug: {what}")),
        SnapshotError::NoDisks { .. } => Err(text),
        SnapshotError::Host { path, .. }
        | SnapshotError::Version { path, .. }
        | SnapshotError::Needs { path, .. }
        | SnapshotError::Refused { path, .. }
        | SnapshotError::Parent { path, .. } => {
            if path.contains("memory") {
                Ok(())
            } else {
                Err(format!("no file: {text}"))
            }
        }
    }
}
