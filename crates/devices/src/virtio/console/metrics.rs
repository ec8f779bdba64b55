//! What the device has counted.

use serde::{Deserialize, Serialize};

/// Counters since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleMetrics {
    /// Bytes the guest sent.
    pub sent_bytes: u64,
    /// Bytes of those that the sink did not take.
    pub lost_bytes: u64,
    /// Bytes given to the guest.
    pub received_bytes: u64,
}
