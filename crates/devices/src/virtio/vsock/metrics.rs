//! What the device has counted.

use serde::{Deserialize, Serialize};

/// Counters since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockMetrics {
    /// Connections that the guest made.
    pub from_guest: u64,
    /// Connections that the host made.
    pub from_host: u64,
    /// Connections that nobody took, or that were one too many.
    pub refused: u64,
    /// Connections of the host that the guest did not answer in time.
    pub timeouts: u64,
    /// Packets against the specification; each was answered with a reset.
    pub bad_packets: u64,
    /// Packets too short to be answered.
    pub lost_packets: u64,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
    /// Bytes of those that the host did not take.
    pub dropped_bytes: u64,
    /// Bytes given to the guest.
    pub received_bytes: u64,
    /// Times the host refused what the device needs.
    pub host_errors: u64,
    /// Times the guest was told that all connections are gone.
    pub transport_resets: u64,
}
