//! A snapshot that is written: frames in any order, from several threads, then the rest, then its name.

mod copy;
mod lane;
mod place;
mod share;
#[cfg(test)]
mod share_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use memory::{DiskBlock, FRAME_SIZE, Frame, FrameRange, RamLayout};

pub use lane::Lane;
pub use place::remove;
pub use share::Sharing;

use crate::checksum::{Checksum, Id, Running};
use crate::chunk::Record;
use crate::codec::Compression;
use crate::error::SnapshotError;
use crate::host::{Host, Output, RealHost};
use crate::manifest::{
    BYTES_MAX, Description, FEATURE_EXTENTS, MACHINE_BYTES_MAX, Manifest, Memory, Parent, Part,
    Parts, Totals, part, plain_bytes, ranges,
};
use crate::map::{BLOCK_END, FrameMap, Kind};
use crate::reader::{DiskBlocks, Snapshot};
use crate::working_set;
use place::Place;

/// How a snapshot is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest's memory.
    pub layout: RamLayout,
    /// Of the memory image and of the working set.
    pub compression: Compression,
    /// The snapshot that this one adds to.
    pub parent: Option<Arc<Snapshot>>,
    /// Which snapshot this is; by default a new one.
    pub id: Option<Id>,
    /// With what it has contents in common, if they are to be stored once.
    pub sharing: Option<Sharing>,
}

impl Options {
    /// A whole snapshot of such a guest, plain.
    pub fn new(layout: RamLayout) -> Options {
        let compression = Compression::None;
        Options { layout, compression, parent: None, id: None, sharing: None }
    }
}

/// Why a frame's contents are not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Left {
    /// It is all zeros.
    Zero,
    /// The guest has no use for it: restored, it reads as zeros.
    Free,
    /// It is in the balloon.
    Ballooned,
}

/// What has been saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Which snapshot it is.
    pub id: Id,
    /// Of its manifest.
    pub checksum: Checksum,
    /// Its frames by kind.
    pub frames: Totals,
    /// Bytes of the memory image, without its holes.
    pub image_bytes: u64,
    /// Bytes that are stored, but not in it, or not twice.
    pub shared_bytes: u64,
    /// What is left of the snapshot that was there before, if it could not be removed.
    pub old: Option<PathBuf>,
}

/// A snapshot on its way. Each frame is told once: its contents ([`Writer::lane`]), that they are on a
/// disk or in the parent, or why they are not saved. Dropped before [`Writer::finish`], or after an
/// error, it leaves nothing behind, and what had the name before keeps it.
pub struct Writer {
    shared: Arc<Shared>,
    place: Place,
    id: Id,
    sharing: Option<Sharing>,
}

/// What lanes share.
struct Shared {
    host: Arc<dyn Host>,
    layout: RamLayout,
    compression: Compression,
    parent: Option<Arc<Snapshot>>,
    memory: Box<dyn Output>,
    memory_path: String,
    /// What each frame was told to be, by [`told`].
    told: Box<[AtomicU8]>,
    /// Of each frame: checksum, or chunk and place in it.
    entries: Box<[AtomicU64]>,
    chunks: Mutex<Chunks>,
    on_disk: Mutex<Vec<(Frame, DiskBlock)>>,
    /// Where these blocks are read for the working set.
    disks: OnceLock<Arc<dyn DiskBlocks>>,
    /// A lane could not write what it was given.
    failed: AtomicBool,
}

#[derive(Default)]
struct Chunks {
    records: Vec<Record>,
    /// Bytes of the image so far.
    bytes: u64,
}

/// What a frame can be told to be.
mod told {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const ZERO: u8 = 1;
    pub(super) const STORED: u8 = 2;
    pub(super) const PARENT: u8 = 3;
    pub(super) const FREE: u8 = 4;
    pub(super) const BALLOONED: u8 = 5;
    pub(super) const DISK: u8 = 6;
}

impl Shared {
    /// Each frame is told once.
    fn claim(&self, frame: Frame, as_what: u8) -> Result<(), SnapshotError> {
        let bug = |why| Err(SnapshotError::Bug(format!("frame {frame}: {why}")));
        let Some(told) = self.told.get(frame.index()) else {
            return bug("past the end of guest memory");
        };
        let claimed =
            told.compare_exchange(told::NOTHING, as_what, Ordering::Relaxed, Ordering::Relaxed);
        if claimed.is_err() { bug("told twice") } else { Ok(()) }
    }

    fn set_entry(&self, frame: Frame, entry: u64) {
        self.entries[frame.index()].store(entry, Ordering::Relaxed);
    }

    /// Remembers that the snapshot cannot become whole.
    fn noted<T>(&self, result: Result<T, SnapshotError>) -> Result<T, SnapshotError> {
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl Writer {
    /// Begins a snapshot that will be the directory `path`. Its folder exists. A snapshot that is there already
    /// is replaced when this one is whole.
    ///
    /// # Errors
    /// Something else has the name, or another process saves there; or the host refuses.
    pub fn create(path: impl AsRef<Path>, options: Options) -> Result<Writer, SnapshotError> {
        Self::create_on(path.as_ref(), options, Arc::new(RealHost))
    }

    pub(crate) fn create_on(
        path: &Path,
        options: Options,
        host: Arc<dyn Host>,
    ) -> Result<Writer, SnapshotError> {
        let Options { layout, compression, parent, id, sharing } = options;
        if sharing.is_some() && (parent.is_some() || compression != Compression::None) {
            let why = "contents in common, and a parent or compression";
            return Err(SnapshotError::Bug(why.into()));
        }
        check_parent(path, &layout, parent.as_deref())?;
        let id = match id {
            Some(id) => id,
            None => Id::random().map_err(SnapshotError::host("read", "random numbers"))?,
        };
        let place = Place::make(path, Arc::clone(&host))?;
        let memory_path = place.directory().join(part::MEMORY);
        let name = memory_path.display().to_string();
        let memory = host.create(&memory_path).map_err(SnapshotError::host("create", &name))?;
        if compression == Compression::None {
            let bytes = plain_bytes(&layout);
            memory.set_len(bytes).map_err(SnapshotError::host("set the length of", &name))?;
        }
        let shared = Shared {
            host,
            layout,
            compression,
            parent,
            memory,
            memory_path: name,
            told: (0..layout.frames()).map(|_| AtomicU8::default()).collect(),
            entries: (0..layout.frames()).map(|_| AtomicU64::default()).collect(),
            chunks: Mutex::default(),
            on_disk: Mutex::default(),
            disks: OnceLock::new(),
            failed: AtomicBool::new(false),
        };
        Ok(Writer { shared: Arc::new(shared), place, id, sharing })
    }

    /// A way in for frames, for one thread. Frames of one lane that come together are stored together: give
    /// them in the order in which they will be wanted. Make as many as there are threads.
    ///
    /// # Errors
    /// There is no memory for a compressor.
    pub fn lane(&self) -> Result<Lane, SnapshotError> {
        Lane::new(Arc::clone(&self.shared))
    }

    /// Leaves `frames` out. From any thread.
    ///
    /// # Errors
    /// One of them was told before, or does not exist: the snapshot cannot become whole any more.
    pub fn leave(&self, frames: FrameRange, why: Left) -> Result<(), SnapshotError> {
        let kind = match why {
            Left::Zero => told::ZERO,
            Left::Free => told::FREE,
            Left::Ballooned => told::BALLOONED,
        };
        self.shared.noted(frames.frames().try_for_each(|frame| self.shared.claim(frame, kind)))
    }

    /// Where blocks can be read that frames are left out for: what of them is in the working set has its contents there,
    /// too. Told once; without it they are left out of the working set.
    pub fn set_disks(&self, disks: Arc<dyn DiskBlocks>) {
        let _ = self.shared.disks.set(disks);
    }

    /// Leaves `frame` out, as its contents, `contents`, are in `block` of a disk. That they are, and
    /// stay, is what the caller knows; a restore compares their checksum. From any thread.
    ///
    /// # Errors
    /// As for [`Writer::leave`]; or there is no such block.
    pub fn leave_on_disk(
        &self,
        frame: Frame,
        block: DiskBlock,
        contents: &[u8; FRAME_SIZE],
    ) -> Result<(), SnapshotError> {
        if block.block >= BLOCK_END - 1 {
            let why = format!("frame {frame}: block {} of a disk", block.block);
            return self.shared.noted(Err(SnapshotError::Bug(why)));
        }
        self.shared.noted(self.shared.claim(frame, told::DISK))?;
        self.shared.set_entry(frame, Checksum::of(contents).0);
        let mut on_disk = self.shared.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        on_disk.push((frame, block));
        Ok(())
    }

    /// The contents of `frames` have not changed since the parent was saved. From any thread.
    ///
    /// # Errors
    /// As for [`Writer::leave`]; or the parent has left one of them out for another reason than that it was all
    /// zeros: what was free, ballooned or on a disk then must be told anew.
    pub fn unchanged(&self, frames: FrameRange) -> Result<(), SnapshotError> {
        self.shared.noted(frames.frames().try_for_each(|frame| {
            let kind = self.shared.parent.as_ref().and_then(|parent| parent.kind(frame));
            let kind = match kind {
                Some(Kind::Stored | Kind::Parent) => told::PARENT,
                Some(Kind::Zero) => told::ZERO,
                other => {
                    let why =
                        format!("frame {frame}: unchanged since the parent had it as {other:?}");
                    return Err(SnapshotError::Bug(why));
                }
            };
            self.shared.claim(frame, kind)
        }))
    }

    /// Makes the snapshot whole and gives it its name: everything is on the disk when this returns.
    ///
    /// `machine` is the state of the machine, JSON of the version that `vm` says. `working_set` are the frames
    /// that the guest needs first, in that order; those whose contents are in no image are left out of it.
    ///
    /// # Errors
    /// A lane is not finished, a frame was not told, or the host refuses. Nothing is left behind.
    pub fn finish(
        self,
        vm: Description,
        machine: &[u8],
        working_set: &[Frame],
    ) -> Result<Saved, SnapshotError> {
        let Writer { shared, place, id, sharing } = self;
        let shared = Arc::into_inner(shared)
            .ok_or_else(|| SnapshotError::Bug("a lane is not finished".into()))?;
        if shared.failed.load(Ordering::Relaxed) {
            return Err(SnapshotError::Bug("finished after an error".into()));
        }
        if machine.len() as u64 > MACHINE_BYTES_MAX {
            let why =
                format!("machine state of {} bytes, at most {MACHINE_BYTES_MAX}", machine.len());
            return Err(SnapshotError::Bug(why));
        }
        let map = shared.map()?;
        let chunks = shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_plain = shared.compression == Compression::None;
        let (memory_bytes, image_bytes) = if is_plain {
            (plain_bytes(&shared.layout), u64::from(map.totals().stored) * FRAME_SIZE as u64)
        } else {
            (chunks.bytes, chunks.bytes)
        };
        let memory = &shared.memory;
        let files = Files { host: &*shared.host, directory: place.directory() };
        let found = sharing.as_ref().map(|sharing| shared.share(sharing, &files)).transpose()?;
        let found = found.unwrap_or_default();
        memory.sync().map_err(SnapshotError::host("sync", &shared.memory_path))?;
        let parts = Parts {
            machine: files.write(part::MACHINE, [machine].into_iter())?,
            frames: files.write(part::FRAMES, [map.encode()].into_iter())?,
            index: files.write(part::INDEX, shared.index(&map))?,
            memory_bytes,
            chunks: (!is_plain)
                .then(|| files.write(part::CHUNKS, chunks.records.iter().map(Record::encode)))
                .transpose()?,
            extents: found.extents,
            shared_bytes: found.shared_bytes,
        };
        let (ranges, compression, frames) =
            (ranges(&shared.layout), shared.compression, map.totals());
        let memory = Memory { ranges, compression, frames };
        let parent = shared.parent.as_deref().map(|parent| reference(parent, &place));
        let needs = parts.extents.iter().map(|_| FEATURE_EXTENTS.to_owned()).collect();
        let manifest = Manifest { id, needs, vm, memory, parent, parts };
        let (bytes, checksum) = manifest.encode()?;
        if bytes.len() as u64 > BYTES_MAX {
            let why = format!("manifest of {} bytes, at most {BYTES_MAX}", bytes.len());
            return Err(SnapshotError::Bug(why));
        }
        files.write(part::MANIFEST, [bytes].into_iter())?;
        if !working_set.is_empty() {
            shared.write_working_set(place.directory(), working_set)?;
        }
        let old = place.take()?;
        let shared_bytes = u64::from(found.frames) * FRAME_SIZE as u64;
        let image_bytes = image_bytes - shared_bytes;
        Ok(Saved { id, checksum, frames, image_bytes, shared_bytes, old })
    }
}

impl Shared {
    /// What all frames were told to be.
    fn map(&self) -> Result<FrameMap, SnapshotError> {
        let mut on_disk = self.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        on_disk.sort_unstable();
        let mut on_disk = on_disk.iter();
        let mut map = FrameMap::new();
        for (number, told) in self.told.iter().enumerate() {
            let kind = match told.load(Ordering::Relaxed) {
                told::ZERO => Kind::Zero,
                told::STORED => Kind::Stored,
                told::PARENT => Kind::Parent,
                told::FREE => Kind::Free,
                told::BALLOONED => Kind::Ballooned,
                told::DISK => match on_disk.next() {
                    Some((_, block)) => Kind::Disk(*block),
                    None => return Err(SnapshotError::Bug(format!("frame {number}: no block"))),
                },
                _ => return Err(SnapshotError::Bug(format!("frame {number}: not told"))),
            };
            map.push(kind, 1);
        }
        Ok(map)
    }

    /// The entries of those frames that have one, in pieces.
    fn index(&self, map: &FrameMap) -> impl Iterator<Item = Vec<u8>> {
        let indexed =
            map.runs().iter().filter(|run| matches!(run.kind, Kind::Stored | Kind::Disk(_)));
        indexed.map(|run| {
            let entries = &self.entries[run.first.index()..][..run.count as usize];
            entries.iter().flat_map(|entry| entry.load(Ordering::Relaxed).to_le_bytes()).collect()
        })
    }

    /// The contents are read from what was written, and checked on the way.
    fn write_working_set(&self, directory: &Path, frames: &[Frame]) -> Result<(), SnapshotError> {
        let store = self.host.store(directory);
        let store = store.map_err(SnapshotError::host("open", directory.display()))?;
        let mut snapshot = Snapshot::open_store(store)?;
        let unread = |frame: &Frame| matches!(snapshot.kind(*frame), Some(Kind::Disk(_)));
        let mut frames = frames.to_vec();
        match self.disks.get() {
            Some(disks) => snapshot.set_disks(Arc::clone(disks)),
            None => frames.retain(|frame| !unread(frame)),
        }
        let path = directory.join(part::WORKING_SET);
        working_set::write(&*self.host, &path, &snapshot, &frames, self.compression)
    }
}

/// Files of a directory, each written at once.
struct Files<'a> {
    host: &'a dyn Host,
    directory: &'a Path,
}

/// Pieces are gathered until they are this large.
const GATHER: usize = 1 << 20;

impl Files<'_> {
    fn write<P: AsRef<[u8]>>(
        &self,
        name: &str,
        pieces: impl Iterator<Item = P>,
    ) -> Result<Part, SnapshotError> {
        let path = self.directory.join(name);
        let refused = |operation| SnapshotError::host(operation, path.display());
        let file = self.host.create(&path).map_err(refused("create"))?;
        let (mut running, mut gathered, mut at) = (Running::new(), Vec::new(), 0);
        let mut put = |gathered: &mut Vec<u8>| {
            running.add(gathered);
            let written = file.write_all_at(gathered, at).map_err(refused("write"));
            at += gathered.len() as u64;
            gathered.clear();
            written
        };
        for piece in pieces {
            gathered.extend_from_slice(piece.as_ref());
            if gathered.len() >= GATHER {
                put(&mut gathered)?;
            }
        }
        put(&mut gathered)?;
        file.sync().map_err(refused("sync"))?;
        Ok(Part { bytes: at, checksum: running.checksum() })
    }
}

/// A child has as much memory as its parent, and does not take its parent's place.
fn check_parent(
    path: &Path,
    layout: &RamLayout,
    parent: Option<&Snapshot>,
) -> Result<(), SnapshotError> {
    let Some(first) = parent else { return Ok(()) };
    if first.layout() != layout {
        let (theirs, ours) = (first.layout().bytes(), layout.bytes());
        let why = format!("its parent has {theirs} bytes of guest memory, not {ours}");
        return Err(SnapshotError::Refused { path: path.display().to_string(), why });
    }
    let there = path.canonicalize().ok();
    let ancestors = std::iter::successors(parent, |snapshot| snapshot.parent().map(|next| &**next));
    for directory in ancestors.filter_map(|snapshot| snapshot.store().directory()) {
        if there.is_some() && directory.canonicalize().ok() == there {
            let why = "is what the new snapshot adds to: give another path".into();
            return Err(SnapshotError::Refused { path: path.display().to_string(), why });
        }
    }
    Ok(())
}

/// How the child names its parent: by its name where both are in one folder, so that the folder can be moved.
fn reference(parent: &Snapshot, place: &Place) -> Parent {
    let whole = parent.store().directory().and_then(|path| path.canonicalize().ok());
    let beside = place.folder().canonicalize().ok();
    let path = match &whole {
        Some(whole) if whole.parent() == beside.as_deref() => {
            whole.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        }
        Some(whole) => whole.display().to_string(),
        None => parent.store().name(),
    };
    Parent { path, id: parent.manifest().id, checksum: parent.checksum() }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("path", &self.place.path())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
