//! A host file, behind a trait so that tests can make it fail and lose what was not synced.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use memory::Access;
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use crate::virtio::queue::GuestBuffer;

/// What storage needs of a file.
pub(super) trait HostFile: Send + Sync {
    /// Fills `to` from `offset` on; the end of the file is an error.
    fn read_guest(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()>;

    /// Writes all of `from` at `offset`.
    fn write_guest(&self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()>;

    /// As [`read_guest`](Self::read_guest), into the VMM's own memory.
    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// As [`write_guest`](Self::write_guest), from the VMM's own memory.
    fn write_host(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;

    /// Gives the range's space back; it reads as zero. False if the file cannot do that.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// Makes the range read as zero and keeps its space. False if the file cannot do that.
    fn zero(&self, offset: u64, len: u64) -> io::Result<bool>;
}

impl HostFile for File {
    fn read_guest(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            let rest = to.part(done, to.len() - done)?.pin(Access::Write)?;
            match memory::read_at(self, offset + done, &rest)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => done += read as u64,
            }
        }
        Ok(())
    }

    fn write_guest(&self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            let rest = from.part(done, from.len() - done)?.pin(Access::Read)?;
            match memory::write_at(self, offset + done, &rest)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => done += written as u64,
            }
        }
        Ok(())
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(to, offset)
    }

    fn write_host(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.write_all_at(from, offset)
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

/// Writes `len` zero bytes.
pub(super) fn write_zero_bytes(file: &dyn HostFile, offset: u64, len: u64) -> io::Result<()> {
    const CHUNK: u64 = 64 << 10;
    let zeros = vec![0; len.min(CHUNK) as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(CHUNK) as usize;
        file.write_host(offset + done, &zeros[..part])?;
        done += part as u64;
    }
    Ok(())
}
