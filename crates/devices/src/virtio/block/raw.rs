//! A disk that is its file.

use std::io;

use super::file::{HostFile, write_zero_bytes};
use super::storage::Storage;
use crate::virtio::queue::GuestBuffer;

/// A raw image.
pub(super) struct Raw<F>(pub(super) F);

impl<F: HostFile> Storage for Raw<F> {
    fn read(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        self.0.read_guest(offset, to)
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.0.read_host(offset, to)
    }

    fn write(&mut self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        self.0.write_guest(offset, from)
    }

    fn write_host(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.0.write_host(offset, from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch(offset, len).map(drop)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let zeroed = if unmap { self.0.punch(offset, len)? } else { self.0.zero(offset, len)? };
        if zeroed { Ok(()) } else { write_zero_bytes(&self.0, offset, len) }
    }
}
