//! The ways a guest ends or restarts the machine: ACPI's sleep and reset registers of the
//! hardware-reduced profile, and the keyboard controller's reset line.

mod config;
mod device;
#[cfg(test)]
mod tests;

pub use config::{
    I8042_COMMAND_PORT, I8042_PORT_COUNT, PORT_COUNT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT, SLEEP_TYPE_S5,
};
pub use device::{I8042, Reset};
