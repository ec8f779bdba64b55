//! The walls that a VM's process puts up around itself before guest code runs.
//!
//! ```text
//!   close_inherited      nothing that a parent left open can be used
//!   confine              no new privileges; no guest memory in core dumps; few descriptors;
//!                        of the file system only the planned paths (Landlock)
//! ```
//!
//! All of it is for good and is inherited by threads: it is done by the main thread before there are others.
//!
//! What it is *not*: it knows no VM. Who plans a file or a device says what is needed of it ([`PathRule`]).
//! What each wall stops, and what none does, is in docs/threat-model.md.

mod descriptors;
mod error;
mod limits;
mod paths;

pub use descriptors::close_inherited;
pub use error::ConfineError;
pub use paths::{Need, PathRule};

/// A wall that was wanted and does not stand, because the host's kernel lacks it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Its name.
    pub wall: &'static str,
    /// What the kernel said, and what is open to attack for it.
    pub why: String,
}

/// Confines this thread and those that it will start; `paths` stay reachable.
///
/// Tells which walls the host's kernel cannot build; the others stand.
///
/// # Errors
/// The host refuses what it has, or one of `paths` is not there. Then some walls may stand: give up.
pub fn confine(paths: &[PathRule]) -> Result<Vec<Missing>, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(ConfineError::host("refuse new privileges"))?;
    limits::keep_guest_memory_out_of_core_dumps()?;
    limits::limit_descriptors()?;
    Ok(paths::restrict(paths)?.into_iter().collect())
}
