//! What the device has counted.

use serde::{Deserialize, Serialize};

/// Counters since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonMetrics {
    /// Pages the guest gave up.
    pub inflated_pages: u64,
    /// Pages the guest took back.
    pub deflated_pages: u64,
    /// Pages the guest reported free.
    pub reported_pages: u64,
    /// Pages the guest named that are not in its memory.
    pub bad_pages: u64,
    /// Statistics received.
    pub statistics: u64,
}
