//! What the disk has counted.

use serde::{Deserialize, Serialize};

/// Counters since the disk was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMetrics {
    /// Read requests done.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests done.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
    /// Requests answered with an error because of the host.
    pub host_errors: u64,
    /// Requests answered with an error because of the guest.
    pub refused: u64,
}
