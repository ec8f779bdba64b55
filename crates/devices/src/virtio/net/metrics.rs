//! What the device has counted.

use serde::{Deserialize, Serialize};

/// Counters since the device was made; those of the host's side since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetMetrics {
    /// Frames from the guest, handed on.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames given to the guest.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames from the guest that came while the link was down, or that the host refused.
    pub dropped_sent: u64,
    /// Frames for the guest that its buffers can never hold.
    pub dropped_received: u64,
    /// Requests of the guest that are no frame: too short, too long, or with an impossible header.
    pub bad_requests: u64,
    /// Frames from the host's side that are none: too short.
    pub bad_frames: u64,
    /// Times the host's side broke its protocol; it is disconnected then.
    pub bad_streams: u64,
    /// Times the host's side vanished.
    pub links_lost: u64,
    /// Times the transmit queue had to wait for the host's side.
    pub send_waits: u64,
    /// Times frames had to wait for the guest's buffers.
    pub receive_waits: u64,
}
