//! pvpanic: the guest kernel tells that it has panicked.
//!
//! Described to the guest as ACPI device `QEMU0001` with one I/O port
//! (QEMU, docs/specs/pvpanic; Linux, drivers/misc/pvpanic).

mod config;
mod device;
#[cfg(test)]
mod tests;

pub use config::{ACPI_ID, PORT, PORT_COUNT};
pub use device::PvPanic;
