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
//! ```
//! Anonymous memory is faster: the host maps 2 MiB by one fault, where a memfd's pages are of 4 KiB unless
//! an administrator allows others. What it lacks is a second way to the same bytes, by which the guest's
//! accesses are told from those of devices.

use std::ffi::c_void;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, TryLockError};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::address::{FRAME_SIZE, Frame, FrameRange};
use crate::landing::Landing;

/// Address space that faults, before and after RAM: an access that runs over an end of RAM stops
/// there instead of in somebody else's memory.
const GUARD: usize = FRAME_SIZE;

/// The host's large page, at whose multiples RAM begins: a processor with nested paging maps by it only
/// what lies alike in both address spaces.
const LARGE_PAGE: usize = 2 << 20;

/// A pagemap entry says that the page has contents: it is mapped, or swapped out
/// (Documentation/admin-guide/mm/pagemap.rst).
const HAS_CONTENTS: u64 = 1 << 63 | 1 << 62;

/// Guest RAM as one array of frames.
pub(crate) struct Ram {
    file: OwnedFd,
    /// Where the guest accesses RAM.
    guest: Mapping,
    /// The first byte of RAM for all others: the same, unless the guest is apart.
    base: AtomicPtr<u8>,
    /// For all others, once the guest is apart.
    others: OnceLock<Mapping>,
    /// Held by who fills pages by writing to the file, so that others find another way.
    writing: Mutex<()>,
    /// The other way.
    landing: RwLock<Option<Landing>>,
    /// Its contents are not in the file, or not all.
    anonymous: AtomicBool,
    /// Of this process, opened while it may: for anonymous RAM.
    pagemap: Option<File>,
}

/// A reservation of address space with RAM in it, mapped until drop.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    reserved: usize,
    /// The first byte of RAM; at least `GUARD` bytes lie before it and after its end.
    base: NonNull<u8>,
    /// Bytes of RAM, a multiple of 4096.
    bytes: usize,
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

    fn reserve(bytes: usize) -> Result<Self, Errno> {
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
    fn show(&self, file: &OwnedFd, offset: usize, bytes: usize) -> Result<(), Errno> {
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} in {} bytes", self.bytes);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: RAM's part of the reservation. That nobody misses what was there is the caller's matter.
        unsafe {
            rustix::mm::mmap(
                self.base.add(offset).as_ptr().cast(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file,
                offset as u64,
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
        let file = rustix::fs::memfd_create("fathom-guest-ram", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        let guest =
            if anonymous { Mapping::anonymous(bytes)? } else { Mapping::of_file(&file, bytes)? };
        let pagemap = anonymous.then(open_pagemap).transpose()?;
        Ok(Ram {
            file,
            base: AtomicPtr::new(guest.base.as_ptr()),
            guest,
            others: OnceLock::new(),
            writing: Mutex::default(),
            landing: RwLock::default(),
            anonymous: AtomicBool::new(anonymous),
            pagemap,
        })
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
        let others = Mapping::of_file(&self.file, self.guest.bytes)?;
        for offset in (0..self.guest.bytes).step_by(LARGE_PAGE) {
            let bytes = LARGE_PAGE.min(self.guest.bytes - offset);
            for page in pages_with_contents(pagemap, self.guest.base, offset, bytes)? {
                let mut contents = [0; FRAME_SIZE];
                // SAFETY: a page of the guest's mapping, and a buffer of its size.
                unsafe {
                    let page = self.guest.base.add(page).as_ptr();
                    contents.as_mut_ptr().copy_from_nonoverlapping(page, FRAME_SIZE);
                }
                // What the host's large page has beyond what the guest touched stays a hole.
                if contents.iter().any(|&byte| byte != 0) {
                    self.fill(Frame((page / FRAME_SIZE) as u32), &contents)?;
                }
            }
            self.guest.show(&self.file, offset, bytes)?;
        }
        self.use_apart(others);
        self.anonymous.store(false, Ordering::Release);
        Ok(())
    }

    /// Maps RAM in a file a second time, for all but the guest; anonymous RAM stays as it is.
    pub(crate) fn set_guest_apart(&self) -> Result<(), Errno> {
        if !self.is_anonymous() && self.others.get().is_none() {
            self.use_apart(Mapping::of_file(&self.file, self.guest.bytes)?);
        }
        Ok(())
    }

    /// Addresses of before stay good: they show the same file.
    fn use_apart(&self, others: Mapping) {
        let others = self.others.get_or_init(|| others);
        self.base.store(others.base.as_ptr(), Ordering::Release);
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

    /// Puts a page into the file, which had none there. The kernel holds the page locked until it is
    /// complete: a page fault in any mapping waits for that. On an error there is no page.
    pub(crate) fn fill(&self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> Result<(), Errno> {
        let offset = frame.index() as u64 * FRAME_SIZE as u64;
        let error = loop {
            match rustix::io::pwrite(&self.file, contents, offset) {
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
            match rustix::io::pwritev(&self.file, &pages[complete..], offset) {
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
        Mapping::of_file(&self.file, self.guest.bytes)
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
            self.drop_anonymous(run)?;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let offset = run.first.index() as u64 * FRAME_SIZE as u64;
        let bytes = u64::from(run.count) * FRAME_SIZE as u64;
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, bytes) {
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
        Ok(rustix::fs::fstat(&self.file)?.st_blocks as u64 * 512)
    }
}

fn open_pagemap() -> Result<File, Errno> {
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
    let mut entries = [0; LARGE_PAGE / FRAME_SIZE * 8];
    let entries = &mut entries[..bytes / FRAME_SIZE * 8];
    let first = (base.as_ptr() as usize + offset) / FRAME_SIZE;
    pagemap.read_exact_at(entries, first as u64 * 8)?;
    let pages = (offset..).step_by(FRAME_SIZE).zip(entries.as_chunks::<8>().0);
    let full = pages.filter(|(_, entry)| u64::from_ne_bytes(**entry) & HAS_CONTENTS != 0);
    Ok(full.map(|(page, _)| page).collect())
}
