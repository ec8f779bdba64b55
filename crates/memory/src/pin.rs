//! Frames held in place for an access by a device.

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use crate::address::{Access, FRAME_SHIFT, FRAME_SIZE, Frame, Gpa};
use crate::guest_memory::{GuestMemory, ResolveError};

/// Why an access of a device failed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The guest named addresses that are not all RAM.
    #[error("{len} bytes at {gpa}: not inside guest memory")]
    OutsideRam {
        /// The first address.
        gpa: Gpa,
        /// How many bytes.
        len: usize,
    },
    /// A frame could not be made resident.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

/// A range of RAM whose frames are resident and stay so.
///
/// A pin, not a revocation, protects device accesses: a device thread may block in I/O for as long
/// as it likes and no discard waits for it; the frames are kept instead.
pub(crate) struct Pin<'m> {
    memory: &'m GuestMemory,
    /// The first byte, as an offset in RAM seen as one array.
    offset: u64,
    /// `offset + len` is inside RAM.
    len: usize,
    access: Access,
}

impl<'m> Pin<'m> {
    /// Resolves and pins all frames of `offset .. offset + len`, which the caller has checked to
    /// be inside RAM.
    pub(crate) fn new(
        memory: &'m GuestMemory,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<Pin<'m>, ResolveError> {
        debug_assert!(offset + len as u64 <= memory.bytes());
        // Grows frame by frame, so that an error unpins what was pinned.
        let mut pin = Pin { memory, offset, len: 0, access };
        while pin.len < len {
            let at = offset + pin.len as u64;
            memory.resolve_pinned(Frame((at >> FRAME_SHIFT) as u32), access)?;
            let rest_of_frame = FRAME_SIZE - (at as usize & (FRAME_SIZE - 1));
            pin.len += rest_of_frame.min(len - pin.len);
        }
        Ok(pin)
    }

    /// A pin on no bytes.
    pub(crate) fn empty(memory: &'m GuestMemory) -> Pin<'m> {
        Pin { memory, offset: 0, len: 0, access: Access::Read }
    }

    /// Another pin on the part from `skip` on. Cannot fail: the frames are resident already.
    pub(crate) fn tail(&self, skip: usize) -> Pin<'m> {
        let skip = skip.min(self.len);
        let (offset, len) = (self.offset + skip as u64, self.len - skip);
        Pin::new(self.memory, offset, len, self.access).expect("a pinned frame is resident")
    }

    /// The host address of the first byte. Dangling, but not null, for an empty range at the end
    /// of RAM.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        if self.len == 0 {
            return std::ptr::NonNull::dangling().as_ptr();
        }
        self.memory.ram.at(self.offset as usize).as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Records that `len` bytes from `skip` on were written, now that they are.
    pub(crate) fn wrote(&self, skip: usize, len: usize) {
        let skip = skip.min(self.len);
        let len = len.min(self.len - skip);
        // Pairs with the fence in `GuestMemory::mark_code`: the bytes come before the question.
        fence(Ordering::SeqCst);
        for (frame, first, count) in pieces(self.offset + skip as u64, len) {
            self.memory.table.note_access(frame, Access::Write);
            if self.memory.table.is_code(frame)
                && let Some(observer) = self.memory.observer()
                && let Some(gpa) = self.memory.gpa_of(frame)
            {
                observer.code_written(Gpa(gpa.0 + first as u64), count);
            }
        }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // The write may have happened at any time since the pin was made.
        if self.access == Access::Write {
            self.wrote(0, self.len);
        }
        for (frame, ..) in pieces(self.offset, self.len) {
            self.memory.table.unpin(frame);
        }
    }
}

impl std::fmt::Debug for Pin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pin({:#x}+{:#x}, {:?})", self.offset, self.len, self.access)
    }
}

/// The frames of a byte range, each with the first byte in it and how many bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (Frame, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let first = at as usize & (FRAME_SIZE - 1);
            let count = ((FRAME_SIZE - first) as u64).min(end - at);
            let frame = Frame((at >> FRAME_SHIFT) as u32);
            at += count;
            (frame, first, count as usize)
        })
    })
}

/// Guest bytes held in place, for file I/O straight into and out of guest memory.
///
/// Made by [`crate::DeviceView::slice`]. The frames stay resident until it is dropped. With
/// [`Access::Write`] the drop also records the write and reports it to the engine if it hit code.
#[derive(Debug)]
pub struct PinnedSlice<'m>(pub(crate) Pin<'m>);

impl PinnedSlice<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The host address of its first byte. The guest accesses the same bytes: no Rust reference
    /// to them may be made.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn is_writable(&self) -> bool {
        self.0.access == Access::Write
    }
}

/// Reads from `file` at `offset` into the slices, in order, with one system call (preadv(2)).
/// Answers how many bytes were read: fewer than the slices hold at the end of the file.
///
/// At most 1024 slices are used (IOV_MAX). A slice that was not taken for [`Access::Write`] is
/// refused with `InvalidInput`.
pub fn read_at(file: impl AsFd, offset: u64, slices: &[PinnedSlice<'_>]) -> std::io::Result<usize> {
    if !slices.iter().all(PinnedSlice::is_writable) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    vectored(file, offset, slices, libc::preadv64)
}

/// Writes the slices, in order, to `file` at `offset` with one system call (pwritev(2)). Answers
/// how many bytes were written. At most 1024 slices are used (IOV_MAX).
pub fn write_at(
    file: impl AsFd,
    offset: u64,
    slices: &[PinnedSlice<'_>],
) -> std::io::Result<usize> {
    vectored(file, offset, slices, libc::pwritev64)
}

type Vectored = unsafe extern "C" fn(
    libc::c_int,
    *const libc::iovec,
    libc::c_int,
    libc::off64_t,
) -> libc::ssize_t;

fn vectored(
    file: impl AsFd,
    offset: u64,
    slices: &[PinnedSlice<'_>],
    call: Vectored,
) -> std::io::Result<usize> {
    use std::os::fd::AsRawFd;
    let offset = i64::try_from(offset).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let count = slices.len().min(libc::UIO_MAXIOV as usize);
    let vectors: Vec<libc::iovec> = slices[..count]
        .iter()
        .map(|slice| libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() })
        .collect();
    loop {
        // SAFETY: each vector is a pinned range of mapped guest memory, held by `slices` for
        // longer than the call; the kernel checks the descriptor.
        let done = unsafe {
            call(file.as_fd().as_raw_fd(), vectors.as_ptr(), count as libc::c_int, offset)
        };
        if done >= 0 {
            return Ok(done as usize);
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
