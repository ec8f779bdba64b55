//! What went through the port.

use serde::{Deserialize, Serialize};

/// Counters since the port was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialMetrics {
    /// Bytes the guest sent.
    pub sent_bytes: u64,
    /// Bytes of those that the sink did not take.
    pub lost_bytes: u64,
    /// Bytes given to the guest's FIFO.
    pub received_bytes: u64,
}
