//! Snapshots in object stores: S3 and what speaks it, or a folder.
//!
//! ```text
//!   the VM's process              fathom-store                     s3://bucket/prefix/NAME
//!   Snapshot                      +--------------------+           file:///folder/NAME
//!     Remote --- one socket ----> | serve    Blocks    | --------> manifest, ID/memory, ID/frames ...
//!   (confined: no sockets,        |          (kept,    |  ranges
//!    no files, no keys)           |          ahead)    |
//!                                 +--------------------+
//! ```
//!
//! A VM's process can open no socket, and has no keys of the store in it. So a process beside it reads for it (crate `remote` is
//! the VM's end): the program `fathom-store`, which is this crate, too, so that `fathom` has nothing of it. How a
//! snapshot lies in a store is in docs/formats/snapshot.md.
//!
//! What it is *not*: it knows no guest memory and decides not what is read when; it reads on where somebody reads in
//! order.
#![forbid(unsafe_code)]

pub use error::ObjectsError;
pub use location::Location;
pub use pull::open;
pub use push::{Pushed, push};
pub use serve::{Place, Tell, serve};

mod blocks;
mod error;
mod layout;
mod location;
mod pull;
mod push;
mod serve;
