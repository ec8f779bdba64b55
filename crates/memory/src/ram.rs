//! The host memory behind guest RAM: one memfd, mapped once, shared, between guard pages.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::address::{FRAME_SIZE, Frame, FrameRange};

/// Address space that faults, before and after RAM: an access that runs over an end of RAM stops
/// there instead of in somebody else's memory.
const GUARD: usize = FRAME_SIZE;

/// A mapping of guest RAM as one array of frames.
pub(crate) struct Ram {
    file: OwnedFd,
    /// The first byte of RAM; `GUARD` bytes of guard lie before it.
    base: NonNull<u8>,
    /// Bytes of RAM, a multiple of 4096.
    bytes: usize,
}

// SAFETY: `base` is the address of a mapping that lives until drop and belongs to no thread.
unsafe impl Send for Ram {}
// SAFETY: as above; the methods only compute addresses or make system calls.
unsafe impl Sync for Ram {}

impl Ram {
    pub(crate) fn map(bytes: usize) -> Result<Ram, Errno> {
        let file = rustix::fs::memfd_create("fathom-guest-ram", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        let reserved = bytes + 2 * GUARD;
        // SAFETY: a new mapping at an address of the kernel's choice changes no existing one.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                reserved,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // SAFETY: the range lies inside the reservation made above, which nobody else knows of.
        let mapped = unsafe {
            rustix::mm::mmap(
                start.byte_add(GUARD),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                &file,
                0,
            )
        };
        match mapped {
            Ok(base) => {
                let base = NonNull::new(base.cast()).expect("a mapping behind a guard is not null");
                Ok(Ram { file, base, bytes })
            }
            Err(error) => {
                // SAFETY: undoes the reservation, which nothing uses.
                unsafe { unmap(start, reserved) };
                Err(error)
            }
        }
    }

    /// The address of byte `offset` of RAM.
    ///
    /// Panics past the end: callers check against the layout first.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.bytes, "offset {offset} in {} bytes of RAM", self.bytes);
        // SAFETY: the sum is inside the mapping, by the line above.
        unsafe { self.base.add(offset) }
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

    /// Gives the pages of a run back to the host; they read as zeros then.
    pub(crate) fn punch(&self, run: FrameRange) -> Result<(), Errno> {
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

    /// Host memory that the file holds now, in bytes.
    pub(crate) fn backed_bytes(&self) -> Result<u64, Errno> {
        // st_blocks counts units of 512 bytes (inode(7)).
        Ok(rustix::fs::fstat(&self.file)?.st_blocks as u64 * 512)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: `map` made exactly this reservation; whoever holds an address into it borrowed
        // the memory or broke the contract of HostPage.
        unsafe {
            let start = self.base.as_ptr().sub(GUARD);
            unmap(start.cast(), self.bytes + 2 * GUARD);
        }
    }
}

/// Unmaps a reservation.
///
/// # Safety
/// As for munmap(2): nothing may use the range any more.
unsafe fn unmap(start: *mut c_void, bytes: usize) {
    // SAFETY: passed on to the caller.
    let done = unsafe { rustix::mm::munmap(start, bytes) };
    debug_assert!(done.is_ok(), "munmap of our own mapping: {done:?}");
}
