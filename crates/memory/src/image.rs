//! Guest RAM over an image: a file that holds its contents and is not written any more. Clones share it, and the VM that
//! they are clones of: each has pages of its own only of what it has written since.
//!
//! ```text
//!   image      0 1 2 3 . . 6 7      frame n at `from` + 4096 n; holes (.) are zeros
//!                | private mapping, copy on write: the kernel's
//!   RAM        0 1'2 0 0 0 6 7      1 was written; 3 was given back: zeros of this process are mapped over it, as over
//!                                   long holes, so that a first write copies nothing
//! ```
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
use crate::backing::MoveError;
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
    /// The new file is not new.
    #[error("a file of {0} bytes for a new image: it must be empty")]
    NotEmpty(u64),
    /// Contents that are elsewhere cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] ResolveError),
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
    /// Which image it is a copy of.
    of: Option<FileId>,
}

/// Device and inode.
type FileId = (u64, u64);

/// The image that RAM lies over.
pub(crate) struct Below {
    file: OwnedFd,
    from: u64,
    /// Where zeros are mapped over it: from the first frame of a run to the one behind it. Runs do not touch.
    blanks: BTreeMap<u32, u32>,
}

impl Below {
    fn new(file: OwnedFd, from: u64) -> Self {
        Self { file, from, blanks: BTreeMap::new() }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, from: self.from, blanks: self.blanks.clone() })
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
        let borders = self.blanks.iter().flat_map(|(first, end)| [*first, *end]);
        let borders = borders.map(|frame| frame as usize * FRAME_SIZE).chain([bytes]);
        let mut start = 0;
        let part = |end| std::mem::replace(&mut start, end)..end;
        borders.map(part).filter(|part| !part.is_empty()).collect()
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
        let extents = extents(&self.file, from..from + bytes as u64)?;
        let pages = extents.into_iter().flat_map(|extent| extent.step_by(FRAME_SIZE));
        let pages = pages.map(|at| (at - self.from) as usize);
        Ok(pages.filter(|page| !self.is_blank((page / FRAME_SIZE) as u32)).collect())
    }

    /// Copies the image into another one.
    fn copy_to(&self, file: &OwnedFd, bytes: u64) -> io::Result<()> {
        let (own, into) = (File::from(self.file.try_clone()?), File::from(file.try_clone()?));
        let mut piece = vec![0; PIECE];
        for extent in extents(&self.file, self.from..self.from + bytes)? {
            for at in extent.clone().step_by(PIECE) {
                let piece = &mut piece[..(extent.end - at).min(PIECE as u64) as usize];
                own.read_exact_at(piece, at)?;
                into.write_all_at(piece, at - self.from)?;
            }
        }
        Ok(())
    }
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
        if !from.is_multiple_of(FRAME_SIZE as u64) {
            return Err(ImageError::Unaligned(from));
        }
        let expected = from.saturating_add(layout.bytes());
        let found = length(&image)?;
        if found < expected {
            return Err(ImageError::Short { found, expected });
        }
        let action = "map an image of memory";
        let bytes = layout.bytes() as usize;
        let guest = Mapping::reserve(bytes).map_err(host(action))?;
        guest.show_privately(&image, 0, bytes, from).map_err(host(action))?;
        let contents = extents(&image, from..expected).map_err(host("find holes of an image"))?;
        let mut below = Below::new(image, from);
        let based =
            contents_and_holes(&contents, layout.frames(), from, |hole| below.blank(&guest, hole));
        let based = based.map_err(host(action))?;
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
        if let Some(below) = &below {
            below.copy_to(&new, self.bytes()).map_err(host("copy the image of memory"))?;
        }
        Ok(ImageDraft { file: new, of: below.as_ref().map(Below::id).transpose()? })
    }

    /// Makes the contents of now an image, which this memory lies over from then on. Its addresses stay what they are;
    /// what it writes becomes its own.
    ///
    /// In a file, that is a matter of mapping it anew. Over an image, what was written since is copied into a new one.
    /// Anonymous memory moves to a file first, which takes about half a second per GiB. Nobody may use the memory
    /// until this returns, but devices that hold a frame are waited for.
    ///
    /// # Errors
    /// A device does not let go; the host refuses. The memory is as usable as before.
    pub fn become_image(&self, draft: ImageDraft) -> Result<Image, ImageError> {
        let _no_discard = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        let _unpinned = self.wait_unpinned()?;
        let of = self.ram.below().as_ref().map(Below::id).transpose()?;
        if of != draft.of {
            return Err(ImageError::Overtaken);
        }
        let is_over_an_image = of.is_some();
        if self.is_anonymous() && !is_over_an_image {
            self.ram.move_to_file().map_err(MoveError::Host)?;
        }
        let copied = match is_over_an_image {
            true => self.ram.lie_over_a_copy(draft.file),
            false => self.ram.lie_over_own_file(draft.file).map(|remains| (0, remains)),
        };
        let (copied, remains) = copied.map_err(host("map an image of memory"))?;
        let below = self.ram.below();
        let below = below.as_ref().expect("it lies over an image since the line above");
        seal(&below.file).map_err(host("seal an image of memory"))?;
        let file = below.file.try_clone().map_err(host("hand out an image of memory"))?;
        Ok(Image { file, from: below.from, copied, remains: Remains(remains) })
    }
}

/// Nobody writes to it any more, whoever has a descriptor of it: not even a process that a guest has taken over.
fn seal(file: &OwnedFd) -> Result<(), Errno> {
    let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    match rustix::fs::fcntl_get_seals(file)?.contains(seals) {
        true => Ok(()),
        false => rustix::fs::fcntl_add_seals(file, seals),
    }
}

/// The frames that the image has contents of; tells of long holes.
fn contents_and_holes(
    contents: &[Range<u64>],
    frames: u32,
    from: u64,
    mut hole: impl FnMut(FrameRange) -> Result<(), Errno>,
) -> Result<Bits, Errno> {
    let number = |at: u64| ((at - from) / FRAME_SIZE as u64) as u32;
    let mut based = Bits::new(frames);
    let (mut end, mut holes) = (0, 0);
    let behind_all = frames..frames;
    let runs = contents.iter().map(|extent| number(extent.start)..number(extent.end));
    for run in runs.chain([behind_all]) {
        if run.start - end >= LONG_HOLE && holes < HOLES_MAX {
            hole(FrameRange { first: Frame(end), count: run.start - end })?;
            holes += 1;
        }
        based.insert(FrameRange { first: Frame(run.start), count: run.end - run.start });
        end = run.end;
    }
    Ok(based)
}

impl Ram {
    /// The file becomes the image. `new` takes its place, for a later move.
    fn lie_over_own_file(&self, new: OwnedFd) -> Result<Option<Mapping>, Errno> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        let remains = self.show_image(&file, [0..self.guest.bytes])?;
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
        let (Some(below), Some(pagemap)) = (&mut *below, &self.pagemap) else {
            return Err(Errno::NOTSUP);
        };
        let unknown = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        for (&first, &end) in &below.blanks {
            let (at, bytes) = (u64::from(first), u64::from(end - first));
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let page = FRAME_SIZE as u64;
            rustix::fs::fallocate(&new, how, at * page, bytes * page)?;
        }
        let mut copied = 0;
        for offset in (0..self.guest.bytes).step_by(LARGE_PAGE) {
            let bytes = LARGE_PAGE.min(self.guest.bytes - offset);
            let is_own =
                |entry| entry & SWAPPED != 0 || entry & HAS_CONTENTS != 0 && entry & OF_FILE == 0;
            let pages = pages_that(pagemap, self.guest.base, offset, bytes, is_own);
            let pages = pages.map_err(unknown)?.into_iter();
            let pages: Vec<Frame> = pages.map(|page| Frame((page / FRAME_SIZE) as u32)).collect();
            for run in FrameRange::coalesce(&pages, u32::MAX) {
                self.write_to(&new, run)?;
                copied += run.count;
            }
        }
        let remains = self.show_image(&new, below.mappings(self.guest.bytes))?;
        *below = Below::new(new, 0);
        Ok((copied, remains))
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
