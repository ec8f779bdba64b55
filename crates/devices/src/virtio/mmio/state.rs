//! The transport as it is saved.

use serde::{Deserialize, Serialize};

use crate::virtio::DeviceState;
use crate::virtio::queue::QueueState;

/// Registers, queues and the device behind them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Status register.
    pub status: u8,
    /// Which half of the offered features is shown.
    pub device_features_select: u32,
    /// Which half of the accepted features is written.
    pub driver_features_select: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// Which queue the queue registers show.
    pub queue_select: u32,
    /// Interrupt causes not yet acknowledged.
    pub interrupt_status: u32,
    /// Generation of the configuration space.
    pub config_generation: u32,
    /// One entry a queue.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}
