//! Why a VM cannot start, or cannot do what it was asked.

use std::io;

use devices::virtio::block::DiskError;
use devices::virtio::net::NetError;
use devices::virtio::vsock::VsockError;
use thiserror::Error;

use crate::boot::BootError;
use crate::saved::SavedError;

/// A VM could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    /// Kernel, initrd or command line: the user's to mend.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk: the user's to mend.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network interface: the user's to mend.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Sockets between guest and host: the user's to mend.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A saved machine cannot be taken up: the user's to mend.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The console cannot be opened.
    #[error("console {path}: {source}")]
    Console {
        /// Where it should go.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The engine refused.
    #[error("engine: {0}")]
    Engine(#[from] engine::EngineError),
    /// The host refused.
    #[error("{0}: {1}")]
    Host(String, #[source] io::Error),
}

impl VmError {
    /// Makes the error of a refused `action` from the host's reason.
    pub(crate) fn host(action: &str) -> impl FnOnce(io::Error) -> Self {
        let action = action.to_owned();
        move |source| Self::Host(action, source)
    }
}

/// A request to a running VM was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// The guest has ended.
    #[error("the VM has ended")]
    Ended,
    /// The machine could not be written down; the guest goes on.
    #[error("save: {0}")]
    Save(String),
    /// Its memory could not become what clones lie over; the guest goes on.
    #[error("clone: {0}")]
    Clone(String),
    /// Nothing can be taken of its memory in this way.
    #[error("reclaim: {0}")]
    Reclaim(String),
    /// Its memory cannot be shared.
    #[error("share: {0}")]
    Share(String),
    /// The guest's kernel could not be understood.
    #[error("guest kernel: {0}")]
    Kernel(#[from] insight::kernel::KernelError),
    /// A balloon target outside the guest's memory.
    #[error("balloon target {target} is more than the guest's memory of {memory} bytes")]
    BalloonTarget {
        /// Bytes asked for.
        target: u64,
        /// Bytes there are.
        memory: u64,
    },
}
