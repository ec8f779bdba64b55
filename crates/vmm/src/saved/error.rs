//! Why a saved machine cannot be taken up.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use devices::virtio::RestoreError;

/// A saved machine cannot be taken up, or not here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SavedError {
    /// The snapshot cannot be written or read.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// What the VM sends breaks off, or cannot be.
    #[error("what the VM sends: {0}")]
    Stream(String),
    /// A file of it cannot be used.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Not what was saved, or not whole.
    #[error("{path}: {what}: is it whole?")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// Of another time.
    #[error("machine state of version {found}: this program reads version {expected}")]
    Version {
        /// In the file.
        found: u32,
        /// What is read.
        expected: u32,
    },
    /// A value that cannot be.
    #[error("machine state: {field}: {what}")]
    Field {
        /// Which.
        field: String,
        /// What is wrong with it.
        what: String,
    },
    /// The guest may use what is not here.
    #[error("the guest's processor is not to be had here: {}", .0.join("; "))]
    Processor(Vec<String>),
    /// VMs cannot have it in common.
    #[error("{path}: {what}")]
    NotCommon {
        /// The snapshot.
        path: String,
        /// Why not, and what to do.
        what: String,
    },
    /// A disk is not what the guest has half in its memory.
    #[error("disk {path}: {what}: the guest, which has parts of it in memory, would damage it")]
    Disk {
        /// Its file.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
    /// A device does not take its state.
    #[error("machine state: board.virtio[{slot}]: {source}")]
    Device {
        /// Of the device.
        slot: usize,
        /// Why not.
        source: RestoreError,
    },
}

impl SavedError {
    /// Whether it only says that the VM, or who keeps it, has gone: the other may know why.
    #[must_use]
    pub fn is_of_the_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    pub(crate) fn field(field: &str, what: impl ToString) -> Self {
        Self::Field { field: field.to_owned(), what: what.to_string() }
    }

    pub(super) fn file(path: &std::path::Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::File { path: path.to_owned(), source }
    }
}
