//! What goes from the files into guest memory, without a copy of the whole in between.

use std::io::{self, Read, Write};

use super::elf::Segment;
use super::{BootError, BootMemory};

/// An initrd on its way.
pub struct Initrd<'a> {
    /// How long it is.
    pub bytes: u64,
    /// At least so many bytes.
    pub content: &'a mut dyn Read,
}

/// Copied at once.
const PIECE: usize = 256 << 10;

impl Initrd<'_> {
    pub(super) fn write(
        &mut self,
        mut gpa: u64,
        memory: &mut dyn BootMemory,
    ) -> Result<(), BootError> {
        let mut piece = vec![0; PIECE.min(usize::try_from(self.bytes).unwrap_or(PIECE))];
        let mut left = self.bytes;
        while left > 0 {
            let length = piece.len().min(usize::try_from(left).unwrap_or(PIECE));
            self.content.read_exact(&mut piece[..length]).map_err(BootError::InitrdRead)?;
            memory.write(gpa, &piece[..length])?;
            gpa += length as u64;
            left -= length as u64;
        }
        Ok(())
    }
}

/// Takes an ELF file, piece by piece, and writes what belongs to its segments into guest memory.
pub(super) struct SegmentWriter<'a> {
    segments: &'a [Segment],
    /// Of the next piece.
    position: usize,
    memory: &'a mut dyn BootMemory,
    /// Why a write into guest memory failed, which [`Write`] cannot say.
    failed: Option<BootError>,
}

impl<'a> SegmentWriter<'a> {
    pub(super) fn new(segments: &'a [Segment], memory: &'a mut dyn BootMemory) -> Self {
        Self { segments, position: 0, memory, failed: None }
    }

    pub(super) fn into_failure(self) -> Option<BootError> {
        self.failed
    }
}

impl Write for SegmentWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let here = self.position..self.position + piece.len();
        for segment in self.segments {
            let start = segment.file.start.max(here.start);
            let end = segment.file.end.min(here.end);
            if start < end {
                let gpa = segment.gpa + (start - segment.file.start) as u64;
                let bytes = &piece[start - here.start..end - here.start];
                self.memory.write(gpa, bytes).map_err(|error| {
                    self.failed = Some(error);
                    io::Error::other("guest memory refuses it")
                })?;
            }
        }
        self.position = here.end;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
