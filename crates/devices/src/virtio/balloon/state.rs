//! The device as it is saved. Which pages are in the balloon is the frame table's to save.

use serde::{Deserialize, Serialize};

/// Target, size, and the statistics buffer the device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages the balloon should hold.
    pub target: u32,
    /// Pages it holds, as the guest says.
    pub actual: u32,
    /// Head of the statistics request that waits to be given back.
    pub held_statistics: Option<u16>,
}
