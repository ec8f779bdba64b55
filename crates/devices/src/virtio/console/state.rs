//! The device as it is saved.

use serde::{Deserialize, Serialize};

/// Input that was typed and not yet given to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Oldest first.
    pub input: Vec<u8>,
}
