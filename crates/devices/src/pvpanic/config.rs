//! Where the device is and how ACPI names it.

/// The device's port.
pub const PORT: u16 = 0x505;
/// Ports it takes.
pub const PORT_COUNT: u64 = 1;
/// `_HID` in the DSDT.
pub const ACPI_ID: &str = "QEMU0001";
