//! One virtual machine: configuration, plan, boot, run states, events.
//!
//! ```text
//!   VmConfig --VmPlan::new--> VmPlan --start--> VmHandle --wait--> Outcome
//!    asked                    checked            running
//!                                 ^                 | save
//!                                 +-- restore_with --+--> saved::MachineState, an image of memory
//! ```
//!
//! What it is *not*: it knows no wire format and no command line, and it never looks into an engine: it
//! answers exits from the buses, and runs devices on one I/O thread.
#![forbid(unsafe_code)]

/// What tests of this crate have in common with those beside it knows it by its name.
#[cfg(test)]
extern crate self as vmm;

mod board;
pub mod boot;
pub mod config;
mod console;
mod console_writer;
mod control;
mod debug;
mod error;
mod estimate_log;
mod exit_ring;
mod first_touches;
mod generation;
mod guest_ram;
mod handle;
mod host_cache;
mod io_thread;
mod machine;
mod merge;
mod observer;
mod outcome;
mod outside;
mod panic_watch;
mod post_mortem;
mod reach;
mod restore;
pub mod saved;
mod share;
mod shortage;
mod status;
mod swap;
mod vcpu_thread;

pub use control::RunState;
pub use devices::virtio::block::{HostCacheCounts, HostCacheStatus, PageCache};
/// For a process that will run a VM: call it first of all, see [`engine_translate::begin_to_measure`].
pub use engine_translate::begin_to_measure as begin_to_measure_time;
pub use error::{RequestError, VmError};
pub use handle::{VmHandle, clone_with, restore_with, start, start_with};
pub use host_cache::HostCacheReport;
pub use observer::ClassCheck;
pub use outcome::Outcome;
pub use outside::Outside;
pub use restore::{
    Keeper, Responsiveness, RestoreFaults, RestoreMode, RestoreOptions, RestoreReport, Tell,
};
pub use share::{ShareReport, ShareRequest};
pub use status::{RunReport, VmStatus, WorkingSet, WorkingSetPoint};
pub use swap::{ReclaimRequest, ReclaimStatus};
