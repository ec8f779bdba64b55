//! The host memory behind guest RAM, between guard pages.
//!
//! ```text
//!   file:       memfd <--- one mapping
//!                  | set_guest_apart
//!                  v
//!               memfd <--- the same addresses, for the guest
//!                     <--- a second mapping, for everybody else
//!                  ^
//!                  | move_to_file
//!   anonymous:  one private mapping, for which the host has pages of 2 MiB
//!
//!   image:      a file that is never written again <--- one private mapping: the image's pages until they are
//!                  ^                |                   written, then pages of this process; zero pages over
//!                  | become_image   | move_to_file      what was given back (image.rs)
//!               file or image       v
//!                                 file
//! ```
//! Anonymous memory is faster: the host maps 2 MiB by one fault, where a memfd's pages are of 4 KiB unless
//! an administrator allows others. What it lacks is a second way to the same bytes, by which the guest's
//! accesses are told from those of devices.

use std::ffi::c_void;
use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use crate::address::{FRAME_SIZE, Frame, FrameRange, is_zero};
use crate::image::Below;
use crate::landing::Landing;

/// Address space that faults, before and after RAM: an access that runs over an end of RAM stops
/// there instead of in somebody else's memory.
const GUARD: usize = FRAME_SIZE;

/// The host's large page, at whose multiples RAM begins: a processor with nested paging maps by it only
/// what lies alike in both address spaces.
pub(crate) const LARGE_PAGE: usize = 2 << 20;

/// A pagemap entry says that the page has contents: it is mapped, or swapped out
/// (Documentation/admin-guide/mm/pagemap.rst).
pub(crate) const HAS_CONTENTS: u64 = 1 << 63 | 1 << 62;

/// Guest RAM as one array of frames.
pub(crate) struct Ram {
    pub(crate) file: RwLock<OwnedFd>,
    /// Where the guest accesses RAM.
    pub(crate) guest: Mapping,
    /// The first byte of RAM for all others: the same, unless the guest is apart.
    base: AtomicPtr<u8>,
    /// For all others, once the guest is apart.
    pub(crate) others: OnceLock<Mapping>,
    /// Held by who fills pages by writing to the file, so that others find another way.
    writing: Mutex<()>,
    /// The other way.
    landing: RwLock<Option<Landing>>,
    /// Its contents are not in the file, or not all.
    anonymous: AtomicBool,
    /// The image below, where there is one; then RAM is private to one mapping as if it were anonymous.
    below: Mutex<Option<Below>>,
    /// Of this process, opened while it may.
    pub(crate) pagemap: Option<File>,
}

/// A reservation of address space with RAM in it, mapped until drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    reserved: usize,
    /// The first byte of RAM; at least `GUARD` bytes lie before it and after its end.
    pub(crate) base: NonNull<u8>,
    /// Bytes of RAM, a multiple of 4096.
    pub(crate) bytes: usize,
}

// SAFETY: the addresses are of a mapping that lives until drop and belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods only compute addresses or make system calls.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn reserve(bytes: usize) -> Result<Self, Errno> {
        let reserved = bytes + LARGE_PAGE + 2 * GUARD;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no existing one.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), flags)?
        };
        let start = NonNull::new(start.cast::<u8>()).expect("the kernel maps nothing at 0");
        let skip = (start.as_ptr() as usize + GUARD).next_multiple_of(LARGE_PAGE)
            - start.as_ptr() as usize;
        // SAFETY: `skip <= GUARD + LARGE_PAGE`, so the sum is inside the reservation.
        let base = unsafe { start.add(skip) };
        Ok(Self { start, reserved, base, bytes })
    }

    fn anonymous(bytes: usize) -> Result<Self, Errno> {
        let mapping = Self::reserve(bytes)?;
        let (access, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
        );
        // SAFETY: RAM's part of the reservation, which nobody else knows of.
        unsafe {
            rustix::mm::mmap_anonymous(mapping.base.as_ptr().cast(), bytes, access, flags)?;
        }
        // Large pages where the host gives them at all; as for a memfd, no guest memory in core dumps and
        // none for children.
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: neither changes what is there. A kernel without large pages refuses the first.
            let _ = unsafe { rustix::mm::madvise(mapping.base.as_ptr().cast(), bytes, advice) };
        }
        Ok(mapping)
    }

    fn of_file(file: &OwnedFd, bytes: usize) -> Result<Self, Errno> {
        let mapping = Self::reserve(bytes)?;
        mapping.show(file, 0, bytes)?;
        Ok(mapping)
    }

    /// Maps `bytes` of the file at `offset` to where they are in RAM, in the place of what is there.
    pub(crate) fn show(&self, file: &OwnedFd, offset: usize, bytes: usize) -> Result<(), Errno> {
        self.map(file, offset, bytes, offset as u64, MapFlags::SHARED)
    }

    /// Maps `bytes` of the file at `from` to `offset` in RAM, privately, in the place of what is there.
    pub(crate) fn show_privately(
        &self,
        file: &OwnedFd,
        offset: usize,
        bytes: usize,
        from: u64,
    ) -> Result<(), Errno> {
        self.map(file, offset, bytes, from, MapFlags::PRIVATE)?;
        self.keep_out_of_dumps(offset, bytes)
    }

    /// Maps zeros of this process to `offset` in RAM, or nothing that anybody may access.
    pub(crate) fn blank(
        &self,
        offset: usize,
        bytes: usize,
        access: ProtFlags,
    ) -> Result<(), Errno> {
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} in {} bytes", self.bytes);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: RAM's part of the reservation. That nobody misses what was there is the caller's matter.
        unsafe {
            let at = self.base.add(offset).as_ptr().cast();
            rustix::mm::mmap_anonymous(at, bytes, access, flags)?;
        }
        self.keep_out_of_dumps(offset, bytes)
    }

    /// Moves the pages of a part, a single mapping, to the same place of another one. What is mapped here stays so,
    /// without pages: of a shared mapping they come back when they are accessed, of a private one they are lost here.
    pub(crate) fn move_to(&self, to: &Mapping, part: &Range<usize>) -> Result<(), Errno> {
        assert!(part.end <= self.bytes && part.end <= to.bytes, "{part:?} of {}", self.bytes);
        let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
        // SAFETY: both are RAM's parts of reservations. That nobody misses what was there is the caller's matter.
        unsafe {
            let from = self.base.add(part.start).as_ptr().cast();
            let to = to.base.add(part.start).as_ptr().cast();
            rustix::mm::mremap_fixed(from, part.len(), part.len(), flags, to)
        }
        .map(drop)
    }

    /// As it is for what a process shares with others.
    fn keep_out_of_dumps(&self, offset: usize, bytes: usize) -> Result<(), Errno> {
        // SAFETY: inside the reservation, as whoever calls has checked; it changes no contents.
        unsafe {
            let at = self.base.add(offset).as_ptr().cast();
            rustix::mm::madvise(at, bytes, Advice::LinuxDontDump)
        }
    }

    fn map(
        &self,
        file: &OwnedFd,
        offset: usize,
        bytes: usize,
        from: u64,
        how: MapFlags,
    ) -> Result<(), Errno> {
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} in {} bytes", self.bytes);
        let flags = how | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: RAM's part of the reservation. That nobody misses what was there is the caller's matter.
        unsafe {
            rustix::mm::mmap(
                self.base.add(offset).as_ptr().cast(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file,
                from,
            )
        }
        .map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `reserve` made exactly this reservation; whoever holds an address into it borrowed the
        // memory or broke the contract of HostPage.
        let done = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.reserved) };
        debug_assert!(done.is_ok(), "munmap of our own mapping: {done:?}");
    }
}

impl Ram {
    /// In a file, or anonymous.
    pub(crate) fn map(bytes: usize, anonymous: bool) -> Result<Ram, Errno> {
        let file = Self::make_file(bytes)?;
        let guest =
            if anonymous { Mapping::anonymous(bytes)? } else { Mapping::of_file(&file, bytes)? };
        let pagemap = match open_pagemap() {
            Err(error) if anonymous => return Err(error),
            pagemap => pagemap.ok(),
        };
        Ok(Self::of(file, guest, anonymous, pagemap))
    }

    /// A file for so much RAM, of which no other program knows. It can be sealed.
    pub(crate) fn make_file(bytes: usize) -> Result<OwnedFd, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("fathom-guest-ram", flags)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        Ok(file)
    }

    pub(crate) fn of(file: OwnedFd, guest: Mapping, anonymous: bool, pagemap: Option<File>) -> Ram {
        Ram {
            file: RwLock::new(file),
            base: AtomicPtr::new(guest.base.as_ptr()),
            guest,
            others: OnceLock::new(),
            writing: Mutex::default(),
            landing: RwLock::default(),
            anonymous: AtomicBool::new(anonymous),
            below: Mutex::new(None),
            pagemap,
        }
    }

    pub(crate) fn below(&self) -> MutexGuard<'_, Option<Below>> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn file(&self) -> RwLockReadGuard<'_, OwnedFd> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.anonymous.load(Ordering::Acquire)
    }

    /// Where the guest's accesses go; the same for the life of the memory.
    pub(crate) fn guest_base(&self) -> NonNull<u8> {
        self.guest.base
    }

    /// Puts the contents into the file, and the file in the place of the anonymous memory. On an error a
    /// part has moved, which changes nothing for its users; it can be tried again. What somebody writes
    /// meanwhile may be lost.
    pub(crate) fn move_to_file(&self) -> std::io::Result<()> {
        let (true, Some(pagemap)) = (self.is_anonymous(), &self.pagemap) else {
            return Ok(());
        };
        let mut below = self.below();
        let file = self.file();
        let others = self.others(&file)?;
        for offset in (0..self.guest.bytes).step_by(LARGE_PAGE) {
            let bytes = LARGE_PAGE.min(self.guest.bytes - offset);
            let mut pages = pages_with_contents(pagemap, self.guest.base, offset, bytes)?;
            if let Some(below) = &*below {
                pages.extend(below.pages_with_contents(offset, bytes)?);
                pages.sort_unstable();
                pages.dedup();
            }
            for page in pages {
                let mut contents = [0; FRAME_SIZE];
                // SAFETY: a page of the guest's mapping, and a buffer of its size.
                unsafe {
                    let page = self.guest.base.add(page).as_ptr();
                    contents.as_mut_ptr().copy_from_nonoverlapping(page, FRAME_SIZE);
                }
                // What the host's large page has beyond what the guest touched stays a hole.
                if !is_zero(&contents) {
                    self.fill(Frame((page / FRAME_SIZE) as u32), &contents)?;
                }
            }
            self.guest.show(&file, offset, bytes)?;
        }
        *below = None;
        self.base.store(others.base.as_ptr(), Ordering::Release);
        self.anonymous.store(false, Ordering::Release);
        Ok(())
    }

    /// Maps RAM in a file a second time, for all but the guest; anonymous RAM stays as it is.
    pub(crate) fn set_guest_apart(&self) -> Result<(), Errno> {
        if !self.is_anonymous() && self.others.get().is_none() {
            let others = self.others(&self.file())?;
            self.base.store(others.base.as_ptr(), Ordering::Release);
        }
        Ok(())
    }

    /// RAM is private to the guest's mapping from now on, which others use, too. Nobody does meanwhile.
    pub(crate) fn use_privately(&self) {
        self.base.store(self.guest.base.as_ptr(), Ordering::Release);
        self.anonymous.store(true, Ordering::Release);
    }

    /// A mapping of the file for all but the guest. Whoever uses it already sees the same file.
    fn others(&self, file: &OwnedFd) -> Result<&Mapping, Errno> {
        if let Some(others) = self.others.get() {
            others.show(file, 0, others.bytes)?;
            return Ok(others);
        }
        let others = Mapping::of_file(file, self.guest.bytes)?;
        Ok(self.others.get_or_init(|| others))
    }

    /// The address of byte `offset` of RAM.
    ///
    /// Panics past the end: callers check against the layout first.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        let bytes = self.guest.bytes;
        assert!(offset < bytes, "offset {offset} in {bytes} bytes of RAM");
        // SAFETY: the sum is inside the mapping, by the line above; no mapping is at 0.
        unsafe { NonNull::new_unchecked(self.base.load(Ordering::Relaxed).add(offset)) }
    }

    /// The address of a frame that exists.
    #[inline]
    pub(crate) fn page(&self, frame: Frame) -> NonNull<u8> {
        self.at(frame.index() * FRAME_SIZE)
    }

    /// Copies a page that is there.
    pub(crate) fn copy(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) {
        // SAFETY: a page of the mapping, and host memory of its size, so they do not overlap.
        unsafe {
            into.as_mut_ptr().copy_from_nonoverlapping(self.page(frame).as_ptr(), FRAME_SIZE);
        }
    }

    /// Copies what is at a frame without making a page there: zeros where there is none.
    pub(crate) fn peek(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) {
        let offset = frame.index() as u64 * FRAME_SIZE as u64;
        let whole = !self.is_anonymous()
            && rustix::io::pread(&*self.file(), &mut into[..], offset) == Ok(FRAME_SIZE);
        if !whole {
            self.copy(frame, into);
        }
    }

    /// Puts a page into the file, which had none there. The kernel holds the page locked until it is
    /// complete: a page fault in any mapping waits for that. On an error there is no page.
    pub(crate) fn fill(&self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> Result<(), Errno> {
        let offset = frame.index() as u64 * FRAME_SIZE as u64;
        let error = loop {
            match rustix::io::pwrite(&*self.file(), contents, offset) {
                Ok(FRAME_SIZE) => return Ok(()),
                Ok(_) => break Errno::NOSPC,
                Err(Errno::INTR) => {}
                Err(error) => break error,
            }
        };
        let _ = self.punch(FrameRange { first: frame, count: 1 });
        Err(error)
    }

    /// As [`Ram::fill`], for neighbours from `first` on, at most 1024 (IOV_MAX): answers how many pages, from the first on, are complete
    /// in the file, and why not all. The others are not in it.
    ///
    /// One thread at a time writes to the file, which costs least; others need not wait for it where
    /// [`Ram::open_landing`] has worked.
    pub(crate) fn fill_run(
        &self,
        first: Frame,
        pages: &[IoSlice<'_>],
    ) -> (usize, Result<(), Errno>) {
        let writing = self.writing.try_lock();
        let landing = self.landing.read().unwrap_or_else(PoisonError::into_inner);
        let mut complete = match (&writing, &*landing) {
            (Err(TryLockError::WouldBlock), Some(landing)) => {
                landing.copy(first.index() * FRAME_SIZE, pages)
            }
            _ => 0,
        };
        let error = loop {
            if complete == pages.len() {
                return (complete, Ok(()));
            }
            let offset = (first.index() + complete) as u64 * FRAME_SIZE as u64;
            match rustix::io::pwritev(&*self.file(), &pages[complete..], offset) {
                Ok(bytes) if bytes > 0 && bytes % FRAME_SIZE == 0 => complete += bytes / FRAME_SIZE,
                Ok(bytes) => {
                    complete += bytes / FRAME_SIZE;
                    break Errno::NOSPC;
                }
                Err(Errno::INTR) => {}
                Err(error) => break error,
            }
        };
        // The page that it stopped at may be there, with zeros for what did not come.
        let stopped = FrameRange { first: Frame(first.0 + complete as u32), count: 1 };
        let _ = self.punch(stopped);
        (complete, Err(error))
    }

    /// Makes [`Ram::fill_run`] fast for many threads at once, if the host allows: for RAM's size of address space
    /// and, per page filled, 8 bytes of page tables, until [`Ram::close_landing`].
    pub(crate) fn open_landing(&self) {
        let mut landing = self.landing.write().unwrap_or_else(PoisonError::into_inner);
        if landing.is_none() {
            let mapping = self.another_mapping().ok();
            *landing = mapping.and_then(|mapping| Landing::new(mapping).ok());
        }
    }

    pub(crate) fn another_mapping(&self) -> Result<Mapping, Errno> {
        Mapping::of_file(&self.file(), self.guest.bytes)
    }

    pub(crate) fn close_landing(&self) {
        let is_open = self.landing.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_open {
            // Unmapped after the lock is free.
            let landing = self.landing.write().unwrap_or_else(PoisonError::into_inner).take();
            drop(landing);
        }
    }

    /// Gives the pages of a run back to the host; they read as zeros then.
    pub(crate) fn punch(&self, run: FrameRange) -> Result<(), Errno> {
        if self.is_anonymous() {
            if let Some(below) = &mut *self.below() {
                below.blank(&self.guest, run)?;
            } else {
                self.drop_anonymous(run)?;
            }
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let offset = run.first.index() as u64 * FRAME_SIZE as u64;
        let bytes = u64::from(run.count) * FRAME_SIZE as u64;
        loop {
            match rustix::fs::fallocate(&*self.file(), flags, offset, bytes) {
                Err(Errno::INTR) => {}
                done => return done,
            }
        }
    }

    fn drop_anonymous(&self, run: FrameRange) -> Result<(), Errno> {
        let start = self.page(run.first).as_ptr().cast::<c_void>();
        // SAFETY: as for `punch`: the caller has seen to it that nobody uses the contents.
        unsafe {
            rustix::mm::madvise(start, run.count as usize * FRAME_SIZE, Advice::LinuxDontNeed)
        }
    }

    /// Host memory that the file holds now, in bytes.
    pub(crate) fn backed_bytes(&self) -> Result<u64, Errno> {
        // st_blocks counts units of 512 bytes (inode(7)).
        Ok(rustix::fs::fstat(&*self.file())?.st_blocks as u64 * 512)
    }
}

pub(crate) fn open_pagemap() -> Result<File, Errno> {
    let unknown = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    File::open("/proc/self/pagemap").map_err(unknown)
}

/// The pages with contents among the `bytes` at `offset` of a mapping, by their offsets.
fn pages_with_contents(
    pagemap: &File,
    base: NonNull<u8>,
    offset: usize,
    bytes: usize,
) -> std::io::Result<Vec<usize>> {
    pages_that(pagemap, base, offset, bytes, |entry| entry & HAS_CONTENTS != 0)
}

/// The pages, among the `bytes` at `offset` of a mapping, at most [`LARGE_PAGE`], whose entry is as `wanted`; by their
/// offsets.
pub(crate) fn pages_that(
    pagemap: &File,
    base: NonNull<u8>,
    offset: usize,
    bytes: usize,
    wanted: impl Fn(u64) -> bool,
) -> std::io::Result<Vec<usize>> {
    let mut entries = [0; LARGE_PAGE / FRAME_SIZE * 8];
    let entries = &mut entries[..bytes / FRAME_SIZE * 8];
    let first = (base.as_ptr() as usize + offset) / FRAME_SIZE;
    pagemap.read_exact_at(entries, first as u64 * 8)?;
    let pages = (offset..).step_by(FRAME_SIZE).zip(entries.as_chunks::<8>().0);
    let full = pages.filter(|(_, entry)| wanted(u64::from_ne_bytes(**entry)));
    Ok(full.map(|(page, _)| page).collect())
}
