//! The device's queues and limits.

/// Host to guest.
pub(super) const RECEIVE: usize = 0;
/// Guest to host.
pub(super) const TRANSMIT: usize = 1;
/// Queue sizes.
pub(super) const QUEUES: &[u16] = &[64, 64];
/// Bytes of input held for the guest; the rest stays with whoever types.
pub const INPUT_LIMIT: usize = 4096;
/// Most bytes of output in one request.
pub const OUTPUT_LIMIT: u64 = 1 << 20;
