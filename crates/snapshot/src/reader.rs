//! A snapshot that is read: whole, by frame, or in the order of its files.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memory::{DiskBlock, FRAME_SIZE, Frame, FrameRange, RamLayout, Source, SourceError};

use crate::checksum::Checksum;
use crate::chunk::{Batch, CHUNK_FRAMES, Page, RECORD_BYTES, Record};
use crate::codec::Compression;
use crate::error::SnapshotError;
use crate::extents::{Extent, Extents};
use crate::manifest::{MACHINE_BYTES_MAX, Manifest, Parent, part, plain_bytes};
use crate::map::{FrameMap, Kind, Run};
use crate::store::{Directory, PartFile, Store};
use crate::working_set::WorkingSet;

/// A snapshot with more ancestors than this is refused: each may have to be asked for a frame.
const ANCESTORS_MAX: usize = 32;
/// Chunks that are kept decompressed, 256 KiB each, for the next read near the last.
const CHUNKS_KEPT: usize = 8;
/// Bytes that a check of a whole file reads at once.
const CHECK_PIECE: usize = 1 << 20;

/// The disks, for frames that were left out because they can be read there.
pub trait DiskBlocks: Send + Sync {
    /// Reads one block of 4 KiB.
    fn read(&self, block: DiskBlock, into: &mut [u8; FRAME_SIZE]) -> io::Result<()>;

    /// Reads neighbouring blocks, one for each 4 KiB of `into`.
    fn read_run(&self, first: DiskBlock, into: &mut [u8]) -> io::Result<()> {
        for (number, page) in into.as_chunks_mut().0.iter_mut().enumerate() {
            self.read(DiskBlock { block: first.block + number as u64, ..first }, page)?;
        }
        Ok(())
    }
}

/// A snapshot, open and checked, with its ancestors. All reads are by position, from any thread.
pub struct Snapshot {
    store: Box<dyn Store>,
    manifest: Manifest,
    checksum: Checksum,
    layout: RamLayout,
    map: FrameMap,
    machine: PartFile,
    index: PartFile,
    image: PartFile,
    /// Of a compressed image.
    chunks: Option<Chunks>,
    extents: Extents,
    parent: Option<Arc<Snapshot>>,
    disks: Option<Arc<dyn DiskBlocks>>,
}

struct Chunks {
    records: PartFile,
    compression: Compression,
    /// The last ones used, the latest at the end.
    kept: Mutex<Vec<(u32, Arc<Batch>)>>,
}

/// Frames that are read at the cost of one: neighbours in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// In whose image: 0 is the snapshot itself, 1 its parent.
    ancestor: u8,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// Up to 64 frames of a plain image.
    Plain { first: Frame, count: u32 },
    /// A chunk of a compressed one.
    Chunk(u32),
    /// Up to 64 frames in neighbouring blocks of a disk.
    Disk { first: Frame, count: u32 },
}

/// A memory image that can be mapped: each stored frame is at `offset` plus its number times 4096, unless an extent says
/// another place. The rest are holes, which read as zeros.
#[derive(Clone, Debug)]
pub struct PlainImage<'a> {
    /// The file. It may be cut short by others while it is mapped: an access past its end is then SIGBUS.
    pub file: BorrowedFd<'a>,
    /// Where frame 0 is: a multiple of 2 MiB.
    pub offset: u64,
    /// By rising frame.
    pub extents: &'a [Extent],
    /// Of the extents: the first is their number 1.
    pub shared: Vec<BorrowedFd<'a>>,
}

impl Snapshot {
    /// Opens the snapshot in the directory `path`, and its ancestors. What is checked: everything but the
    /// contents of frames, of the index and of the machine's state, which are when they are read. Takes time
    /// and memory by the number of runs of frames, not by the guest's memory.
    ///
    /// # Errors
    /// Any part is missing, or is not what the manifest says.
    pub fn open(path: impl AsRef<Path>) -> Result<Snapshot, SnapshotError> {
        let path = path.as_ref();
        let directory =
            Directory::open(path).map_err(SnapshotError::host("open", path.display()))?;
        Self::open_store(Box::new(directory))
    }

    /// As [`Snapshot::open`], from anywhere.
    ///
    /// # Errors
    /// As for [`Snapshot::open`].
    pub fn open_store(store: Box<dyn Store>) -> Result<Snapshot, SnapshotError> {
        Self::open_generation(store, 0)
    }

    fn open_generation(store: Box<dyn Store>, descendants: usize) -> Result<Self, SnapshotError> {
        Self::open_with(store, |store, manifest| open_parent(store, manifest, descendants))
    }

    /// As [`Snapshot::open_store`], with a parent that is open already: the manifest says which it must be.
    pub(crate) fn open_beside(
        store: Box<dyn Store>,
        parent: Option<Arc<Snapshot>>,
    ) -> Result<Self, SnapshotError> {
        Self::open_with(store, |store, manifest| match (&manifest.parent, parent) {
            (Some(reference), Some(parent)) => check_parent(store, reference, parent).map(Some),
            _ => Ok(None),
        })
    }

    fn open_with(
        store: Box<dyn Store>,
        parent: impl FnOnce(&dyn Store, &Manifest) -> Result<Option<Arc<Snapshot>>, SnapshotError>,
    ) -> Result<Self, SnapshotError> {
        let (manifest, checksum) = Manifest::read(&*store)?;
        let name = store.name();
        let layout = manifest.layout(&name)?;
        let parts = &manifest.parts;
        let machine = PartFile::open_sized(&*store, part::MACHINE, parts.machine.bytes)?;
        if machine.bytes > MACHINE_BYTES_MAX {
            let expected = format!("at most {MACHINE_BYTES_MAX}");
            return Err(machine.corrupt(0, "length", expected, machine.bytes));
        }
        let frames = PartFile::open_sized(&*store, part::FRAMES, parts.frames.bytes)?;
        let map = FrameMap::read(&frames, &parts.frames, layout.frames())?;
        if map.totals() != manifest.memory.frames {
            let (expected, found) = (manifest.memory.frames, map.totals());
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            return Err(frames.corrupt(0, "frames of each kind", expected, found));
        }
        let index = PartFile::open_sized(&*store, part::INDEX, parts.index.bytes)?;
        let entries = u64::from(map.indexed()) * 8;
        if index.bytes != entries {
            return Err(index.corrupt(0, "length", entries, index.bytes));
        }
        let image = PartFile::open_sized(&*store, part::MEMORY, parts.memory_bytes)?;
        let chunks = Chunks::open(&*store, &manifest, &image, plain_bytes(&layout))?;
        let extents = Extents::open(&*store, &manifest, &image, &map)?;
        let parent = parent(&*store, &manifest)?;
        let snapshot = Snapshot {
            store,
            manifest,
            checksum,
            layout,
            map,
            machine,
            index,
            image,
            chunks,
            extents,
            parent,
            disks: None,
        };
        snapshot.check_parent(&frames)?;
        Ok(snapshot)
    }

    /// Each frame that the parent should have must be in its image, or in its parent's.
    fn check_parent(&self, frames: &PartFile) -> Result<(), SnapshotError> {
        let Some(parent) = &self.parent else {
            let run = self.map.runs().iter().find(|run| run.kind == Kind::Parent);
            return run.map_or(Ok(()), |run| {
                Err(frames.corrupt(0, "parent of a frame", "none", format!("frame {}", run.first)))
            });
        };
        if parent.layout != self.layout {
            let (expected, found) = (self.layout.bytes(), parent.layout.bytes());
            return Err(frames.corrupt(0, "bytes of the parent's guest", expected, found));
        }
        for run in self.map.runs().iter().filter(|run| run.kind == Kind::Parent) {
            for theirs in parent.map.within(run.first, run.count) {
                if !matches!(theirs.kind, Kind::Stored | Kind::Parent) {
                    let what = "frame that the parent has not";
                    let found = format!("frame {}: {:?}", theirs.first, theirs.kind);
                    return Err(frames.corrupt(0, what, "stored frames", found));
                }
            }
        }
        Ok(())
    }

    /// Where frames are read that are on a disk.
    pub fn set_disks(&mut self, disks: Arc<dyn DiskBlocks>) {
        self.disks = Some(disks);
    }

    /// What it is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its manifest's checksum, by which a child knows it.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Where the guest's memory lies.
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// The snapshot that it adds to.
    pub fn parent(&self) -> Option<&Arc<Snapshot>> {
        self.parent.as_ref()
    }

    /// Where it is read from.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The machine's state, checked: JSON of the version that the manifest says.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn machine(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut machine = Vec::with_capacity(self.machine.bytes as usize);
        self.machine.check(&self.manifest.parts.machine, CHECK_PIECE, |_, piece| {
            machine.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(machine)
    }

    /// The working set, if one was written.
    ///
    /// # Errors
    /// It cannot be read, or is another snapshot's.
    pub fn working_set(&self) -> Result<Option<WorkingSet>, SnapshotError> {
        WorkingSet::open(self)
    }

    /// What each frame is, by rising frame, without gaps.
    pub fn runs(&self) -> &[Run] {
        self.map.runs()
    }

    /// What `frame` is; `None` past the end of memory.
    pub fn kind(&self, frame: Frame) -> Option<Kind> {
        self.map.get(frame).map(|(kind, _)| kind)
    }

    /// The memory image, if it can be mapped. Frames that the parent has are not in it, nor those on disks.
    pub fn plain_image(&self) -> Option<PlainImage<'_>> {
        let file = if self.chunks.is_none() { self.image.file.descriptor()? } else { return None };
        let shared = self.extents.files().iter().map(|part| part.file.descriptor());
        let shared = shared.collect::<Option<Vec<_>>>()?;
        Some(PlainImage { file, offset: 0, extents: self.extents.runs(), shared })
    }

    /// How many of its stored frames are in files that it has in common with others, or in its own for the second time.
    pub fn shared_frames(&self) -> u32 {
        self.extents.frames()
    }

    /// The checksum of each frame of a plain image, and its place: the number of a file, as of [`Extent`], and a frame of it.
    ///
    /// # Errors
    /// The index cannot be read, or the image is compressed.
    pub(crate) fn stored_frames(&self) -> Result<Vec<(Checksum, u32, u32)>, SnapshotError> {
        if self.chunks.is_some() {
            return Err(SnapshotError::Bug("frames of a compressed image".into()));
        }
        let mut found = Vec::with_capacity(self.manifest.memory.frames.stored as usize);
        for run in self.map.runs().iter().filter(|run| run.kind == Kind::Stored) {
            let rank = self.map.get(run.first).map_or(0, |(_, rank)| rank);
            let mut entries = vec![0; run.count as usize * 8];
            self.index.read(&mut entries, u64::from(rank) * 8)?;
            let frames = FrameRange { first: run.first, count: run.count }.frames();
            found.extend(frames.zip(entries.as_chunks().0).map(|(frame, entry)| {
                let (file, at) = self.extents.place(frame);
                (Checksum(u64::from_le_bytes(*entry)), file, at)
            }));
        }
        Ok(found)
    }

    /// The file of that number, and its name in the directory.
    pub(crate) fn image_file(&self, number: u32) -> Option<(&PartFile, String)> {
        match number {
            0 => Some((&self.image, part::MEMORY.to_owned())),
            _ => {
                let number = number as usize;
                Some((self.extents.files().get(number - 1)?, part::shared(number)))
            }
        }
    }

    /// The contents of `frame`, checked.
    ///
    /// # Errors
    /// They cannot be read, or are not what was saved; what `into` holds is of no meaning then.
    pub fn read(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SnapshotError> {
        let Some((kind, rank)) = self.map.get(frame) else {
            return Err(SnapshotError::Bug(format!("frame {frame}: past the end of guest memory")));
        };
        match kind {
            Kind::Zero | Kind::Free | Kind::Ballooned => {
                into.fill(0);
                Ok(())
            }
            Kind::Disk(block) => self.read_disk(frame, block, rank, into),
            Kind::Stored => self.read_stored(frame, rank, into),
            Kind::Parent => match &self.parent {
                Some(parent) => parent.read(frame, into),
                None => Err(SnapshotError::Bug(format!("frame {frame}: no parent"))),
            },
        }
    }

    fn read_disk(
        &self,
        frame: Frame,
        block: DiskBlock,
        rank: u32,
        into: &mut Page,
    ) -> Result<(), SnapshotError> {
        let disks = self.disks.as_ref().ok_or(SnapshotError::NoDisks { frame, block })?;
        let path = format!("disk {}", block.disk);
        disks.read(block, into).map_err(SnapshotError::host("read", &path))?;
        check_block(block, into, self.entry(rank)?)
    }

    /// Reads `count` frames, at most 64, that are in neighbouring blocks of a disk.
    fn read_disk_run(
        &self,
        first: Frame,
        count: u32,
        batch: &mut Batch,
    ) -> Result<(), SnapshotError> {
        let run = self.map.run(first).filter(|run| count <= run.count - (first.0 - run.first.0));
        let Some((Kind::Disk(block), rank)) = run.and(self.map.get(first)) else {
            return Err(SnapshotError::Bug(format!("{count} frames at {first}: not on a disk")));
        };
        let no_disks = SnapshotError::NoDisks { frame: first, block };
        let disks = self.disks.as_ref().ok_or(no_disks)?;
        let path = format!("disk {}", block.disk);
        let pages = batch.start(FrameRange { first, count }.frames());
        disks.read_run(block, pages).map_err(SnapshotError::host("read", &path))?;
        let mut entries = [0; CHUNK_FRAMES * 8];
        let entries = &mut entries[..(count as usize * 8).min(CHUNK_FRAMES * 8)];
        self.index.read(entries, u64::from(rank) * 8)?;
        let expected = entries.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        for (number, ((_, page), entry)) in batch.iter().zip(expected).enumerate() {
            let block = DiskBlock { block: block.block + number as u64, ..block };
            check_block(block, page, entry)?;
        }
        Ok(())
    }

    fn read_stored(&self, frame: Frame, rank: u32, into: &mut Page) -> Result<(), SnapshotError> {
        let entry = self.entry(rank)?;
        let Some(chunks) = &self.chunks else {
            return self.read_run(FrameRange { first: frame, count: 1 }, into, |_| Ok(entry));
        };
        let (number, slot) = self.chunk_of(frame, rank, entry)?;
        let batch = chunks.get(number, &self.image, &self.map)?;
        match batch.iter().nth(slot as usize) {
            Some((held, contents)) if held == frame => *into = *contents,
            other => {
                let found = other.map(|(held, _)| held.to_string()).unwrap_or_default();
                return Err(self.index.corrupt(u64::from(rank) * 8, "frame", frame, found));
            }
        }
        Ok(())
    }

    /// Reads frames of a plain image, and compares the checksum of each with that of its entry, which is asked for by
    /// its place among them.
    fn read_run(
        &self,
        frames: FrameRange,
        into: &mut [u8],
        entry: impl Fn(usize) -> Result<u64, SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut rest = into;
        let mut number = 0;
        for segment in self.extents.segments(frames, &self.image) {
            let (pages, behind) = rest.split_at_mut(segment.count as usize * FRAME_SIZE);
            rest = behind;
            segment.file.read(pages, segment.offset)?;
            for (page, at) in pages.as_chunks::<FRAME_SIZE>().0.iter().zip(0u64..) {
                let (expected, found) = (Checksum(entry(number)?), Checksum::of(page));
                if expected != found {
                    let at = segment.offset + at * FRAME_SIZE as u64;
                    return Err(segment.file.corrupt(at, "checksum of a frame", expected, found));
                }
                number += 1;
            }
        }
        Ok(())
    }

    fn entry(&self, rank: u32) -> Result<u64, SnapshotError> {
        let mut bytes = [0; 8];
        self.index.read(&mut bytes, u64::from(rank) * 8)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The chunk and the place in it that an entry of the index says.
    fn chunk_of(&self, frame: Frame, rank: u32, entry: u64) -> Result<(u32, u32), SnapshotError> {
        let (number, slot) = ((entry >> 32) as u32, entry as u32);
        let count = self.chunks.as_ref().map_or(0, Chunks::count);
        if number >= count || slot as usize >= CHUNK_FRAMES {
            let expected = format!("chunk below {count} and slot below 64 for frame {frame}");
            let found = format!("{number}, {slot}");
            return Err(self.index.corrupt(u64::from(rank) * 8, "place", expected, found));
        }
        Ok((number, slot))
    }

    // ---- Many frames at once ----

    /// What is read together with `frame`; `None` if it has no contents.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn place_of(&self, frame: Frame) -> Result<Option<Place>, SnapshotError> {
        self.place_around(frame, CHUNK_FRAMES as u32)
    }

    /// The same of a plain image with no more than `frames`, a power of two up to 64, for who is in a hurry. Of a
    /// compressed image the smallest place is a chunk.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn place_around(&self, frame: Frame, frames: u32) -> Result<Option<Place>, SnapshotError> {
        let (mut owner, mut ancestor) = (self, 0);
        loop {
            match (owner.map.get(frame), &owner.parent) {
                (Some((Kind::Stored, rank)), _) => {
                    let at = owner.place_at(frame, rank, frames)?;
                    return Ok(Some(Place { ancestor, at }));
                }
                (Some((Kind::Disk(_), _)), _) if ancestor == 0 => {
                    let (first, count) = self.group(frame, frames);
                    return Ok(Some(Place { ancestor, at: At::Disk { first, count } }));
                }
                (Some((Kind::Parent, _)), Some(parent)) => {
                    (owner, ancestor) = (parent, ancestor + 1);
                }
                _ => return Ok(None),
            }
        }
    }

    fn place_at(&self, frame: Frame, rank: u32, frames: u32) -> Result<At, SnapshotError> {
        if self.chunks.is_some() {
            let (number, _) = self.chunk_of(frame, rank, self.entry(rank)?)?;
            return Ok(At::Chunk(number));
        }
        let (first, count) = self.group(frame, frames);
        Ok(At::Plain { first, count })
    }

    /// Those of the `frames` aligned ones around `frame` that are of its run.
    fn group(&self, frame: Frame, frames: u32) -> (Frame, u32) {
        let frames = frames.clamp(1, CHUNK_FRAMES as u32);
        let group = frame.0 - frame.0 % frames;
        let group_end = group.saturating_add(frames);
        let run = self.map.run(frame);
        let (first, end) =
            run.map_or((frame.0, frame.0 + 1), |run| (run.first.0, run.first.0 + run.count));
        let first = first.max(group);
        (Frame(first), end.min(group_end) - first)
    }

    /// Everything that has contents: what is on disks first, then this snapshot's image, then its ancestors', each in
    /// the order of its file: for who wants all of it. [`Snapshot::read_place`] tells which frames they have.
    pub fn places(&self) -> impl Iterator<Item = Place> + Send {
        let ancestors = std::iter::successors(Some(self), |snapshot| snapshot.parent.as_deref());
        let stored = ancestors.enumerate().flat_map(|(ancestor, snapshot)| {
            snapshot.own_places().map(move |at| Place { ancestor: ancestor as u8, at })
        });
        self.disk_places().map(|at| Place { ancestor: 0, at }).chain(stored)
    }

    /// An ancestor's are not this snapshot's.
    fn disk_places(&self) -> impl Iterator<Item = At> + Send + '_ {
        let on_disk = self.map.runs().iter().filter(|run| matches!(run.kind, Kind::Disk(_)));
        on_disk.flat_map(|run| pieces(*run)).map(|(first, count)| At::Disk { first, count })
    }

    fn own_places(&self) -> Box<dyn Iterator<Item = At> + Send + '_> {
        if let Some(chunks) = &self.chunks {
            return Box::new((0..chunks.count()).map(At::Chunk));
        }
        let stored = self.map.runs().iter().filter(|run| run.kind == Kind::Stored);
        let pieces = stored.flat_map(|run| pieces(*run));
        Box::new(pieces.map(|(first, count)| At::Plain { first, count }))
    }

    /// Reads the frames of `place` that are this snapshot's: an ancestor's image has others, too, that were
    /// written since.
    ///
    /// # Errors
    /// They cannot be read, or are not what was saved; what `batch` holds is of no meaning then.
    pub fn read_place(&self, place: Place, batch: &mut Batch) -> Result<(), SnapshotError> {
        let mut owner = self;
        for _ in 0..place.ancestor {
            owner = owner
                .parent
                .as_deref()
                .ok_or_else(|| SnapshotError::Bug(format!("{place:?}: of another snapshot")))?;
        }
        match (place.at, &owner.chunks) {
            (At::Plain { first, count }, None) => owner.read_plain(first, count, batch)?,
            (At::Disk { first, count }, _) if place.ancestor == 0 => {
                owner.read_disk_run(first, count, batch)?;
            }
            (At::Chunk(number), Some(chunks)) => {
                let record = chunks.record(number, &owner.image, &owner.map)?;
                record.read(&owner.image, 0, chunks.compression, batch)?;
            }
            _ => return Err(SnapshotError::Bug(format!("{place:?}: of another snapshot"))),
        }
        if place.ancestor > 0 {
            batch.retain(|frame| self.owner_of(frame) == Some(place.ancestor));
        }
        Ok(())
    }

    /// In whose image the contents of `frame` are.
    fn owner_of(&self, frame: Frame) -> Option<u8> {
        let (mut owner, mut ancestor) = (self, 0);
        loop {
            match (owner.kind(frame)?, &owner.parent) {
                (Kind::Stored, _) => return Some(ancestor),
                (Kind::Parent, Some(parent)) => (owner, ancestor) = (parent, ancestor + 1),
                _ => return None,
            }
        }
    }

    /// Reads `count` frames of a plain image, at most 64, all stored.
    fn read_plain(&self, first: Frame, count: u32, batch: &mut Batch) -> Result<(), SnapshotError> {
        let run = self
            .map
            .run(first)
            .filter(|run| run.kind == Kind::Stored && count <= run.count - (first.0 - run.first.0));
        let Some((_, rank)) = run.and(self.map.get(first)) else {
            return Err(SnapshotError::Bug(format!("{count} frames at {first}: not all stored")));
        };
        let range = FrameRange { first, count };
        let mut entries = [0; CHUNK_FRAMES * 8];
        let entries = &mut entries[..(count as usize * 8).min(CHUNK_FRAMES * 8)];
        self.index.read(entries, u64::from(rank) * 8)?;
        let missing = || SnapshotError::Bug(format!("{count} frames at {first}: too many"));
        let expected = |number: usize| {
            let bytes = entries.as_chunks().0.get(number).ok_or_else(missing)?;
            Ok(u64::from_le_bytes(*bytes))
        };
        self.read_run(range, batch.start(range.frames()), expected)
    }

    /// Reads and checks everything: this snapshot's files, its working set, what it has of disks if they are known, and
    /// its ancestors.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.verify_own()?;
        self.parent.as_ref().map_or(Ok(()), |parent| parent.verify())
    }

    /// The same without its ancestors.
    pub(crate) fn verify_own(&self) -> Result<(), SnapshotError> {
        self.machine()?;
        self.index.check(&self.manifest.parts.index, CHECK_PIECE, |_, _| Ok(()))?;
        if let (Some(chunks), Some(part)) = (&self.chunks, &self.manifest.parts.chunks) {
            chunks.records.check(part, CHECK_PIECE, |_, _| Ok(()))?;
        }
        let mut batch = Batch::new();
        let on_disk = self.disk_places().filter(|_| self.disks.is_some());
        for at in on_disk.chain(self.own_places()) {
            self.read_place(Place { ancestor: 0, at }, &mut batch)?;
        }
        self.verify_index()?;
        if let Some(set) = self.working_set()? {
            (0..set.chunks()).try_for_each(|chunk| set.read(chunk, &mut batch))?;
        }
        Ok(())
    }

    /// Each stored frame is where the index says. For a plain image, reading it has told.
    fn verify_index(&self) -> Result<(), SnapshotError> {
        let Some(chunks) = &self.chunks else { return Ok(()) };
        let mut last: Option<(u32, Record)> = None;
        let stored = self.map.runs().iter().filter(|run| run.kind == Kind::Stored);
        for frame in
            stored.flat_map(|run| FrameRange { first: run.first, count: run.count }.frames())
        {
            let rank = self.map.get(frame).map_or(0, |(_, rank)| rank);
            let (number, slot) = self.chunk_of(frame, rank, self.entry(rank)?)?;
            let record = match last {
                Some((held, record)) if held == number => record,
                _ => chunks.record(number, &self.image, &self.map)?,
            };
            if record.frame_at(slot) != Some(frame) {
                let found = format!("{:?}", record.frame_at(slot));
                return Err(self.index.corrupt(u64::from(rank) * 8, "frame", frame, found));
            }
            last = Some((number, record));
        }
        Ok(())
    }
}

/// Aligned to 64 frames, so that there is no other place for one of them.
fn pieces(run: Run) -> impl Iterator<Item = (Frame, u32)> + Send {
    let end = run.first.0 + run.count;
    let group_end = |at: u32| (at - at % CHUNK_FRAMES as u32).saturating_add(CHUNK_FRAMES as u32);
    let starts = std::iter::successors(Some(run.first.0), move |at| Some(group_end(*at)));
    let starts = starts.take_while(move |&at| at < end);
    starts.map(move |at| (Frame(at), end.min(group_end(at)) - at))
}

fn check_block(block: DiskBlock, page: &Page, entry: u64) -> Result<(), SnapshotError> {
    let (expected, found) = (Checksum(entry), Checksum::of(page));
    if expected == found {
        return Ok(());
    }
    let (path, offset) = (format!("disk {}", block.disk), block.block * FRAME_SIZE as u64);
    let (expected, found) = (expected.to_string(), found.to_string());
    let what = "checksum of a block";
    Err(SnapshotError::Corrupt { path, offset, what, expected, found })
}

fn open_parent(
    store: &dyn Store,
    manifest: &Manifest,
    descendants: usize,
) -> Result<Option<Arc<Snapshot>>, SnapshotError> {
    let Some(reference) = &manifest.parent else { return Ok(None) };
    let path = store.name();
    if descendants >= ANCESTORS_MAX {
        let why = format!("more than {ANCESTORS_MAX} ancestors: save without a parent");
        return Err(SnapshotError::Refused { path, why });
    }
    let name = format!("{}, the parent of {path}", reference.path);
    let parent = store.parent(&reference.path).map_err(SnapshotError::host("open", name))?;
    let parent = Snapshot::open_generation(parent, descendants + 1)?;
    check_parent(store, reference, Arc::new(parent)).map(Some)
}

/// It must be the one that the child was saved against.
fn check_parent(
    store: &dyn Store,
    reference: &Parent,
    parent: Arc<Snapshot>,
) -> Result<Arc<Snapshot>, SnapshotError> {
    if (parent.manifest.id, parent.checksum) == (reference.id, reference.checksum) {
        return Ok(parent);
    }
    Err(SnapshotError::Parent {
        path: store.name(),
        parent: parent.store.name(),
        expected_id: reference.id,
        expected: reference.checksum,
        found_id: parent.manifest.id,
        found: parent.checksum,
    })
}

impl Chunks {
    /// Of a compressed image; a plain one is checked to be of `plain_bytes`.
    fn open(
        store: &dyn Store,
        manifest: &Manifest,
        image: &PartFile,
        plain_bytes: u64,
    ) -> Result<Option<Chunks>, SnapshotError> {
        let compression = manifest.memory.compression;
        let part = match (compression, &manifest.parts.chunks) {
            (Compression::None, None) if image.bytes == plain_bytes => return Ok(None),
            (Compression::None, None) => {
                return Err(image.corrupt(0, "length", plain_bytes, image.bytes));
            }
            (Compression::None, Some(_)) => {
                return Err(image.corrupt(0, "part `chunks`", "none", "one"));
            }
            (_, None) => return Err(image.corrupt(0, "part `chunks`", "one", "none")),
            (_, Some(part)) => part,
        };
        let records = PartFile::open_sized(store, part::CHUNKS, part.bytes)?;
        let most = u64::from(manifest.memory.frames.stored) * RECORD_BYTES as u64;
        if !records.bytes.is_multiple_of(RECORD_BYTES as u64) || records.bytes > most {
            let expected = format!("a multiple of {RECORD_BYTES}, at most {most}");
            return Err(records.corrupt(0, "length", expected, records.bytes));
        }
        Ok(Some(Chunks { records, compression, kept: Mutex::default() }))
    }

    fn count(&self) -> u32 {
        (self.records.bytes / RECORD_BYTES as u64) as u32
    }

    fn record(
        &self,
        number: u32,
        image: &PartFile,
        map: &FrameMap,
    ) -> Result<Record, SnapshotError> {
        let mut bytes = [0; RECORD_BYTES];
        let at = u64::from(number) * RECORD_BYTES as u64;
        self.records.read(&mut bytes, at)?;
        let record = Record::decode(&self.records, at, &bytes, image.bytes, map.frames())?;
        let stored = |frame: &Frame| matches!(map.get(*frame), Some((Kind::Stored, _)));
        match record.frames().find(|frame| !stored(frame)) {
            None => Ok(record),
            Some(frame) => {
                let found = format!("frame {frame}");
                Err(self.records.corrupt(at + 24, "frames of a chunk", "stored ones", found))
            }
        }
    }

    /// A chunk's frames, most often from the last ones used.
    fn get(
        &self,
        number: u32,
        image: &PartFile,
        map: &FrameMap,
    ) -> Result<Arc<Batch>, SnapshotError> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|(held, _)| *held == number) {
                let found = kept.remove(at);
                let batch = Arc::clone(&found.1);
                kept.push(found);
                return Ok(batch);
            }
        }
        let mut batch = Batch::new();
        self.record(number, image, map)?.read(image, 0, self.compression, &mut batch)?;
        let batch = Arc::new(batch.read_only());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= CHUNKS_KEPT {
            kept.remove(0);
        }
        kept.push((number, Arc::clone(&batch)));
        Ok(batch)
    }
}

/// For lazy restore: frames come when they are first used.
impl Source for Snapshot {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        Ok(self.read(frame, into)?)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("store", &self.store.name())
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}
