//! The traditional memory balloon (virtio 1.2, 5.5): inflate, deflate, statistics, deflate on
//! out-of-memory, free page reporting.
//!
//! The device moves page numbers; what a given-back page means is behind [`BalloonMemory`]. How
//! large the balloon should be is somebody else's decision, made through [`BalloonHandle`].

mod config;
mod device;
mod handle;
mod metrics;
mod pages;
mod state;
mod statistics;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use config::{BalloonConfig, PAGE_SIZE};
pub use device::Balloon;
pub use handle::BalloonHandle;
pub use metrics::BalloonMetrics;
pub use pages::{BalloonMemory, FrameBalloon, PageNumber, PageRange};
pub use state::BalloonState;
pub use statistics::GuestStatistics;

/// A request to the balloon cannot be met.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BalloonError {
    /// More than the guest has.
    #[error("balloon target of {pages} pages: the guest has {limit}: ask for less")]
    TargetTooLarge {
        /// Asked for.
        pages: u32,
        /// Pages of the guest.
        limit: u32,
    },
}
