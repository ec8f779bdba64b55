//! The device's limits.

/// The one queue: requests.
pub(super) const REQUESTS: usize = 0;
/// Queue sizes.
pub(super) const QUEUES: &[u16] = &[64];
/// Most random bytes for one request; a larger buffer is filled in part, as the device may.
pub const REQUEST_LIMIT: u64 = 64 << 10;
