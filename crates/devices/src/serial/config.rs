//! Where a PC has its first serial port.

/// First port of COM1.
pub const COM1_BASE: u16 = 0x3f8;
/// Ports a 16550 takes.
pub const PORT_COUNT: u64 = 8;
/// Interrupt of COM1, edge-triggered.
pub const COM1_IRQ: u32 = 4;
