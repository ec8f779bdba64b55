//! One folder a device; virtio over MMIO.
