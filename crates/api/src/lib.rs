//! Wire types, and the small HTTP server and client of the per-VM socket.
//!
//! Each VM process listens on a UNIX socket in a directory that only its user may enter
//! ([`SocketDirectory`]). On it runs HTTP/1.1 with JSON bodies:
//!
//! ```text
//! GET /fathom/version                     -> 200 Version
//! GET /fathom/vm                          -> 200 VmStatus
//! GET /fathom/vm/memory                   -> 200 Picture
//! GET /fathom/vm/curve                    -> 200 MemoryCurve
//! GET /metrics                            -> 200 text, of Prometheus
//! PUT /fathom/vm/watch                    -> 204 (its working set is measured for a minute)
//! PUT /fathom/vm/pause | resume | stop    -> 204
//! PUT /fathom/vm/balloon  BalloonTarget   -> 204
//! PUT /fathom/vm/save     SaveRequest     -> 200 SaveReport (sockets come along)
//! PUT /fathom/vm/share    ShareRequest    -> 200 ShareReport (two descriptors may come along)
//! PUT /fathom/vm/clone    CloneRequest    -> 200 CloneReport (two descriptors come along, one goes back)
//!                              anything else -> 4xx, 5xx  Fault
//! ```
//!
//! The user's daemon listens beside them and only tells: documents by path, read by GET ([`DocumentServer`]).
//!
//! Everything of ours is under `/fathom/`, but for `/metrics`, which is where everybody looks for it; the paths beside it are kept for Firecracker's API, whose
//! manner (204, `fault_message`) this one follows.
//!
//! ```text
//!  peer -- Server -- http (bytes -> request) -- route (request -> Call) -- VmControl -- the VM
//! ```
//!
//! *Not* here: any knowledge of a VM. The server calls a [`VmControl`]; the types are only for the wire, or plain facts of
//! `insight`.
//! The server is synchronous, with one thread a connection and limits on all that a peer can send, because
//! a VM has few clients and its process should carry little.
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! use api::{BalloonTarget, Client, ControlError, Server, SocketDirectory, VmControl, VmStatus};
//!
//! struct Idle;
//!
//! impl VmControl for Idle {
//!     fn status(&self) -> Result<VmStatus, ControlError> {
//!         Ok(VmStatus { name: "idle".to_owned(), ..VmStatus::default() })
//!     }
//! #   fn kernel(&self) -> Result<api::KernelInfo, ControlError> { unimplemented!() }
//! #   fn memory(&self) -> Result<api::Picture, ControlError> { unimplemented!() }
//! #   fn kernel_symbol(&self, _: &str) -> Result<api::KernelSymbol, ControlError> { unimplemented!() }
//! #   fn kernel_type(&self, _: &str) -> Result<api::KernelType, ControlError> { unimplemented!() }
//! #   fn watch(&self) -> Result<(), ControlError> { Ok(()) }
//!     fn pause(&self) -> Result<(), ControlError> {
//!         Err(ControlError::State("the guest has ended".to_owned()))
//!     }
//!     // ...
//! #   fn resume(&self) -> Result<(), ControlError> { Ok(()) }
//! #   fn stop(&self) -> Result<(), ControlError> { Ok(()) }
//! #   fn set_balloon(&self, _: BalloonTarget) -> Result<(), ControlError> { Ok(()) }
//! }
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("fathom");
//! let directory = SocketDirectory::at(path)?;
//! let server = Server::start(directory.claim("idle")?, Arc::new(Idle))?;
//! let client = directory.client("idle");
//! assert_eq!(client.status()?.name, "idle");
//! assert_eq!(client.pause().unwrap_err().to_string(), "VM `idle`: the guest has ended");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod client;
mod control;
mod directory;
mod http;
mod metrics;
mod report;
mod route;
mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wire;

pub use client::{Client, ClientError};
pub use control::{ControlError, VmControl};
pub use directory::{Claim, DirectoryError, SocketDirectory};
pub use insight::FrameClass;
pub use insight::picture::{
    CacheFigures, CurveOf, CurvePoint, HistoryPoint, IDLE_SECONDS, MemoryCurve, PartFigures,
    Picture, Recommendation, WorkingSets,
};
pub use report::{Report, Restore, RestoreFaults, TimeToResponsiveness, WorkingSetSample};
pub use server::{Document, DocumentServer, Documents, Server};
pub use wire::{
    BalloonTarget, CloneReport, CloneRequest, Fault, GuestProcess, HostCache, HostCacheDisk,
    KernelInfo, KernelSymbol, KernelType, MemoryUse, ReclaimRequest, ReclaimStatus, RunState,
    SaveReport, SaveRequest, ShareReport, ShareRequest, Switch, Version, VmStatus, WorkingSet,
    WorkingSetSources,
};
