//! The walls that a VM's process puts up around itself before guest code runs.
//!
//! ```text
//!   Cgroup::enter        limits on memory and processor time (where asked for)
//!   Jail::enter          a root directory and a user of its own (for root, where asked for)
//!   close_inherited      nothing that a parent left open can be used
//!   restrict_paths       no new privileges; no guest memory in core dumps; few descriptors;
//!                        of the file system only the planned paths (Landlock)
//!   restrict_calls       of the system calls only those that some thread needs (seccomp)
//!   spawn, enter         of these, only those that this kind of thread needs
//! ```
//!
//! All of it is for good and is inherited by threads: it is done by the main thread before there are others.
//!
//! What it is *not*: it knows no VM. Who plans a file or a device says what is needed of it ([`PathRule`]).
//! What each wall stops, and what none does, is in docs/threat-model.md.

mod cgroup;
mod descriptors;
mod error;
mod jail;
mod limits;
mod paths;
mod seccomp;

pub use cgroup::{Cgroup, CgroupError};
pub use descriptors::{close_inherited, inherited};
pub use error::ConfineError;
pub use jail::{Jail, JailError};
pub use paths::{Need, PathRule};
pub use seccomp::{Having, Thread, enter, spawn};

/// A wall that was wanted and does not stand, because the host's kernel lacks it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Its name.
    pub wall: &'static str,
    /// What the kernel said, and what is open to attack for it.
    pub why: String,
}

/// Refuses new privileges to this thread and those that it will start, keeps guest memory out of core dumps,
/// limits open files, and puts all but `paths` out of reach.
///
/// Tells if the host's kernel has no Landlock; the other walls stand.
///
/// # Errors
/// The host refuses what it has, or one of `paths` is not there. Then some walls may stand: give up.
pub fn restrict_paths(paths: &[PathRule]) -> Result<Option<Missing>, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(ConfineError::host("refuse new privileges"))?;
    limits::keep_guest_memory_out_of_core_dumps()?;
    limits::limit_descriptors()?;
    paths::restrict(paths)
}

/// Forbids this thread and those that it will start all system calls that no thread of a VM needs which is
/// `having`. From then on [`enter`] and [`spawn`] narrow each thread to what its kind needs.
///
/// To be called after [`restrict_paths`], whose own calls are forbidden then. Tells if the host's kernel has
/// no filters.
///
/// # Errors
/// The host refuses a filter.
pub fn restrict_calls(having: &[Having]) -> Result<Option<Missing>, ConfineError> {
    seccomp::restrict(having)
}
