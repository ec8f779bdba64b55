//! The CMOS clock of a PC (MC146818): the time of day, read-only, from the host.
//!
//! Alarms, periodic interrupts and setting the time are not there: a guest reads this clock once
//! at boot and then keeps time by other means.

mod config;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use config::{CENTURY_REGISTER, INDEX_PORT, PORT_COUNT};
pub use device::{Clock, Rtc};
pub use state::RtcState;
