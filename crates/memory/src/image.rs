//! Guest RAM over an image: a file that holds its contents and is not written any more. Clones share it, and the VM that
//! they are clones of: each has pages of its own only of what it has written since.
//!
//! ```text
//!   image      0 1 2 3 . . 6 7      frame n at `from` + 4096 n; holes (.) are zeros
//!                | private mapping, copy on write: the kernel's
//!   RAM        0 1'2 0 0 0 6 7      1 was written; 3 was given back: zeros of this process are mapped over it, as over
//!                                   long holes, so that a first write copies nothing
//! ```
//! Over the image there may be runs of other files: a layer, which has what was written since, or contents that several
//! images have in common. Each run is a mapping.
//!
//! In the table, frames that the image has contents of are absent with [`SourceId::BASE`]: their first access makes them
//! resident, and nothing is fetched. To drop a page of a private mapping would show the image again; that is why zeros
//! are mapped over what is given back. Neighbours are one mapping, and there are so many at most (a process may have
//! 65,530, `vm.max_map_count`): where they are spent, the guest keeps what it wanted to give back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use rustix::fs::{FallocateFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::ProtFlags;

use crate::address::{FRAME_SIZE, Frame, FrameRange};
use crate::backing::{MoveError, PATIENCE};
use crate::bits::Bits;
use crate::guest_memory::{GuestMemory, ResolveError};
use crate::layout::RamLayout;
use crate::ram::{HAS_CONTENTS, LARGE_PAGE, Mapping, Ram, open_pagemap, pages_that};
use crate::source::SourceId;
use crate::table::{FrameState, FrameTable};

/// Runs of frames over which zeros are mapped, at most: each splits a mapping in two.
const BLANKS_MAX: usize = 16_384;
/// Holes so long are such runs from the start: one mapping costs less than the pages that it saves.
const LONG_HOLE: u32 = 32;
/// Of these at most so many; the rest of the runs is for what is given back.
const HOLES_MAX: usize = 2048;
/// Bytes copied at a time.
const PIECE: usize = 1 << 20;
/// What was written since the image became one is an image's layer, if it is in so many runs at most: each is a mapping of
/// the clones.
const RUNS_GOOD: usize = 1024;
/// The same for what is found while the guest stands.
const RUNS_MAX: usize = 8192;
/// A pagemap entry says that the page is a file's (Documentation/admin-guide/mm/pagemap.rst).
const OF_FILE: u64 = 1 << 61;
/// The same: the page is swapped out, which those of our image are from the file.
const SWAPPED: u64 = 1 << 62;

/// Why memory cannot lie over an image, or become one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Memory there would fault.
    #[error("image of {found} bytes: {expected} are needed: is it whole?")]
    Short {
        /// Its length.
        found: u64,
        /// Of RAM, and before it.
        expected: u64,
    },
    /// Pages begin at multiples of 4096.
    #[error("image at byte {0} of its file: not a multiple of 4096")]
    Unaligned(u64),
    /// Runs are in RAM, rise, and do not touch each other's frames.
    #[error("{count} frames at {first} of an image: not in RAM, or not behind the run before")]
    Run {
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
    /// The new file is not new.
    #[error("a file of {0} bytes for a new image: it must be empty")]
    NotEmpty(u64),
    /// Contents that are elsewhere cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] ResolveError),
    /// Somebody wants its contents of an earlier moment.
    #[error("the memory is being saved: try again when it is")]
    Frozen,
    /// The draft is of another image.
    #[error("another clone was made at the same time: try again")]
    Overtaken,
    /// A device does not let go, or the host has no memory.
    #[error(transparent)]
    Move(#[from] MoveError),
    /// The host refused.
    #[error("{action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> ImageError {
    move |source| ImageError::Host { action, source: source.into() }
}

/// Contents of a memory, at one moment, which nobody can change any more.
#[derive(Debug)]
pub struct Image {
    /// The file; sealed.
    pub file: OwnedFd,
    /// Where frame 0 is in it.
    pub from: u64,
    /// What is different from it, where that is little; sealed.
    pub layer: Option<OwnedFd>,
    /// Frames that were copied while the guest stood: what it had written since it lay over an image.
    pub copied: u32,
    /// What RAM's addresses showed before.
    pub remains: Remains,
}

/// Page tables of before, which take a third of a microsecond a page to take down: dropped while the guest runs again.
#[derive(Debug)]
#[must_use]
pub struct Remains(#[expect(dead_code, reason = "it is only dropped")] Option<Mapping>);

/// A file that takes part in [`GuestMemory::become_image`], and what could be done while the guest runs.
#[derive(Debug)]
pub struct ImageDraft {
    file: OwnedFd,
    /// Which image it is a copy of, or to be a layer on.
    of: Option<FileId>,
    is_layer: bool,
}

/// Device and inode.
type FileId = (u64, u64);

/// Runs of frames that are in other files than their image, and which ones.
#[derive(Debug, Default)]
pub struct ImageRuns {
    /// The files.
    pub files: Vec<OwnedFd>,
    /// By rising frame, none of them twice.
    pub runs: Vec<ImageRun>,
}

/// Neighbouring frames in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRun {
    /// Of RAM.
    pub frames: FrameRange,
    /// Which file it is: its place in [`ImageRuns::files`], or none for the image's own.
    pub file: Option<usize>,
    /// Where the first frame is in it: a multiple of 4096.
    pub from: u64,
}

impl ImageRuns {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.runs.is_empty()
    }

    /// With descriptors of its own.
    ///
    /// # Errors
    /// The host has no more of them.
    pub fn try_clone(&self) -> io::Result<Self> {
        let files = self.files.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { files, runs: self.runs.clone() })
    }

    fn file<'a>(&'a self, run: &ImageRun, image: &'a OwnedFd) -> Option<&'a OwnedFd> {
        run.file.map_or(Some(image), |number| self.files.get(number))
    }

    /// Whether each is where it says, in RAM and in its file.
    fn check(&self, image: &OwnedFd, frames: u32) -> Result<(), ImageError> {
        let files = std::iter::once(image).chain(&self.files);
        let lengths = files.map(length).collect::<Result<Vec<u64>, _>>()?;
        let mut end = 0;
        for run in &self.runs {
            let FrameRange { first: Frame(first), count } = run.frames;
            let behind = first.checked_add(count).filter(|behind| *behind <= frames);
            let (Some(behind), true) = (behind, count > 0 && first >= end) else {
                return Err(ImageError::Run { first, count });
            };
            end = behind;
            if !run.from.is_multiple_of(FRAME_SIZE as u64) {
                return Err(ImageError::Unaligned(run.from));
            }
            let number = run.file.map_or(0, |number| number.saturating_add(1));
            let found = lengths.get(number).copied().unwrap_or(0);
            let expected = run.from.saturating_add(u64::from(count) * FRAME_SIZE as u64);
            if found < expected {
                return Err(ImageError::Short { found, expected });
            }
        }
        Ok(())
    }
}

/// The image that RAM lies over.
pub(crate) struct Below {
    file: OwnedFd,
    from: u64,
    /// What is there in place of the file's contents.
    over: ImageRuns,
    /// Where zeros are mapped over it: from the first frame of a run to the one behind it. Runs do not touch.
    blanks: BTreeMap<u32, u32>,
}

impl Below {
    fn new(file: OwnedFd, from: u64) -> Self {
        Self { file, from, over: ImageRuns::default(), blanks: BTreeMap::new() }
    }

    fn try_clone(&self) -> io::Result<Self> {
        let (file, over) = (self.file.try_clone()?, self.over.try_clone()?);
        Ok(Self { file, from: self.from, over, blanks: BTreeMap::new() })
    }

    fn id(&self) -> Result<FileId, ImageError> {
        let found = rustix::fs::fstat(&self.file).map_err(host("look at an image of memory"))?;
        Ok((found.st_dev, found.st_ino))
    }

    /// Maps zeros in the place of a run.
    pub(crate) fn blank(&mut self, guest: &Mapping, run: FrameRange) -> Result<(), Errno> {
        let (mut first, mut end) = (run.first.0, run.first.0 + run.count);
        // Those that it touches, or lies in; runs do not touch, so they are in the same order by their ends.
        let before = self.blanks.range(..=end).rev().take_while(|(_, behind)| **behind >= first);
        let joined: Vec<u32> = before.map(|(start, _)| *start).collect();
        if joined.is_empty() && self.blanks.len() >= BLANKS_MAX {
            return Err(Errno::NOMEM);
        }
        let bytes = run.count as usize * FRAME_SIZE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        guest.blank(run.first.index() * FRAME_SIZE, bytes, access)?;
        for start in joined {
            let behind = self.blanks.remove(&start).unwrap_or(start);
            (first, end) = (first.min(start), end.max(behind));
        }
        self.blanks.insert(first, end);
        Ok(())
    }

    /// The parts of RAM that are mapped one by one.
    fn mappings(&self, bytes: usize) -> Vec<Range<usize>> {
        let blanks = self.blanks.iter().flat_map(|(first, end)| [*first, *end]);
        let runs = self.over.runs.iter().map(|run| run.frames);
        let runs = runs.flat_map(|run| [run.first.0, run.first.0 + run.count]);
        let mut borders: Vec<usize> =
            blanks.chain(runs).map(|frame| frame as usize * FRAME_SIZE).chain([bytes]).collect();
        borders.sort_unstable();
        let mut start = 0;
        let part = |end| std::mem::replace(&mut start, end)..end;
        borders.into_iter().map(part).filter(|part| !part.is_empty()).collect()
    }

    fn is_blank(&self, frame: u32) -> bool {
        self.blanks.range(..=frame).next_back().is_some_and(|(_, end)| frame < *end)
    }

    /// Offsets of the pages that RAM may show of the image, among `bytes` at `offset`.
    pub(crate) fn pages_with_contents(
        &self,
        offset: usize,
        bytes: usize,
    ) -> io::Result<Vec<usize>> {
        let from = self.from + offset as u64;
        let of_file = extents(&self.file, from..from + bytes as u64)?;
        let of_file = of_file.into_iter().flat_map(|extent| extent.step_by(FRAME_SIZE));
        let of_file = of_file.map(|at| (at - self.from) as usize);
        let (first, end) = (offset / FRAME_SIZE, (offset + bytes) / FRAME_SIZE);
        let behind = |run: &ImageRun| run.frames.first.index() + run.frames.count as usize;
        let start = self.over.runs.partition_point(|run| behind(run) <= first);
        let runs = self.over.runs[start..].iter();
        let runs = runs.take_while(|run| run.frames.first.index() < end);
        let over = runs.flat_map(|run| run.frames.first.index().max(first)..behind(run).min(end));
        let pages = of_file.chain(over.map(|frame| frame * FRAME_SIZE));
        Ok(pages.filter(|page| !self.is_blank((page / FRAME_SIZE) as u32)).collect())
    }

    /// Copies the image into another one.
    fn copy_to(&self, file: &OwnedFd, bytes: u64) -> io::Result<()> {
        let page = FRAME_SIZE as u64;
        copy(&self.file, self.from..self.from + bytes, file, 0)?;
        for run in &self.over.runs {
            let Some(from) = self.over.file(run, &self.file) else { continue };
            let range = run.from..run.from + u64::from(run.frames.count) * page;
            copy(from, range, file, run.frames.first.index() as u64 * page)?;
        }
        Ok(())
    }
}

/// Copies what has contents of a range of a file to another one.
fn copy(from: &OwnedFd, range: Range<u64>, into: &OwnedFd, to: u64) -> io::Result<()> {
    let start = range.start;
    let (reads, writes) = (File::from(from.try_clone()?), File::from(into.try_clone()?));
    let mut piece = vec![0; PIECE.min((range.end - start) as usize)];
    for extent in extents(from, range)? {
        for at in extent.clone().step_by(PIECE) {
            let piece = &mut piece[..(extent.end - at).min(PIECE as u64) as usize];
            reads.read_exact_at(piece, at)?;
            writes.write_all_at(piece, to + (at - start))?;
        }
    }
    Ok(())
}

/// Bytes of the bitmap of a layer.
fn bitmap_len(frames: u32) -> usize {
    frames.div_ceil(8) as usize
}

/// Where `range` of a file has contents, in whole pages: the rest are holes.
fn extents(file: &OwnedFd, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let page = FRAME_SIZE as u64;
    let mut extents: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < range.end => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(range.end);
        at = end.next_multiple_of(page);
        extents.push(start / page * page..at.min(range.end));
    }
    Ok(extents)
}

fn length(file: &OwnedFd) -> Result<u64, ImageError> {
    let found = rustix::fs::fstat(file).map_err(host("look at an image of memory"))?;
    Ok(u64::try_from(found.st_size).unwrap_or(0))
}

impl GuestMemory {
    /// Memory that shows, from the start, what an image has of it: frame n at byte `from` + 4096 n of the file, which
    /// must not change or become shorter while this lives. Costs no host memory but page tables. It is private to one
    /// mapping, as anonymous memory is ([`GuestMemory::is_anonymous`]), until it moves to a file, which copies all.
    ///
    /// # Errors
    /// The file is too short, or the host refuses.
    pub fn over(layout: RamLayout, image: OwnedFd, from: u64) -> Result<GuestMemory, ImageError> {
        Self::over_layers(layout, image, from, None)
    }

    /// The same, with what a layer of an [`Image`] has in place of it.
    ///
    /// # Errors
    /// As of [`GuestMemory::over`].
    pub fn over_layers(
        layout: RamLayout,
        image: OwnedFd,
        from: u64,
        layer: Option<OwnedFd>,
    ) -> Result<GuestMemory, ImageError> {
        let frames = layout.frames();
        let (mut zeros, mut over) = (Bits::new(frames), ImageRuns::default());
        if let Some(layer) = layer {
            let expected = layout.bytes() + bitmap_len(frames) as u64;
            let found = length(&layer)?;
            if found < expected {
                return Err(ImageError::Short { found, expected });
            }
            zeros = read_bitmap(&layer, frames).map_err(host("read an image's layer"))?;
            let changed = extents(&layer, 0..layout.bytes());
            let changed = changed.map_err(host("find holes of an image"))?.into_iter();
            over.runs.extend(changed.map(|extent| ImageRun {
                frames: run_of(&extent, 0),
                file: Some(0),
                from: extent.start,
            }));
            over.files.push(layer);
        }
        Self::over_all(layout, image, from, over, &zeros)
    }

    /// Memory over an image, as [`GuestMemory::over`], with what other files, or other places of it, have in place of its
    /// contents.
    ///
    /// # Errors
    /// As of [`GuestMemory::over`]; or a run is not in RAM, or not in its file.
    pub fn over_runs(
        layout: RamLayout,
        image: OwnedFd,
        from: u64,
        over: ImageRuns,
    ) -> Result<GuestMemory, ImageError> {
        Self::over_all(layout, image, from, over, &Bits::new(layout.frames()))
    }

    /// `zeros`: frames that are zeros whatever the image has there; the runs are without them.
    fn over_all(
        layout: RamLayout,
        image: OwnedFd,
        from: u64,
        over: ImageRuns,
        zeros: &Bits,
    ) -> Result<GuestMemory, ImageError> {
        if !from.is_multiple_of(FRAME_SIZE as u64) {
            return Err(ImageError::Unaligned(from));
        }
        let expected = from.saturating_add(layout.bytes());
        let found = length(&image)?;
        if found < expected {
            return Err(ImageError::Short { found, expected });
        }
        let (frames, bytes) = (layout.frames(), layout.bytes() as usize);
        over.check(&image, frames)?;
        let action = "map an image of memory";
        let guest = Mapping::reserve(bytes).map_err(host(action))?;
        guest.show_privately(&image, 0, bytes, from).map_err(host(action))?;
        let contents = extents(&image, from..expected).map_err(host("find holes of an image"))?;
        let mut based = Bits::new(frames);
        contents.iter().for_each(|extent| based.insert(run_of(extent, from)));
        based.remove_all(zeros);
        over.runs.iter().for_each(|run| based.insert(run.frames));
        let mut below = Below::new(image, from);
        let mut holes = 0;
        for hole in based.gaps(frames) {
            let must = hole.frames().any(|frame| zeros.get(frame));
            if must || hole.count >= LONG_HOLE && holes < HOLES_MAX {
                below.blank(&guest, hole).map_err(host(action))?;
                holes += 1;
            }
        }
        for run in &over.runs {
            let Some(file) = over.file(run, &below.file) else { continue };
            let (at, len) =
                (run.frames.first.index() * FRAME_SIZE, run.frames.count as usize * FRAME_SIZE);
            guest.show_privately(file, at, len, run.from).map_err(host(action))?;
        }
        below.over = over;
        let own = Ram::make_file(bytes).map_err(host("make a file for memory"))?;
        let ram = Ram::of(own, guest, true, open_pagemap().ok());
        *ram.below() = Some(below);
        Ok(GuestMemory::of(layout, FrameTable::over(layout.frames(), based), ram))
    }

    /// Does what can be done beforehand, while the guest runs, for [`GuestMemory::become_image`]: fetches what is
    /// absent, and where RAM lies over an image, copies that. `new` is an empty file that can be sealed; it will be
    /// the next image, or what RAM moves to later.
    ///
    /// # Errors
    /// A source fails, or the host has no memory for a copy. Nothing has changed.
    pub fn draft_image(&self, new: OwnedFd) -> Result<ImageDraft, ImageError> {
        match length(&new)? {
            0 => {}
            found => return Err(ImageError::NotEmpty(found)),
        }
        rustix::fs::ftruncate(&new, self.bytes()).map_err(host("make a file for memory"))?;
        for frame in self.table.frames() {
            if let Some(FrameState::Absent(source)) = self.table.facts(frame).map(|f| f.state)
                && source != SourceId::BASE
            {
                self.make_resident(frame, false)?;
            }
        }
        // Not locked while it copies: an image does not change, and what RAM does not show of it is punched out later.
        let below = self.ram.below().as_ref().map(Below::try_clone).transpose();
        let below = below.map_err(host("copy the image of memory"))?;
        let mut is_layer = false;
        if let Some(below) = &below {
            // Layers are not stacked: each takes mappings of who lies over it.
            let own = self.ram.own_runs().map_err(host("look at pages of memory"))?;
            is_layer = below.over.is_empty() && own.len() <= RUNS_GOOD;
            match is_layer {
                true => {
                    let len = self.bytes() + bitmap_len(self.layout.frames()) as u64;
                    rustix::fs::ftruncate(&new, len).map_err(host("make a file for memory"))?;
                }
                false => {
                    below.copy_to(&new, self.bytes()).map_err(host("copy the image of memory"))?;
                }
            }
        }
        let of = below.as_ref().map(Below::id).transpose()?;
        Ok(ImageDraft { file: new, of, is_layer })
    }

    /// Makes the contents of now an image, which this memory lies over from then on. Its addresses stay what they are;
    /// what it writes becomes its own.
    ///
    /// In a file, that is a matter of mapping it anew. Over an image, what was written since is copied, into a layer on
    /// that image, or, where that is much, into a copy of it, which this memory lies over then.
    /// Anonymous memory moves to a file first, which takes about half a second per GiB. Nobody may use the memory
    /// until this returns, but devices that hold a frame are waited for.
    ///
    /// # Errors
    /// A device does not let go; the host refuses. The memory is as usable as before.
    pub fn become_image(&self, draft: ImageDraft) -> Result<Image, ImageError> {
        let _no_discard = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        self.unshare_all()?;
        let _unpinned = self.wait_unpinned(PATIENCE).ok_or(MoveError::Pinned)?;
        if self.is_frozen() {
            return Err(ImageError::Frozen);
        }
        // It would show, and write, an image.
        self.ram.close_landing();
        let of = self.ram.below().as_ref().map(Below::id).transpose()?;
        if of != draft.of {
            return Err(ImageError::Overtaken);
        }
        let is_over_an_image = of.is_some();
        if self.is_anonymous() && !is_over_an_image {
            self.ram.move_to_file().map_err(MoveError::Host)?;
            self.merging.forget();
        }
        let action = "map an image of memory";
        let (mut layer, mut remains, mut copied) = (None, None, 0);
        if draft.is_layer {
            copied = self.ram.write_layer(&draft.file).map_err(host("copy pages of memory"))?;
            layer = Some(draft.file);
        } else if is_over_an_image {
            (copied, remains) = self.ram.lie_over_a_copy(draft.file).map_err(host(action))?;
        } else {
            remains = self.ram.lie_over_own_file(draft.file).map_err(host(action))?;
        }
        let below = self.ram.below();
        let below = below.as_ref().expect("it lies over an image since the lines above");
        for file in layer.iter().chain([&below.file]) {
            seal(file).map_err(host("seal an image of memory"))?;
        }
        let file = below.file.try_clone().map_err(host("hand out an image of memory"))?;
        Ok(Image { file, from: below.from, layer, copied, remains: Remains(remains) })
    }
}

/// The frames of an extent of a file that has frame 0 at `start`.
fn run_of(extent: &Range<u64>, start: u64) -> FrameRange {
    let frame = |at: u64| ((at - start) / FRAME_SIZE as u64) as u32;
    FrameRange { first: Frame(frame(extent.start)), count: frame(extent.end) - frame(extent.start) }
}

/// A layer has contents in place of the image's: frame n at byte 4096 n. Behind the last is a bitmap of frames that are
/// zeros in place of the image's contents: bit n % 8 of byte n / 8.
fn read_bitmap(layer: &OwnedFd, frames: u32) -> io::Result<Bits> {
    let mut bytes = vec![0; bitmap_len(frames)];
    let file = File::from(layer.try_clone()?);
    file.read_exact_at(&mut bytes, u64::from(frames) * FRAME_SIZE as u64)?;
    let mut bits = Bits::new(frames);
    for frame in (0..frames).filter(|frame| bytes[*frame as usize / 8] >> (frame % 8) & 1 != 0) {
        bits.insert(FrameRange { first: Frame(frame), count: 1 });
    }
    Ok(bits)
}

/// Nobody writes to it any more, whoever has a descriptor of it: not even a process that a guest has taken over. A file of
/// a file system, which knows no seals, is whoever's who gave it.
fn seal(file: &OwnedFd) -> Result<(), Errno> {
    let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    match rustix::fs::fcntl_get_seals(file) {
        Err(Errno::INVAL) => Ok(()),
        // One in memory says that it takes none.
        found if found?.contains(SealFlags::SEAL) => Ok(()),
        _ => rustix::fs::fcntl_add_seals(file, seals),
    }
}

impl Ram {
    /// The file becomes the image. `new` takes its place, for a later move.
    fn lie_over_own_file(&self, new: OwnedFd) -> Result<Option<Mapping>, Errno> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        let remains = self.show_image(&file, std::iter::once(0..self.guest.bytes))?;
        *self.below() = Some(Below::new(std::mem::replace(&mut *file, new), 0));
        self.use_privately();
        // What else shows the file would show, and write, an image.
        let nothing = ProtFlags::empty();
        self.others.get().map_or(Ok(()), |others| others.blank(0, others.bytes, nothing))?;
        Ok(remains)
    }

    /// Has RAM's addresses show `image` in the place of what they show now, which are mappings like `mapped`, but for
    /// what the kernel did not join. To unmap pages takes time for each, so they are moved aside with their page tables.
    fn show_image(
        &self,
        image: &OwnedFd,
        mapped: impl IntoIterator<Item = Range<usize>>,
    ) -> Result<Option<Mapping>, Errno> {
        // Without it all, it only takes longer.
        let aside = Mapping::reserve(self.guest.bytes).ok();
        let mut moved = Vec::new();
        if let Some(aside) = &aside {
            let moves = mapped.into_iter().filter(|part| self.guest.move_to(aside, part).is_ok());
            moved.extend(moves);
        }
        let shown = self.guest.show_privately(image, 0, self.guest.bytes, 0);
        if let (Err(_), Some(aside)) = (shown, &aside) {
            // As it was: what was moved has come from there, so there is room.
            for part in &moved {
                let _ = aside.move_to(&self.guest, part);
            }
        }
        shown.map(|()| aside)
    }

    /// `new`, which has what the image had, gets what was written since, and becomes the image.
    fn lie_over_a_copy(&self, new: OwnedFd) -> Result<(u32, Option<Mapping>), Errno> {
        let mut below = self.below();
        let Some(below) = &mut *below else { return Err(Errno::NOTSUP) };
        for (&first, &end) in &below.blanks {
            let (at, bytes) = (u64::from(first), u64::from(end - first));
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let page = FRAME_SIZE as u64;
            rustix::fs::fallocate(&new, how, at * page, bytes * page)?;
        }
        let mut copied = 0;
        for run in self.own_runs()? {
            self.write_to(&new, run)?;
            copied += run.count;
        }
        let remains = self.show_image(&new, below.mappings(self.guest.bytes))?;
        *below = Below::new(new, 0);
        Ok((copied, remains))
    }

    /// Frames in pages of this process: what was written since RAM lies over an image.
    fn own_runs(&self) -> Result<Vec<FrameRange>, Errno> {
        let pagemap = self.pagemap.as_ref().ok_or(Errno::NOTSUP)?;
        let unknown = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let is_own =
            |entry| entry & SWAPPED != 0 || entry & HAS_CONTENTS != 0 && entry & OF_FILE == 0;
        let mut own = Vec::new();
        for offset in (0..self.guest.bytes).step_by(LARGE_PAGE) {
            let bytes = LARGE_PAGE.min(self.guest.bytes - offset);
            let pages = pages_that(pagemap, self.guest.base, offset, bytes, is_own);
            let pages = pages.map_err(unknown)?.into_iter();
            own.extend(pages.map(|page| Frame((page / FRAME_SIZE) as u32)));
        }
        Ok(FrameRange::coalesce(&own, u32::MAX))
    }

    /// Writes what RAM shows in place of the image; how many frames were copied.
    fn write_layer(&self, layer: &OwnedFd) -> Result<u32, Errno> {
        let below = self.below();
        let Some(below) = &*below else { return Err(Errno::NOTSUP) };
        let own = self.own_runs()?;
        if own.len() > RUNS_MAX {
            return Err(Errno::AGAIN);
        }
        let mut bitmap = vec![0; bitmap_len((self.guest.bytes / FRAME_SIZE) as u32)];
        for frame in below.blanks.iter().flat_map(|(first, end)| *first..*end) {
            bitmap[frame as usize / 8] |= 1 << (frame % 8);
        }
        let written = rustix::io::pwrite(layer, &bitmap, self.guest.bytes as u64)?;
        if written != bitmap.len() {
            return Err(Errno::NOSPC);
        }
        let mut copied = 0;
        for run in own {
            self.write_to(layer, run)?;
            copied += run.count;
        }
        Ok(copied)
    }

    /// Writes a run of RAM to where it is in an image.
    fn write_to(&self, image: &OwnedFd, run: FrameRange) -> Result<(), Errno> {
        let start = run.first.index() * FRAME_SIZE;
        let (mut done, bytes) = (0, run.count as usize * FRAME_SIZE);
        while done < bytes {
            use std::os::fd::AsRawFd;
            let at = self.guest.base.as_ptr().wrapping_add(start + done);
            // SAFETY: the kernel reads `bytes - done` bytes of RAM, which is mapped for as long as `self`.
            let written = unsafe {
                let offset = (start + done) as libc::off_t;
                libc::pwrite(image.as_raw_fd(), at.cast(), bytes - done, offset)
            };
            match written {
                0 => return Err(Errno::NOSPC),
                1.. => done += written as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
