//! What the transport has counted.

use serde::{Deserialize, Serialize};

/// Counters since the transport was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportMetrics {
    /// Interrupts raised.
    pub interrupts: u64,
    /// Register accesses that the specification does not allow; each was ignored.
    pub bad_accesses: u64,
    /// Times the device stopped because the guest misused it.
    pub guest_errors: u64,
    /// Times the driver reset the device.
    pub resets: u64,
}
