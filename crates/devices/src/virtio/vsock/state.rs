//! The device as it is saved.

use serde::{Deserialize, Serialize};

/// Connections are not saved: their other ends stay with the host. A restored guest is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's address. Restored under another one, the guest learns the new one.
    pub cid: u32,
}
