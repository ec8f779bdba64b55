//! One thread's way into a snapshot.

use std::sync::{Arc, PoisonError};

use memory::{FRAME_SIZE, Frame, is_zero};

use super::{Shared, told};
use crate::checksum::Checksum;
use crate::chunk::{CHUNK_FRAMES, Record};
use crate::codec::{Compression, Compressor};
use crate::error::SnapshotError;

/// Takes frames with their contents. Holds up to 64 of them, so it must be finished.
pub struct Lane {
    shared: Arc<Shared>,
    compressor: Compressor,
    /// Not written yet. For a plain image, each follows the one before.
    frames: Vec<Frame>,
    contents: Vec<u8>,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Lane, SnapshotError> {
        let compressor = Compressor::new(shared.compression)
            .map_err(SnapshotError::host("compress", &shared.memory_path))?;
        let contents = Vec::with_capacity(CHUNK_FRAMES * FRAME_SIZE);
        Ok(Lane { shared, compressor, frames: Vec::with_capacity(CHUNK_FRAMES), contents })
    }

    /// Saves `frame`. One that is all zeros takes no room.
    ///
    /// # Errors
    /// The frame was told before, does not exist, or the host refuses: the snapshot cannot become whole.
    pub fn write(
        &mut self,
        frame: Frame,
        contents: &[u8; FRAME_SIZE],
    ) -> Result<(), SnapshotError> {
        let done = self.take(frame, contents);
        self.shared.noted(done)
    }

    fn take(&mut self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> Result<(), SnapshotError> {
        if is_zero(contents) {
            return self.shared.claim(frame, told::ZERO);
        }
        self.shared.claim(frame, told::STORED)?;
        let is_plain = self.shared.compression == Compression::None;
        if is_plain {
            self.shared.set_entry(frame, Checksum::of(contents).0);
            if self.frames.last().is_some_and(|last| last.0 + 1 != frame.0) {
                self.flush()?;
            }
        }
        self.frames.push(frame);
        self.contents.extend_from_slice(contents);
        if self.frames.len() == CHUNK_FRAMES { self.flush() } else { Ok(()) }
    }

    /// Writes what it holds.
    ///
    /// # Errors
    /// The host refuses: the snapshot cannot become whole.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        let done = self.flush();
        self.shared.noted(done)
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        let Some(first) = self.frames.first() else { return Ok(()) };
        let (shared, name) = (&self.shared, &self.shared.memory_path);
        let (bytes, at) = match shared.compression {
            Compression::None => (self.contents.as_slice(), u64::from(first.0) * FRAME_SIZE as u64),
            _ => {
                let stored = self.compressor.compress(&self.contents);
                let stored = stored.map_err(SnapshotError::host("compress", name))?;
                (stored, shared.add_chunk(&self.frames, stored))
            }
        };
        shared.memory.write_all_at(bytes, at).map_err(SnapshotError::host("write", name))?;
        self.frames.clear();
        self.contents.clear();
        Ok(())
    }
}

impl Shared {
    /// Gives a chunk its number and its place in the image.
    fn add_chunk(&self, frames: &[Frame], stored: &[u8]) -> u64 {
        let (number, at) = {
            let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
            let at = chunks.bytes;
            chunks.records.push(Record::new(frames, at, stored));
            chunks.bytes += stored.len() as u64;
            (chunks.records.len() as u64 - 1, at)
        };
        for (slot, frame) in frames.iter().enumerate() {
            self.set_entry(*frame, number << 32 | slot as u64);
        }
        at
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.frames.is_empty() {
            self.shared.failed.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
