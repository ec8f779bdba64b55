//! The entropy device (virtio 1.2, 5.4): random bytes from the host kernel.

mod config;
mod device;
mod metrics;
mod state;
#[cfg(test)]
mod tests;

pub use config::REQUEST_LIMIT;
pub use device::Rng;
pub use metrics::RngMetrics;
pub use state::RngState;
