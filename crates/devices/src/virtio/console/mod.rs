//! The console device (virtio 1.2, 5.3), one port.
//!
//! Output goes to an [`Output`](crate::output::Output) on the I/O thread: a sink that blocks for
//! long holds up the other devices of the machine, so give it a file, a pipe that is read, or a
//! terminal.

mod config;
mod device;
mod input;
mod metrics;
mod state;
#[cfg(test)]
mod tests;

pub use config::{INPUT_LIMIT, OUTPUT_LIMIT};
pub use device::Console;
pub use input::ConsoleInput;
pub use metrics::ConsoleMetrics;
pub use state::ConsoleState;
