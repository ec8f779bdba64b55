//! Why a process cannot confine itself.

use std::io;
use std::path::PathBuf;

/// A wall cannot be built although the kernel has what it takes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// The host refused.
    #[error("{action}: {source}: --confine off runs without")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// A path that should stay reachable.
    #[error("keep {path} reachable: {source}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A system call filter cannot be made or put up.
    #[error("restrict system calls: {0}: --confine off runs without")]
    Filter(String),
    /// Landlock refused.
    #[error("restrict paths by Landlock: {0}: --confine off runs without")]
    Landlock(#[from] landlock::RulesetError),
}

impl ConfineError {
    /// Makes the error of a refused `action` from the host's reason.
    pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { action, source: source.into() }
    }
}
