//! Why a store could not be read or written.

use std::error::Error;
use std::io;

/// Why a store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectsError {
    /// Not the address of a snapshot.
    #[error(transparent)]
    Address(#[from] remote::AddressError),
    /// What was asked for cannot be done there.
    #[error("{url}: {why}")]
    Refused {
        /// The snapshot.
        url: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The store refused or did not answer.
    #[error("{operation} {url}: {failure}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// On what.
        url: String,
        /// What it said.
        failure: Failure,
    },
    /// The snapshot cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// The host refused.
    #[error("{0}: {1}")]
    Host(&'static str, io::Error),
}

/// What a store said, in a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of error it is.
    pub kind: io::ErrorKind,
    /// In words.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(kind: io::ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        io::Error::new(failure.kind, failure.message)
    }
}

/// The innermost cause says what happened; what is around it, how often and with which headers it was tried.
impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as Store;
        let innermost = || {
            let mut cause: &dyn Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            let text = cause.to_string();
            let line = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            line.chars().take(400).collect::<String>()
        };
        match &error {
            Store::NotFound { .. } => Self::new(io::ErrorKind::NotFound, "no such object"),
            Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
                let why = format!("the store refuses: {}: check AWS_ACCESS_KEY_ID", innermost());
                Self::new(io::ErrorKind::PermissionDenied, why)
            }
            Store::AlreadyExists { .. } => {
                Self::new(io::ErrorKind::AlreadyExists, "is there already")
            }
            _ => Self::new(io::ErrorKind::Other, innermost()),
        }
    }
}

impl ObjectsError {
    pub(crate) fn store(
        operation: &'static str,
        url: impl ToString,
    ) -> impl FnOnce(object_store::Error) -> Self {
        move |error| Self::Store { operation, url: url.to_string(), failure: error.into() }
    }
}
