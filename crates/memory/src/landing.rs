//! A way by which many threads put whole pages into RAM's file at once: UFFDIO_COPY of userfaultfd(2).
//!
//! The kernel fills a page before it shows it to anybody, as a write to the file does. But writes to a file wait
//! for each other (for the inode's lock, mm/shmem.c), and these do not: two threads are almost twice as fast as
//! one. It takes a mapping that is registered with a descriptor, which nobody else may access: an access there
//! would wait for ever.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::address::FRAME_SIZE;
use crate::ram::Mapping;
use crate::userfault::{UserFaults, open_userfaultfd};

/// UFFD_API, and UFFD_FEATURE_MISSING_SHMEM.
const API: u64 = 0xaa;
const MISSING_SHMEM: u64 = 1 << 5;
/// UFFDIO_REGISTER_MODE_MISSING.
const MISSING: u64 = 1;
/// UFFDIO_COPY_MODE_DONTWAKE.
const DONT_WAKE: u64 = 1;

/// struct uffdio_api.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// struct uffdio_register.
#[repr(C)]
struct Register {
    start: u64,
    bytes: u64,
    mode: u64,
    ioctls: u64,
}

/// struct uffdio_copy.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    /// Bytes copied, or an error number below 0.
    copied: i64,
}

/// _IOWR(0xaa, number, T).
const fn request<T>(number: u64) -> u64 {
    3 << 30 | (size_of::<T>() as u64) << 16 | API << 8 | number
}

const UFFDIO_API: u64 = request::<Api>(0x3f);
const UFFDIO_REGISTER: u64 = request::<Register>(0x00);
const UFFDIO_COPY: u64 = request::<Copy>(0x03);

/// The mapping, and its descriptor.
pub(crate) struct Landing {
    uffd: OwnedFd,
    mapping: Mapping,
}

impl Landing {
    /// Of all of RAM's file. An error where the host's kernel or settings do not allow it.
    pub(crate) fn new(mapping: Mapping) -> io::Result<Self> {
        let landing = Self { uffd: open_userfaultfd(UserFaults::UserMode)?, mapping };
        landing.request(UFFDIO_API, &mut Api { api: API, features: MISSING_SHMEM, ioctls: 0 })?;
        let (start, bytes) =
            (landing.mapping.base().as_ptr() as u64, landing.mapping.bytes() as u64);
        landing
            .request(UFFDIO_REGISTER, &mut Register { start, bytes, mode: MISSING, ioctls: 0 })?;
        Ok(landing)
    }

    /// Puts pages into the file at `offset`, a multiple of a page, where it has none. Answers how many, from the
    /// first on, are in; fewer than all where the kernel refuses one, which is not in then.
    pub(crate) fn copy(&self, offset: usize, pages: &[IoSlice<'_>]) -> usize {
        let end = offset + pages.len() * FRAME_SIZE;
        assert!(end <= self.mapping.bytes(), "{} pages at {offset}", pages.len());
        // One call for pages that follow each other in the caller's memory, too.
        let runs = pages.chunk_by(|page, next| page.as_ptr_range().end == next.as_ptr());
        let mut done = 0;
        for run in runs {
            let bytes = run.len() * FRAME_SIZE;
            let copied = self.copy_run(offset + done, run[0].as_ptr() as usize, bytes);
            done += copied;
            if copied < bytes {
                break;
            }
        }
        done / FRAME_SIZE
    }

    fn copy_run(&self, offset: usize, from: usize, bytes: usize) -> usize {
        let to = self.mapping.base().as_ptr() as usize + offset;
        let mut done = 0;
        while done < bytes {
            let (to, from, rest) = ((to + done) as u64, (from + done) as u64, bytes - done);
            let mut copy = Copy { to, from, bytes: rest as u64, mode: DONT_WAKE, copied: 0 };
            // EAGAIN after a part: the rest is asked for again.
            let _ = self.request(UFFDIO_COPY, &mut copy);
            match usize::try_from(copy.copied) {
                Ok(copied @ 1..) => done += copied.min(rest),
                _ => break,
            }
        }
        done
    }

    fn request<T>(&self, request: u64, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request is made here with the structure that its number is computed from, which lives
        // through the call. What they change is the mapping, which nobody accesses, and pages of RAM's file
        // that are not there yet.
        let result =
            unsafe { libc::ioctl(self.uffd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Frame, FrameRange};
    use crate::ram::Ram;

    /// What cannot be, but must do no harm: a page is in the file already.
    #[test]
    fn pages_arrive_up_to_the_first_that_is_there() {
        let ram = Ram::map(8 * FRAME_SIZE, false).expect("memory");
        if open_userfaultfd(UserFaults::UserMode).is_err() {
            return;
        }
        let landing = Landing::new(ram.another_mapping().expect("mapped")).expect("registered");
        let (apart, together) = ([1; FRAME_SIZE], [[2; FRAME_SIZE], [3; FRAME_SIZE]]);
        let pages = [&apart, &together[0], &together[1]].map(|page| IoSlice::new(page));
        ram.fill(Frame(5), &[9; FRAME_SIZE]).expect("filled");
        assert_eq!(landing.copy(FRAME_SIZE, &pages), 3);
        assert_eq!(landing.copy(4 * FRAME_SIZE, &pages), 1);
        // SAFETY: a page of RAM.
        let first_byte = |frame| unsafe { ram.page(Frame(frame)).as_ptr().read_volatile() };
        assert_eq!([1, 2, 3, 4, 5].map(first_byte), [1, 2, 3, 1, 9]);
        // A page that has left may come again.
        ram.punch(FrameRange { first: Frame(1), count: 2 }).expect("punched");
        assert_eq!(landing.copy(FRAME_SIZE, &pages[..2]), 2);
        assert_eq!([1, 2, 3].map(first_byte), [1, 2, 3]);
    }

    /// The values that include/uapi/linux/userfaultfd.h comes to on x86-64.
    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER, 0xc020_aa00);
        assert_eq!(UFFDIO_COPY, 0xc028_aa03);
    }
}
