//! Why an overlay cannot be used.

use std::io;

use thiserror::Error;

/// An overlay cannot be made or opened.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// The host refused.
    #[error("{operation}: {source}: check that the folder exists and is yours to write")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Some other file.
    #[error("not an overlay of ours: name another file, it is left alone")]
    NotAnOverlay,
    /// A later version's.
    #[error("format version {version}, this program knows {known}: use the newer program")]
    Version {
        /// In the file.
        version: u32,
        /// Ours.
        known: u32,
    },
    /// A header that is not what was written.
    #[error("damaged header ({what}): delete the overlay to start afresh")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// The image changed under the overlay.
    #[error(
        "made over an image of {made_len} bytes modified at {made_secs}, \
         this one has {len} bytes modified at {secs}: \
         restore the image, or delete the overlay to start afresh"
    )]
    OtherImage {
        /// Size of the image it was made over.
        made_len: u64,
        /// Seconds of that image's modification time.
        made_secs: i64,
        /// Size of the image now.
        len: u64,
        /// Seconds of its modification time.
        secs: i64,
    },
    /// Another VM has it.
    #[error("in use by another VM: give each VM its own overlay")]
    InUse,
}
