//! What a disk is made of.

use std::io;

use vm_memory::VolatileSlice;

/// A linear store of bytes behind a disk. Offsets and lengths are inside its size.
///
/// As of a disk with a write-back cache: what was written survives a crash of the host only after
/// a later [`flush`](Self::flush) has succeeded.
pub(super) trait Storage: Send {
    /// Fills `to` from `offset` on.
    fn read(&mut self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes `from` at `offset`.
    fn write(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn flush(&mut self) -> io::Result<()>;

    /// The contents are no longer wanted: a hint that may do nothing.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zero; gives its space back if `unmap`.
    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// Total length of `slices`.
pub(super) fn total(slices: &[VolatileSlice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

/// Takes consecutive parts off the front of a list of slices.
pub(super) struct Cutter<'s, 'm> {
    slices: &'s [VolatileSlice<'m>],
    /// Bytes of the first slice that are taken already.
    skip: usize,
}

impl<'s, 'm> Cutter<'s, 'm> {
    pub(super) fn new(slices: &'s [VolatileSlice<'m>]) -> Self {
        Self { slices, skip: 0 }
    }

    /// The next `len` bytes; fewer at the end.
    pub(super) fn cut(&mut self, mut len: u64) -> Vec<VolatileSlice<'m>> {
        let mut part = Vec::new();
        while let (Some(first), true) = (self.slices.first(), len > 0) {
            let taken = ((first.len() - self.skip) as u64).min(len) as usize;
            // Cannot fail: skip + taken <= first.len().
            part.extend(first.subslice(self.skip, taken));
            self.skip += taken;
            len -= taken as u64;
            if self.skip == first.len() {
                (self.slices, self.skip) = (&self.slices[1..], 0);
            }
        }
        part
    }
}
