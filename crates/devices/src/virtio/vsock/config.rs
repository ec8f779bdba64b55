//! A vsock device as asked for.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Host to guest.
pub(super) const RECEIVE: usize = 0;
/// Guest to host.
pub(super) const TRANSMIT: usize = 1;
/// Device to driver, out of band.
pub(super) const EVENTS: usize = 2;
/// Queue sizes.
pub(super) const QUEUES: &[u16] = &[256, 256, 64];

/// VIRTIO_VSOCK_F_STREAM (5.10.3).
pub(super) const F_STREAM: u64 = 1 << 0;

/// Connections at a time, unless said otherwise.
pub const CONNECTIONS_DEFAULT: u32 = 1024;
/// Most connections that can be asked for: each takes a descriptor.
pub const CONNECTIONS_MAX: u32 = 65536;
/// Bytes a connection may hold for the host, unless said otherwise.
pub const BUFFER_DEFAULT: u32 = 128 << 10;
/// Least and most bytes that can be asked for.
pub const BUFFER_RANGE: std::ops::RangeInclusive<u32> = 4 << 10..=16 << 20;
/// The first address that a guest may have: below are the hypervisor, this guest and the host.
pub const CID_MIN: u32 = 3;
/// The last one: the next is VMADDR_CID_ANY.
pub const CID_MAX: u32 = u32::MAX - 1;

/// How long the guest may take to answer a connection of the host's.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the guest may take to confirm that a connection is over: as long as Linux gives us.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

/// A vsock device as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// The guest's address, [`CID_MIN`] to [`CID_MAX`].
    pub cid: u32,
    /// Where the host connects to the guest. The guest's port P of the host is `PATH_P`.
    pub path: PathBuf,
    /// Connections at a time, 1 to [`CONNECTIONS_MAX`].
    pub connections: u32,
    /// Bytes from the guest that a connection holds while the host does not take them, within
    /// [`BUFFER_RANGE`]. Used only while they are there.
    pub buffer_bytes: u32,
}

impl VsockConfig {
    /// With the usual limits.
    pub fn new(cid: u32, path: impl Into<PathBuf>) -> Self {
        Self {
            cid,
            path: path.into(),
            connections: CONNECTIONS_DEFAULT,
            buffer_bytes: BUFFER_DEFAULT,
        }
    }
}
