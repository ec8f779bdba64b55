//! Scattered guest buffers, used as one.

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::QueueError;
use crate::DeviceView;

/// A contiguous guest buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes, at most 4 GiB.
    pub len: u64,
}

impl Segment {
    pub(super) fn outside(&self) -> QueueError {
        QueueError::Buffer { address: self.address.0, len: self.len }
    }
}

/// A buffer in pieces. The pieces may overlap: the guest chose them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    list: Vec<Segment>,
    /// Sum of the lengths in `list`.
    len: u64,
}

impl Segments {
    /// Total length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no piece. A piece of length zero is a piece.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The pieces.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.list.iter()
    }

    pub(super) fn push(&mut self, segment: Segment) {
        self.len += segment.len;
        self.list.push(segment);
    }

    /// The first `at` bytes and the rest; everything and nothing if there are no more than `at`.
    pub fn split_at(self, at: u64) -> (Self, Self) {
        let (mut front, mut back) = (Self::default(), Self::default());
        for segment in self.list {
            let taken = segment.len.min(at.saturating_sub(front.len));
            if taken > 0 {
                front.push(Segment { len: taken, ..segment });
            }
            if taken < segment.len {
                let address = GuestAddress(segment.address.0 + taken);
                back.push(Segment { address, len: segment.len - taken });
            }
        }
        (front, back)
    }

    /// Copies bytes `offset ..` into `bytes`; all of it, or an error.
    ///
    /// # Errors
    /// The buffer is shorter, or no longer guest memory.
    pub fn read(
        &self,
        memory: &DeviceView,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), QueueError> {
        let mut done = 0;
        for segment in self.window(offset, bytes.len() as u64)? {
            let part = &mut bytes[done..done + segment.len as usize];
            memory.read_slice(part, segment.address).map_err(|_| segment.outside())?;
            done += part.len();
        }
        Ok(())
    }

    /// Copies `bytes` to `offset ..`; all of it, or an error.
    ///
    /// # Errors
    /// The buffer is shorter, or no longer guest memory.
    pub fn write(&self, memory: &DeviceView, offset: u64, bytes: &[u8]) -> Result<(), QueueError> {
        let mut done = 0;
        for segment in self.window(offset, bytes.len() as u64)? {
            let part = &bytes[done..done + segment.len as usize];
            memory.write_slice(part, segment.address).map_err(|_| segment.outside())?;
            done += part.len();
        }
        Ok(())
    }

    /// The pieces as host slices, for I/O straight into and out of guest memory.
    ///
    /// # Errors
    /// A piece is no longer guest memory.
    pub fn slices<'a>(
        &self,
        memory: &'a DeviceView,
        access: Permissions,
    ) -> Result<Vec<VolatileSlice<'a>>, QueueError> {
        let mut slices = Vec::with_capacity(self.list.len());
        for segment in &self.list {
            let parts = memory.get_slices(segment.address, segment.len as usize, access);
            for part in parts.map_err(|_| segment.outside())? {
                slices.push(part.map_err(|_| segment.outside())?);
            }
        }
        Ok(slices)
    }

    /// The pieces that make up bytes `offset .. offset + len`.
    fn window(&self, offset: u64, len: u64) -> Result<Vec<Segment>, QueueError> {
        let (mut skip, mut left) = (offset, len);
        let mut pieces = Vec::new();
        for segment in &self.list {
            let skipped = skip.min(segment.len);
            let taken = left.min(segment.len - skipped);
            if taken > 0 {
                let address = GuestAddress(segment.address.0 + skipped);
                pieces.push(Segment { address, len: taken });
            }
            (skip, left) = (skip - skipped, left - taken);
        }
        if left > 0 {
            return Err(QueueError::Short { want: offset.saturating_add(len), have: self.len });
        }
        Ok(pieces)
    }
}
