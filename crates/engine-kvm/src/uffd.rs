//! The few calls of userfaultfd(2) that are needed here.
//!
//! The crate of that name generates its constants with libclang, which a build of Fathom should not ask
//! for; four requests and one message are less than that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use memory::{UserFaults, open_userfaultfd};

/// UFFD_API.
const API: u64 = 0xaa;
/// UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_THREAD_ID and UFFD_FEATURE_WP_HUGETLBFS_SHMEM.
const FEATURES: u64 = 1 << 5 | 1 << 8 | 1 << 12;
/// UFFD_EVENT_PAGEFAULT.
const PAGEFAULT: u8 = 0x12;

/// Which faults of a range are reported (UFFDIO_REGISTER_MODE_*).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Mode {
    /// Writes to what was write-protected.
    WriteProtect = 2,
    /// Those, and accesses to pages that are not in the file.
    MissingAndWriteProtect = 3,
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// struct uffd_msg, with the fields of a page fault.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    padding: u32,
}

/// A reported page fault.
pub(crate) struct Fault {
    /// The address that was accessed.
    pub(crate) address: u64,
    /// The kernel's number of the thread that waits.
    pub(crate) thread: u32,
}

/// _IOWR(0xaa, number, T).
const fn read_write<T>(number: u64) -> u64 {
    3 << 30 | (size_of::<T>() as u64) << 16 | API << 8 | number
}

/// _IOR(0xaa, number, T).
const fn read_only<T>(number: u64) -> u64 {
    2 << 30 | (size_of::<T>() as u64) << 16 | API << 8 | number
}

/// UFFDIO_API, UFFDIO_REGISTER and UFFDIO_WAKE.
const UFFDIO_API: u64 = read_write::<Api>(0x3f);
const UFFDIO_REGISTER: u64 = read_write::<Register>(0x00);
const UFFDIO_WAKE: u64 = read_only::<Range>(0x02);

/// A descriptor that has agreed on its features.
pub(crate) struct Uffd(OwnedFd);

impl Uffd {
    pub(crate) fn open(faults: UserFaults) -> io::Result<Self> {
        let uffd = Self(open_userfaultfd(faults)?);
        uffd.request(UFFDIO_API, &mut Api { api: API, features: FEATURES, ioctls: 0 })?;
        Ok(uffd)
    }

    /// Reports faults of `bytes` bytes from `start`, both multiples of a page, in place of what was
    /// reported of them before.
    pub(crate) fn register(&self, start: u64, bytes: u64, mode: Mode) -> io::Result<()> {
        let range = Range { start, bytes };
        self.request(UFFDIO_REGISTER, &mut Register { range, mode: mode as u64, ioctls: 0 })
    }

    /// Lets those who wait for a page of the range look again.
    pub(crate) fn wake(&self, start: u64, bytes: u64) -> io::Result<()> {
        self.request(UFFDIO_WAKE, &mut Range { start, bytes })
    }

    /// The next reported fault; `None` when there is none now.
    pub(crate) fn next_fault(&self) -> io::Result<Option<Fault>> {
        let mut bytes = [0; size_of::<Message>()];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(length) if length == bytes.len() => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // SAFETY: the bytes are as many as the structure, all of whose values are valid.
        let message: Message = unsafe { std::mem::transmute(bytes) };
        let Message { event, address, thread, .. } = message;
        Ok((event == PAGEFAULT).then_some(Fault { address, thread }))
    }

    fn request<T>(&self, request: u64, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request is made here with the structure that its number is computed from, which
        // lives through the call. None of them makes memory accessible or inaccessible.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that include/uapi/linux/userfaultfd.h comes to on x86-64.
    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER, 0xc020_aa00);
        assert_eq!(UFFDIO_WAKE, 0x8010_aa02);
        assert_eq!(size_of::<Message>(), 32);
    }
}
