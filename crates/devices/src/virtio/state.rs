//! Saved and counted forms of every device.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::DeviceKind;
use super::balloon::{BalloonMetrics, BalloonState};
use super::block::{DiskMetrics, DiskState};
use super::console::{ConsoleMetrics, ConsoleState};
use super::net::{NetMetrics, NetState};
use super::queue::QueueError;
use super::rng::{RngMetrics, RngState};
use super::vsock::{VsockMetrics, VsockState};

/// What a device saves beside its transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A balloon.
    Balloon(BalloonState),
    /// A disk.
    Block(DiskState),
    /// A console.
    Console(ConsoleState),
    /// A network interface.
    Net(NetState),
    /// An entropy source.
    Rng(RngState),
    /// Sockets.
    Vsock(VsockState),
}

/// What a device has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceMetrics {
    /// A balloon.
    Balloon(BalloonMetrics),
    /// A disk.
    Block(DiskMetrics),
    /// A console.
    Console(ConsoleMetrics),
    /// A network interface.
    Net(NetMetrics),
    /// An entropy source.
    Rng(RngMetrics),
    /// Sockets.
    Vsock(VsockMetrics),
}

impl DeviceState {
    fn kind(&self) -> DeviceKind {
        match self {
            Self::Balloon(_) => DeviceKind::Balloon,
            Self::Block(_) => DeviceKind::Block,
            Self::Console(_) => DeviceKind::Console,
            Self::Net(_) => DeviceKind::Net,
            Self::Rng(_) => DeviceKind::Rng,
            Self::Vsock(_) => DeviceKind::Vsock,
        }
    }

    /// For a device that is as it was made: what was `saved` must be of its kind and equal `self`.
    pub(super) fn must_equal(&self, saved: &Self) -> Result<(), RestoreError> {
        if saved == self {
            return Ok(());
        }
        if saved.kind() != self.kind() {
            return Err(RestoreError::Kind { expected: self.kind() });
        }
        Err(RestoreError::Differs { what: format!("saved {saved:?}, this one {self:?}") })
    }
}

/// A saved device cannot be taken up.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RestoreError {
    /// The state belongs to another kind of device.
    #[error("saved state is not a {expected:?} device's: the machines differ")]
    Kind {
        /// What is being restored.
        expected: DeviceKind,
    },
    /// The state belongs to a device with other queues.
    #[error("saved device has {saved} queues, this one {expected}: the machines differ")]
    Queues {
        /// In the state.
        saved: usize,
        /// In the device.
        expected: usize,
    },
    /// The state belongs to a device that differs in what it offers.
    #[error("saved device differs: {what}")]
    Differs {
        /// In what.
        what: String,
    },
    /// A queue's state is impossible.
    #[error("saved queue: {0}")]
    Queue(#[from] QueueError),
}
