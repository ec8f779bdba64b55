//! Virtio over MMIO, version 2 (virtio 1.2, 4.2), one transport for every device.

mod access;
mod config;
mod device;
mod events;
mod metrics;
mod registers;
mod setup;
mod state;
mod status;
#[cfg(test)]
mod tests;

pub use config::{ACPI_ID, REGISTERS_LEN};
pub use device::MmioTransport;
pub use metrics::TransportMetrics;
pub use registers::QUEUE_NOTIFY;
pub use state::TransportState;
