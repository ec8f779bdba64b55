//! What the device has counted.

use serde::{Deserialize, Serialize};

/// Counters since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngMetrics {
    /// Requests answered.
    pub requests: u64,
    /// Random bytes given.
    pub bytes: u64,
    /// Requests answered with nothing because the host kernel gave nothing.
    pub host_errors: u64,
}
