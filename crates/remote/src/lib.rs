//! A snapshot that another process reads: the VM's end of the socket, and what goes over it.
//!
//! ```text
//!   the VM's process              fathom-store (crate objects)     s3://bucket/prefix/NAME
//!   Snapshot                      +-------------------+            file:///folder/NAME
//!     Remote --- one socket ----> | reads the store   | ---------> manifest, ID/memory, ID/frames ...
//!   (confined: no sockets,        +-------------------+
//!    no files, no keys)
//! ```
//!
//! A VM's process can open no socket, and has no keys of the store in it. So a process beside it reads for it: what
//! asks names one of the snapshot's parts and where in it, and nothing else can be had. That process is another program, so
//! that what speaks TLS and HTTP takes no memory in each VM's.
//!
//! What it is *not*: it knows no store, only the address that names one.
#![forbid(unsafe_code)]

pub use address::{Address, AddressError};
pub use remote::{Remote, pair};
pub use words::without_number;

mod address;
mod remote;
pub mod wire;
mod words;
