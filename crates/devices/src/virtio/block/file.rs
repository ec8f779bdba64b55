//! A host file, behind a trait so that tests can make it fail and lose what was not synced.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// What storage needs of a file.
pub(super) trait HostFile: Send {
    /// Fills `to` from `offset` on; the end of the file is an error.
    fn read_at(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes all of `from` at `offset`.
    fn write_at(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;

    /// Gives the range's space back; it reads as zero. False if the file cannot do that.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// Makes the range read as zero and keeps its space. False if the file cannot do that.
    fn zero(&self, offset: u64, len: u64) -> io::Result<bool>;
}

impl HostFile for File {
    fn read_at(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        memory::vectored::read_exact_at(self, offset, to)
    }

    fn write_at(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        memory::vectored::write_all_at(self, offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fdatasync(self)?)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        allocate(self, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        allocate(self, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)
    }
}

fn allocate(file: &File, how: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    match rustix::io::retry_on_intr(|| fallocate(file, how, offset, len)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads into an ordinary buffer.
pub(super) fn read_buffer(file: &dyn HostFile, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.read_at(offset, &[VolatileSlice::from(bytes)])
}

/// Writes `len` zero bytes.
pub(super) fn write_zero_bytes(file: &dyn HostFile, offset: u64, len: u64) -> io::Result<()> {
    const CHUNK: u64 = 64 << 10;
    let mut zeros = vec![0; len.min(CHUNK) as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(CHUNK) as usize;
        file.write_at(offset + done, &[VolatileSlice::from(&mut zeros[..part])])?;
        done += part as u64;
    }
    Ok(())
}
