//! Where a PC has its clock.

/// Port of the index register; data follows at the next port.
pub const INDEX_PORT: u16 = 0x70;
/// Ports the clock takes.
pub const PORT_COUNT: u64 = 2;
/// Register with the century; FADT field CENTURY.
pub const CENTURY_REGISTER: u8 = 0x32;
