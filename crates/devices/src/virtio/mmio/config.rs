//! How the transport is laid out and how ACPI names it.

/// `_HID` of a virtio-mmio device in the DSDT.
pub const ACPI_ID: &str = "LNRO0005";
/// Bytes of MMIO that a transport takes: registers, then the device's configuration space.
pub const REGISTERS_LEN: u64 = 0x1000;
