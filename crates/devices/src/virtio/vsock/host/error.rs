//! Why a vsock device cannot be had.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::virtio::vsock::config::{BUFFER_RANGE, CID_MAX, CID_MIN, CONNECTIONS_MAX};

/// A socket's path takes 108 bytes with the closing zero (unix(7)), of which `_` and the ten digits of
/// the highest port are for the guest's calls.
pub(super) const PATH_MAX: usize = 107 - 11;

/// A vsock device cannot be had as asked.
#[derive(Debug, Error)]
pub enum VsockError {
    /// An address that no guest can have.
    #[error("vsock cid {cid} is refused: ask for {CID_MIN} to {CID_MAX}")]
    Cid {
        /// What was asked.
        cid: u32,
    },
    /// A number of connections that cannot be had.
    #[error("{connections} vsock connections are refused: ask for 1 to {CONNECTIONS_MAX}")]
    Connections {
        /// What was asked.
        connections: u32,
    },
    /// A buffer that is too small to be of use, or too large.
    #[error(
        "vsock buffer of {bytes} bytes is refused: ask for {} to {}",
        BUFFER_RANGE.start(),
        BUFFER_RANGE.end()
    )]
    Buffer {
        /// What was asked.
        bytes: u32,
    },
    /// The path leaves no room for a port in a socket address.
    #[error("vsock path {path} has {length} bytes, 1 to {PATH_MAX} are possible: name another one")]
    PathLength {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// There is something that is not for us to remove.
    #[error("vsock path {path} is there and is no socket: name another, or remove it")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody listens there.
    #[error("vsock path {path} is in use by another process: name another, or end that process")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The host refused.
    #[error("vsock path {path}: {operation}: {source}: name one in a directory of yours")]
    Host {
        /// The path.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What the host said.
        source: io::Error,
    },
}
