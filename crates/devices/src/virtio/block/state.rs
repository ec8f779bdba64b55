//! The disk as it is saved. Its contents are in its files, flushed.

use serde::{Deserialize, Serialize};

/// What a disk must be to take the place of a saved one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may not write.
    pub read_only: bool,
}
