//! Scattered guest buffers, used as one.

use std::io;

use memory::{Access, AccessError, Gpa, PinnedSlice};

use super::QueueError;
use crate::DeviceView;

/// IOV_MAX.
const PIECES_A_CALL: usize = 1024;

/// A contiguous guest buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: Gpa,
    /// Length in bytes, at most 4 GiB.
    pub len: u64,
}

impl Segment {
    pub(super) fn outside(&self) -> QueueError {
        QueueError::Buffer { address: self.address.0, len: self.len }
    }

    fn failed(&self, error: &AccessError) -> QueueError {
        match error {
            AccessError::OutsideRam { .. } => self.outside(),
            AccessError::Resolve(_) => QueueError::Absent { address: self.address.0 },
        }
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

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces there are, those of length zero too.
    pub fn pieces(&self) -> usize {
        self.list.len()
    }

    /// The pieces.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.list.iter()
    }

    pub(crate) fn push(&mut self, segment: Segment) {
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
                let address = Gpa(segment.address.0 + taken);
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
            memory.read(segment.address, part).map_err(|error| segment.failed(&error))?;
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
            memory.write(segment.address, part).map_err(|error| segment.failed(&error))?;
            done += part.len();
        }
        Ok(())
    }

    /// The pieces that make up bytes `offset .. offset + len`.
    fn window(&self, offset: u64, len: u64) -> Result<Vec<Segment>, QueueError> {
        let (mut skip, mut left) = (offset, len);
        let mut pieces = Vec::new();
        for segment in &self.list {
            let skipped = skip.min(segment.len);
            let taken = left.min(segment.len - skipped);
            if taken > 0 {
                let address = Gpa(segment.address.0 + skipped);
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

/// A scattered buffer together with the memory it lies in: what a disk reads into or writes from.
#[derive(Clone, Debug)]
pub struct GuestBuffer<'m> {
    memory: &'m DeviceView,
    segments: Segments,
}

impl<'m> GuestBuffer<'m> {
    /// The buffer `segments` of `memory`.
    pub fn new(memory: &'m DeviceView, segments: Segments) -> Self {
        Self { memory, segments }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.segments.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes `offset .. offset + len` as a buffer of their own.
    ///
    /// # Errors
    /// The buffer ends before.
    pub fn part(&self, offset: u64, len: u64) -> io::Result<Self> {
        let pieces = self.segments.window(offset, len).map_err(io::Error::other)?;
        let mut segments = Segments::default();
        pieces.into_iter().for_each(|piece| segments.push(piece));
        Ok(Self { memory: self.memory, segments })
    }

    /// Copies the whole buffer out of guest memory.
    ///
    /// # Errors
    /// Guest memory cannot be read.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len() as usize];
        self.segments.read(self.memory, 0, &mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    /// Copies `bytes` to the start of the buffer.
    ///
    /// # Errors
    /// They are more than the buffer holds, or guest memory cannot be written.
    pub fn copy_from(&self, bytes: &[u8]) -> io::Result<()> {
        self.segments.write(self.memory, 0, bytes).map_err(io::Error::other)
    }

    /// Holds the first pieces in place for file I/O, as many as one system call takes.
    ///
    /// # Errors
    /// A frame cannot be made resident.
    pub fn pin(&self, access: Access) -> io::Result<Vec<PinnedSlice<'m>>> {
        let pieces = self.segments.list.iter().take(PIECES_A_CALL);
        let slice = |piece: &Segment| self.memory.slice(piece.address, piece.len as usize, access);
        pieces.map(slice).collect::<Result<_, _>>().map_err(io::Error::other)
    }
}
