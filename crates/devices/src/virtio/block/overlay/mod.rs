//! A copy-on-write overlay: what the guest wrote, over an image that many machines share.
//!
//! The format is in docs/formats/overlay.md. In short: a header, a bitmap with one bit a cluster,
//! and clusters at fixed places of a sparse file. A set bit says that the cluster is in the overlay
//! (a hole reads as zero); a clear bit says that it is in the image.
//!
//! # Crash safety
//!
//! A bit is durable only after its cluster is: bits are set in memory, and [`Overlay::flush`]
//! writes them between two syncs. A crash at any point leaves each cluster either as it was at the
//! last flush or as it was written since, never a mixture with something else. Bits only ever go
//! from clear to set, so a torn write of the bitmap is harmless.

mod bitmap;
mod error;
mod header;
mod open;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;

use super::file::{HostFile, write_zero_bytes};
use super::storage::Storage;
use crate::virtio::queue::GuestBuffer;
use bitmap::Bitmap;
pub use error::OverlayError;
use header::Header;
pub(super) use header::{CLUSTER_LEN, Identity};
pub(super) use open::open;

/// An overlay in use.
pub(super) struct Overlay<F: HostFile> {
    /// Read-only, shared.
    image: F,
    file: F,
    header: Header,
    bitmap: Bitmap,
    /// A sync failed. What it should have written may be lost although a later sync succeeds
    /// (fsync(2)), so from then on no bit is written any more.
    failed: bool,
}

/// A part of the disk that is in one file.
struct Run {
    /// Where it begins.
    at: u64,
    len: u64,
    /// In the overlay.
    here: bool,
}

impl<F: HostFile> Overlay<F> {
    fn new(image: F, file: F, header: Header, bitmap: Bitmap) -> Self {
        Self { image, file, header, bitmap, failed: false }
    }

    /// The clusters that the range touches.
    fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        offset / CLUSTER_LEN..(offset + len).div_ceil(CLUSTER_LEN)
    }

    /// The clusters that lie wholly inside the range; the last one may be cut by the disk's end.
    fn covered(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset + len;
        let last =
            if end == self.header.disk_len { end.div_ceil(CLUSTER_LEN) } else { end / CLUSTER_LEN };
        let first = offset.div_ceil(CLUSTER_LEN);
        first..last.max(first)
    }

    /// Bytes of the disk in `cluster`.
    fn bytes_of(&self, cluster: u64) -> Range<u64> {
        let start = cluster * CLUSTER_LEN;
        start..(start + CLUSTER_LEN).min(self.header.disk_len)
    }

    /// The range, cut where it goes on in the other file.
    fn runs(&self, offset: u64, len: u64) -> impl Iterator<Item = Run> {
        let (mut at, end) = (offset, offset + len);
        std::iter::from_fn(move || {
            let (here, next) = (at < end).then(|| self.bitmap.run(at / CLUSTER_LEN))?;
            let start = std::mem::replace(&mut at, next.saturating_mul(CLUSTER_LEN).min(end));
            Some(Run { at: start, len: at - start, here })
        })
    }

    /// Where the disk's `offset` is in the overlay file.
    fn place(&self, offset: u64) -> u64 {
        self.header.data_offset() + offset
    }

    /// Copies `cluster` from the image into the overlay if it is not there and the range does not
    /// cover it. The file may hold anything there, left by a crash.
    fn fill(&mut self, cluster: u64, covered: &Range<u64>) -> io::Result<()> {
        if covered.contains(&cluster) || self.bitmap.get(cluster) {
            return Ok(());
        }
        let bytes = self.bytes_of(cluster);
        let mut copy = vec![0; (bytes.end - bytes.start) as usize];
        self.image.read_host(bytes.start, &mut copy)?;
        self.file.write_host(self.place(bytes.start), &copy)
    }

    /// Prepares the clusters at both ends of a write; those between are overwritten whole.
    fn fill_ends(&mut self, offset: u64, len: u64) -> io::Result<Range<u64>> {
        let (touched, covered) = (self.touched(offset, len), self.covered(offset, len));
        self.fill(touched.start, &covered)?;
        if touched.end - 1 > touched.start {
            self.fill(touched.end - 1, &covered)?;
        }
        Ok(touched)
    }

    /// Makes `clusters` read as zero, in the overlay.
    fn zero_clusters(&mut self, clusters: &Range<u64>) -> io::Result<bool> {
        if clusters.is_empty() {
            return Ok(true);
        }
        let start = clusters.start * CLUSTER_LEN;
        let end = self.bytes_of(clusters.end - 1).end;
        if !self.file.punch(self.place(start), end - start)? {
            return Ok(false);
        }
        self.bitmap.set(clusters.clone());
        Ok(true)
    }
}

impl<F: HostFile> Storage for Overlay<F> {
    fn read(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        for Run { at, len, here } in self.runs(offset, to.len()) {
            let part = to.part(at - offset, len)?;
            match here {
                true => self.file.read_guest(self.place(at), &part)?,
                false => self.image.read_guest(at, &part)?,
            }
        }
        Ok(())
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        for Run { at, len, here } in self.runs(offset, to.len() as u64) {
            let part = &mut to[(at - offset) as usize..][..len as usize];
            match here {
                true => self.file.read_host(self.place(at), part)?,
                false => self.image.read_host(at, part)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        let touched = self.fill_ends(offset, from.len())?;
        self.file.write_guest(self.place(offset), from)?;
        self.bitmap.set(touched);
        Ok(())
    }

    fn write_host(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let touched = self.fill_ends(offset, from.len() as u64)?;
        self.file.write_host(self.place(offset), from)?;
        self.bitmap.set(touched);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier flush of the overlay failed"));
        }
        let flushed = self.file.sync().and_then(|()| {
            if !self.bitmap.write_changes(&self.file)? {
                return Ok(());
            }
            self.file.sync()
        });
        self.failed = flushed.is_err();
        flushed
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let covered = self.covered(offset, len);
        self.zero_clusters(&covered).map(drop)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let covered = self.covered(offset, len);
        if covered.is_empty() || !self.zero_clusters(&covered)? {
            return self.write_zero_range(offset, offset + len);
        }
        let (start, end) = (covered.start * CLUSTER_LEN, self.bytes_of(covered.end - 1).end);
        self.write_zero_range(offset, start)?;
        self.write_zero_range(end, offset + len)
    }
}

impl<F: HostFile> Overlay<F> {
    fn write_zero_range(&mut self, start: u64, end: u64) -> io::Result<()> {
        if start >= end {
            return Ok(());
        }
        let touched = self.fill_ends(start, end - start)?;
        write_zero_bytes(&self.file, self.place(start), end - start)?;
        self.bitmap.set(touched);
        Ok(())
    }
}

impl<F: HostFile> Drop for Overlay<F> {
    fn drop(&mut self) {
        // The last resort; an orderly stop has flushed already and reported the outcome.
        if self.bitmap.has_changes() && !self.failed {
            let _ = self.flush();
        }
    }
}
