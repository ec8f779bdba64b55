//! Why a snapshot could not be written or read.

use std::io;

use memory::{DiskBlock, Frame};

use crate::checksum::{Checksum, Id};

/// Why a snapshot could not be written or read. Nothing was changed, unless a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The host refused.
    #[error("{operation} {path}: {error}{}", advice(.error))]
    Host {
        /// What was tried.
        operation: &'static str,
        /// On which file or folder.
        path: String,
        /// What the host said.
        error: io::Error,
    },
    /// A file is not what it should be: cut short, changed, or never good.
    #[error("{path}: offset {offset}: {what}: expected {expected}, found {found}")]
    Corrupt {
        /// The file.
        path: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A later format, or none.
    #[error("{path}: format version {found}: expected {expected}: use the program that wrote it", expected = crate::manifest::VERSION)]
    Version {
        /// The file.
        path: String,
        /// The version that it says.
        found: String,
    },
    /// It cannot be read without a feature that came later.
    #[error("{path}: needs {feature:?}, which this program does not know: use a newer one")]
    Needs {
        /// The manifest.
        path: String,
        /// The feature's name.
        feature: String,
    },
    /// What was asked for cannot be done with this path.
    #[error("{path}: {why}")]
    Refused {
        /// The path.
        path: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The parent is another snapshot than the one that this was saved against.
    #[error(
        "{path}: parent {parent}: expected snapshot {expected_id} with checksum {expected}, found {found_id} with {found}: put the right one there"
    )]
    Parent {
        /// The child.
        path: String,
        /// Where the parent should be.
        parent: String,
        /// Its identity.
        expected_id: Id,
        /// Its manifest's checksum.
        expected: Checksum,
        /// The identity of what is there.
        found_id: Id,
        /// Its manifest's checksum.
        found: Checksum,
    },
    /// A frame's contents are on a disk, and no disks were given.
    #[error("frame {frame}: its contents are block {} of disk {}: no disks were given to read it", .block.block, .block.disk)]
    NoDisks {
        /// The frame.
        frame: Frame,
        /// Where its contents are.
        block: DiskBlock,
    },
    /// The caller did what the documentation forbids.
    #[error("bug: {0}")]
    Bug(String),
}

/// What is done about it, where that is known.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or save elsewhere"
        }
        io::ErrorKind::NotFound => ": check the path",
        io::ErrorKind::PermissionDenied => ": check whose it is",
        _ => "",
    }
}

impl SnapshotError {
    pub(crate) fn host(
        operation: &'static str,
        path: impl ToString,
    ) -> impl FnOnce(io::Error) -> SnapshotError {
        move |error| SnapshotError::Host { operation, path: printable(path), error }
    }
}

/// Without control characters: what a file says goes to a terminal.
pub(crate) fn printable(text: impl ToString) -> String {
    let text = text.to_string();
    if !text.contains(char::is_control) {
        return text;
    }
    let mut printed = String::new();
    for character in text.chars() {
        match character.is_control() {
            true => printed.extend(character.escape_debug()),
            false => printed.push(character),
        }
    }
    printed
}

/// May another try succeed?
impl From<SnapshotError> for memory::SourceError {
    fn from(error: SnapshotError) -> Self {
        match &error {
            SnapshotError::Host { error: cause, .. } => {
                memory::SourceError::Io(io::Error::new(cause.kind(), error.to_string()))
            }
            _ => memory::SourceError::Corrupt(error.to_string()),
        }
    }
}
