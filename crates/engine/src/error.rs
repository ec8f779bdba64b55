//! What can go wrong in an engine, by who is to blame.

use thiserror::Error;

/// An engine's failure. Guest mistakes are not among them: they are exceptions in the guest.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The user asked for something that this engine or machine cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// The host refused.
    #[error("{action}: {source}")]
    Host {
        /// What was tried, with the name of the thing.
        action: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// Guest memory could not be provided, and will not be: the contents of an absent frame are lost.
    #[error("guest memory: {0}")]
    Memory(String),
    /// A state that cannot be loaded.
    #[error("vcpu state: {0}")]
    State(String),
    /// A defect of the engine; the message helps to find it.
    #[error("bug in the engine: {0}")]
    Bug(String),
}
