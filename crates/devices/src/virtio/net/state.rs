//! The device as it is saved. Frames under way are not: networks lose frames.

use serde::{Deserialize, Serialize};

use super::MacAddress;

/// What a network device must be to take the place of a saved one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The guest's address.
    pub mac: MacAddress,
    /// The largest packet, if the guest was told.
    pub mtu: Option<u16>,
}
