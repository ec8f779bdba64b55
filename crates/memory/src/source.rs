//! Where the contents of absent frames come from.

use std::io;

use crate::address::{FRAME_SIZE, Frame};
use crate::guest_memory::GuestMemory;
use crate::table::FrameState;

/// A registered [`Source`], as [`crate::GuestMemory::add_source`] numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub(crate) u16);

impl SourceId {
    /// The image that the memory lies over, which shows the contents at their addresses: nothing is fetched.
    pub const BASE: SourceId = SourceId(u16::MAX);
}

/// A store that holds the contents of absent frames: a snapshot, a compressed or swap store,
/// a peer host.
///
/// [`crate::GuestMemory::resolve`] calls it on the thread that needs the frame, which may be a
/// vCPU; it may block. A source must neither resolve nor discard frames of the same memory: the
/// frame it is asked for is busy until it answers.
pub trait Source: Send + Sync {
    /// Writes all of the contents of `frame` to `into`.
    ///
    /// Called once for each time the frame goes from absent to resident, however many threads
    /// want it. After an error the frame stays absent, what was written to `into` is dropped, and
    /// the next access asks again.
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError>;
}

/// Why a source could not give a frame's contents.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The store answered, and the answer cannot be right.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The store cannot be reached now; later it may.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

impl GuestMemory {
    /// Reads the contents of an absent frame from where they are. It stays absent, and nobody waits for this. False: it
    /// is not absent, so look at the frame itself.
    ///
    /// # Errors
    /// Its source fails.
    pub fn read_absent(
        &self,
        frame: Frame,
        into: &mut [u8; FRAME_SIZE],
    ) -> Result<bool, SourceError> {
        match self.facts(frame).map(|facts| facts.state) {
            Some(FrameState::Absent(source)) if source != SourceId::BASE => {
                self.source(source).fetch(frame, into)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
