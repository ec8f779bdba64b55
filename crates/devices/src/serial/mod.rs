//! A 16550A serial port.
//!
//! The register file is vm-superio's; this folder adds what a console needs around it: input that
//! is never lost, output with a line hook, byte-wise access to wider port accesses, and an
//! interrupt identification that never mixes two causes.

mod config;
mod device;
mod metrics;
mod state;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use config::{COM1_BASE, COM1_IRQ, PORT_COUNT};
pub use device::Serial;
pub use metrics::SerialMetrics;
pub use state::SerialState;

/// A saved port cannot be taken up.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SerialError {
    /// More input than the FIFO holds.
    #[error("saved serial port: {bytes} bytes of input do not fit the FIFO: the state is damaged")]
    Input {
        /// Bytes in the saved FIFO.
        bytes: usize,
    },
}
