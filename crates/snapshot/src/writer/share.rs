//! Contents that other snapshots have already, or this one twice, are not stored again: once all frames are written, runs
//! of them are looked for by their checksums, compared in full, and become holes.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use memory::{FRAME_SIZE, Frame, FrameRange};

use super::{Files, Shared, told};
use crate::error::SnapshotError;
use crate::extents::{EXTENTS_MAX, Extent, SHARED_MAX};
use crate::manifest::{Part, part};
use crate::reader::Snapshot;
use crate::store::{PartFile, ReadAt};

/// So many places of the same contents are tried for the longest run.
const PLACES_TRIED: usize = 4;
/// Shorter runs are stored: a mapping of each VM costs more than they spare as soon as some dozens go on from here.
const SHORTEST: u32 = 4;
/// Frames compared at a time.
const COMPARED: u32 = 64;

/// What a snapshot may have in common with others. It is plain and has no parent then.
#[derive(Clone, Debug)]
pub struct Sharing {
    with: Vec<Arc<Snapshot>>,
    /// Runs, at most; the longest are taken.
    most: usize,
    /// Frames of a run, at least.
    least: u32,
    /// Bits of checksums that are looked at: less than all of them in tests.
    mask: u64,
}

impl Sharing {
    /// With these, all in directories of the file system that it is written to: their files get another name in its
    /// directory, so that they may go. Compressed ones, and those of other places, have nothing to share.
    pub fn new(with: Vec<Arc<Snapshot>>) -> Self {
        Self { with, most: EXTENTS_MAX, least: SHORTEST, mask: u64::MAX }
    }

    /// Runs of so few frames, too, instead of 4: each is a mapping of who lies over it.
    #[must_use]
    pub fn at_least(self, frames: u32) -> Self {
        Self { least: frames, ..self }
    }

    #[cfg(test)]
    pub(super) fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Contents with other checksums are taken for the same.
    #[cfg(test)]
    pub(super) fn with_collisions(self) -> Self {
        Self { mask: 3, ..self }
    }
}

/// What was found to be elsewhere.
#[derive(Default)]
pub(super) struct Found {
    /// The part `extents`, if there are any.
    pub(super) extents: Option<Part>,
    pub(super) shared_bytes: Vec<u64>,
    /// Frames that are not stored for it.
    pub(super) frames: u32,
}

/// A file of other snapshots.
struct Theirs {
    /// A name of it.
    path: PathBuf,
    id: (u64, u64),
    bytes: u64,
    file: Arc<dyn ReadAt>,
    /// Checksums of its frames, as far as they are known; else 0.
    sums: Vec<u64>,
}

/// Where contents are looked for.
struct Places {
    /// Number 1 and so on.
    files: Vec<Theirs>,
    /// By checksum: a file, and a frame of it.
    known: Vec<(u64, u32, u32)>,
}

impl Shared {
    /// Finds what `sharing` has of what was written, and makes holes in its place.
    pub(super) fn share(
        &self,
        sharing: &Sharing,
        files: &Files<'_>,
    ) -> Result<Found, SnapshotError> {
        let places = Places::of(sharing);
        let sums = self.sums(sharing.mask);
        let store = self.host.store(files.directory);
        let store = store.map_err(SnapshotError::host("open", files.directory.display()))?;
        let own = PartFile::open(&*store, part::MEMORY)?;
        let mut runs = Vec::new();
        for run in places.choose(&sums) {
            places.compare(run, &own, &mut runs)?;
        }
        // What is left out by a bound is stored after all.
        runs.retain(|run| run.frames.count >= sharing.least);
        let used = keep_best(&mut runs, sharing.most);
        if runs.is_empty() {
            return Ok(Found::default());
        }
        for run in &runs {
            let page = FRAME_SIZE as u64;
            let (at, bytes) =
                (u64::from(run.frames.first.0) * page, u64::from(run.frames.count) * page);
            let punched = self.memory.punch(at, bytes);
            punched.map_err(SnapshotError::host("make a hole in", &self.memory_path))?;
        }
        let mut shared_bytes = Vec::new();
        for (number, file) in (1..).zip(used) {
            let theirs = &places.files[file as usize - 1];
            theirs.link(files, number)?;
            shared_bytes.push(theirs.bytes);
        }
        let frames = runs.iter().map(|run| run.frames.count).sum();
        let extents = files.write(part::EXTENTS, [Extent::encode_all(&runs)].into_iter())?;
        Ok(Found { extents: Some(extents), shared_bytes, frames })
    }

    /// Of each frame that is stored; else 0.
    fn sums(&self, mask: u64) -> Vec<u64> {
        use std::sync::atomic::Ordering::Relaxed;
        let stored = self.told.iter().map(|told| told.load(Relaxed) == told::STORED);
        let sum = |(entry, stored): (&std::sync::atomic::AtomicU64, bool)| match stored {
            true => known_by(entry.load(Relaxed), mask),
            false => 0,
        };
        self.entries.iter().zip(stored).map(sum).collect()
    }
}

/// 0 is for what is not known.
fn known_by(sum: u64, mask: u64) -> u64 {
    (sum & mask).max(1)
}

impl Theirs {
    fn link(&self, files: &Files<'_>, number: usize) -> Result<(), SnapshotError> {
        let to = files.directory.join(part::shared(number));
        let linked = files.host.link(&self.path, &to);
        linked.map_err(SnapshotError::host("give another name to", self.path.display()))?;
        // The name may be of another snapshot by now.
        let found = rustix::fs::lstat(&to).map(|found| (found.st_dev, found.st_ino));
        if found != Ok(self.id) {
            let (path, why) =
                (self.path.display().to_string(), "was replaced meanwhile: try again");
            return Err(SnapshotError::Refused { path, why: why.into() });
        }
        Ok(())
    }
}

impl Places {
    /// What cannot be read, or linked, is no place.
    fn of(sharing: &Sharing) -> Places {
        let mut places = Places { files: Vec::new(), known: Vec::new() };
        let mut numbers = BTreeMap::new();
        for snapshot in &sharing.with {
            let Some(directory) = snapshot.store().directory() else { continue };
            for (sum, file, at) in snapshot.stored_frames().unwrap_or_default() {
                let Some((part, name)) = snapshot.image_file(file) else { continue };
                let id = part.file.descriptor().and_then(|file| rustix::fs::fstat(file).ok());
                let Some(id) = id.map(|found| (found.st_dev, found.st_ino)) else { continue };
                let number = *numbers.entry(id).or_insert_with(|| {
                    let (path, file) = (directory.join(name), Arc::clone(&part.file));
                    let sums = vec![0; (part.bytes / FRAME_SIZE as u64) as usize];
                    places.files.push(Theirs { path, id, bytes: part.bytes, file, sums });
                    places.files.len() as u32
                });
                let known = places.files[number as usize - 1].sums.get_mut(at as usize);
                if let Some(known) = known.filter(|known| **known == 0) {
                    *known = known_by(sum.0, sharing.mask);
                    places.known.push((*known, number, at));
                }
            }
        }
        places.known.sort_unstable();
        places
    }

    /// Runs of frames that are elsewhere by their checksums, none of them twice; those that are in the same file before are
    /// where something is stored.
    fn choose(&self, sums: &[u64]) -> Vec<Extent> {
        let mut runs = Vec::new();
        // Our own frames that stay where they are: by place, and the first of each checksum.
        let (mut own, mut first_own) = (vec![0; sums.len()], HashMap::new());
        let mut at = 0;
        while at < sums.len() {
            let sum = sums[at];
            if sum == 0 {
                at += 1;
                continue;
            }
            let start = self.known.partition_point(|known| known.0 < sum);
            let theirs = self.known[start..].iter().take_while(|known| known.0 == sum);
            let theirs = theirs.take(PLACES_TRIED).map(|(_, file, place)| (*file, *place));
            let ours = first_own.get(&sum).map(|place| (0, *place));
            let length = |file: u32, place: u32| {
                let there = match file {
                    0 => &own[place as usize..],
                    _ => &self.files[file as usize - 1].sums[place as usize..],
                };
                let pairs = sums[at..].iter().zip(there);
                pairs.take_while(|(ours, theirs)| **ours != 0 && ours == theirs).count()
            };
            let lengths =
                theirs.chain(ours).map(|(file, place)| (length(file, place), file, place));
            match lengths.max_by_key(|(length, file, _)| (*length, std::cmp::Reverse(*file))) {
                Some((length, file, place)) => {
                    let frames = FrameRange { first: Frame(at as u32), count: length as u32 };
                    runs.push(Extent { frames, file, at: place });
                    at += length;
                }
                None => {
                    own[at] = sum;
                    first_own.entry(sum).or_insert(at as u32);
                    at += 1;
                }
            }
        }
        runs
    }

    /// Adds those parts of `run` that are the same, byte by byte. What of theirs cannot be read is not.
    fn compare(
        &self,
        run: Extent,
        own: &PartFile,
        same: &mut Vec<Extent>,
    ) -> Result<(), SnapshotError> {
        let theirs = run.file.checked_sub(1).map(|number| &self.files[number as usize].file);
        let (mut ours, mut there) = (vec![0; COMPARED as usize * FRAME_SIZE], Vec::new());
        there.resize(ours.len(), 0);
        let mut last: Option<Extent> = None;
        for done in (0..run.frames.count).step_by(COMPARED as usize) {
            let count = COMPARED.min(run.frames.count - done);
            let bytes = count as usize * FRAME_SIZE;
            let place = |frame: u32| u64::from(frame + done) * FRAME_SIZE as u64;
            own.read(&mut ours[..bytes], place(run.frames.first.0))?;
            let there = &mut there[..bytes];
            let is_read = match theirs {
                Some(theirs) => theirs.read_exact_at(there, place(run.at)).is_ok(),
                None => own.read(there, place(run.at)).map(|()| true)?,
            };
            let pages = ours.as_chunks::<FRAME_SIZE>().0.iter().zip(there.as_chunks().0);
            for (number, (ours, theirs)) in (done..done + count).zip(pages) {
                if !is_read || ours != theirs {
                    same.extend(last.take());
                    continue;
                }
                match &mut last {
                    Some(last) => last.frames.count += 1,
                    None => {
                        let first = Frame(run.frames.first.0 + number);
                        let frames = FrameRange { first, count: 1 };
                        last = Some(Extent { frames, file: run.file, at: run.at + number });
                    }
                }
            }
        }
        same.extend(last);
        Ok(())
    }
}

/// Leaves those runs that spare most, within the bounds of the format, by rising frame; which files they are of, in the
/// order of their new numbers.
fn keep_best(runs: &mut Vec<Extent>, most: usize) -> Vec<u32> {
    let mut frames: BTreeMap<u32, u64> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.file > 0) {
        *frames.entry(run.file).or_default() += u64::from(run.frames.count);
    }
    let mut files: Vec<u32> = frames.keys().copied().collect();
    files.sort_by_key(|file| std::cmp::Reverse(frames[file]));
    files.truncate(SHARED_MAX);
    runs.retain(|run| run.file == 0 || files.contains(&run.file));
    runs.sort_by_key(|run| std::cmp::Reverse(run.frames.count));
    runs.truncate(most.min(EXTENTS_MAX));
    files.retain(|file| runs.iter().any(|run| run.file == *file));
    let numbers: HashMap<u32, u32> = files.iter().copied().zip(1..).collect();
    for run in runs.iter_mut() {
        run.file = numbers.get(&run.file).copied().unwrap_or(0);
    }
    runs.sort_by_key(|run| run.frames.first);
    files
}
