//! What a disk is made of.

use std::io;

use crate::virtio::queue::GuestBuffer;

/// A linear store of bytes behind a disk. Offsets and lengths are inside its size.
///
/// As of a disk with a write-back cache: what was written survives a crash of the host only after
/// a later [`flush`](Self::flush) has succeeded.
pub(super) trait Storage: Send + Sync {
    /// Fills `to` from `offset` on.
    fn read(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()>;

    /// As [`read`](Self::read), into the VMM's own memory.
    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at `offset`.
    fn write(&mut self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()>;

    /// As [`write`](Self::write), from the VMM's own memory.
    fn write_host(&mut self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn flush(&mut self) -> io::Result<()>;

    /// The contents are no longer wanted: a hint that may do nothing.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zero; gives its space back if `unmap`.
    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}
