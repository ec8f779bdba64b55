//! The console device (virtio 1.2, 5.3), one port.
//!
//! Output goes to an [`Output`](crate::output::Output) on the I/O thread. Into a buffer it never
//! blocks: while the reader is behind, requests stay in the queue.

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
