//! The clock as it is saved: the time itself comes from the host.

use serde::{Deserialize, Serialize};

/// The index register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Register that the data port shows; < 128.
    pub index: u8,
}
