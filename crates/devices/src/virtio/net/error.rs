//! Why a network cannot be had.

use std::io;
use std::path::PathBuf;

use tap::TapError;
use thiserror::Error;

/// The host's side of a network interface cannot be opened.
#[derive(Debug, Error)]
pub enum NetError {
    /// The TAP interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Nobody answers at passt's socket.
    #[error("passt {path}: {source}: start it with: passt --socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no passt to start.
    #[error(
        "passt: not found in PATH: apt-get install passt, or use a TAP interface: --net tap=NAME"
    )]
    NoPasst,
    /// It started and ended.
    #[error("passt: refuses to run: {said}: see passt(1)")]
    PasstRefuses {
        /// Its last words.
        said: String,
    },
    /// An MTU that Ethernet or IP does not have.
    #[error("mtu {mtu} is refused: 68 to 65520 are possible")]
    Mtu {
        /// The MTU.
        mtu: u16,
    },
    /// The host refused.
    #[error("network: {operation}: {source}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl NetError {
    pub(super) fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}
