//! Port numbers and values, as the FADT and the DSDT must state them.

/// First of the ports that [`super::Reset`] takes; FADT field SLEEP_CONTROL_REG.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// FADT field SLEEP_STATUS_REG.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// FADT field RESET_REG.
pub const RESET_PORT: u16 = 0x604;
/// FADT field RESET_VALUE.
pub const RESET_VALUE: u8 = 0x01;
/// Ports from [`SLEEP_CONTROL_PORT`] on.
pub const PORT_COUNT: u64 = 5;
/// The first element of the DSDT's `\_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The keyboard controller's command and status port.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Ports of [`super::I8042`], from [`I8042_COMMAND_PORT`] on.
pub const I8042_PORT_COUNT: u64 = 1;
