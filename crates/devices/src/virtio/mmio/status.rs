//! The device status register and feature negotiation (virtio 1.2, 2.1, 2.2 and 3.1).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

pub(super) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
pub(super) const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
pub(super) const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

pub(super) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
pub(super) const EVENT_INDEX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// What the transport offers for every device.
pub(super) const TRANSPORT_FEATURES: u64 =
    VERSION_1 | EVENT_INDEX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What a write to the status register means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusWrite {
    /// Zero: reset.
    Reset,
    /// The driver took a bit back without a reset, or set one that does not exist: ignored.
    Bad,
    /// These bits are new.
    Add(u8),
}

/// What the driver means by writing `value` over `status`.
pub(super) fn status_write(status: u8, value: u32) -> StatusWrite {
    let Ok(value) = u8::try_from(value) else { return StatusWrite::Bad };
    if value == 0 {
        return StatusWrite::Reset;
    }
    // A driver that has not yet seen NEEDS_RESET writes without it.
    if status & !NEEDS_RESET & !value != 0 {
        return StatusWrite::Bad;
    }
    // NEEDS_RESET is the device's to set.
    StatusWrite::Add(value & !status & !NEEDS_RESET)
}

/// Whether the device serves its queues.
pub(super) fn is_live(status: u8) -> bool {
    status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
}
