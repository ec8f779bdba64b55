//! Bytes to send that do not repeat themselves, so that none can be lost, doubled or moved unseen.

use std::io::{self, Read};

/// An endless stream, the same each time.
pub(crate) struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(1)
    }
}

impl Noise {
    /// The next bytes: eight at a time, so that only a last call may have a length that is no multiple of it.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            // Marsaglia's xorshift.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Read for Noise {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.fill(bytes);
        Ok(bytes.len())
    }
}
