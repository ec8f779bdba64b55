//! Who keeps what a restore learns: a process beside the VM's, which is confined by then and may write to no snapshot.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use memory::Frame;
use rustix::fs::FlockOperation;
use snapshot::WorkingSet;
use vmm::saved::Saved;

use crate::arguments::LearnProcessArguments;
use crate::failure::{Failure, SUCCESS};

/// Starts it for the snapshot at `path`. It waits at its standard input.
pub(super) fn start_keeper(path: &Path) -> Option<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("learn-process").arg(path);
    // What stops the VM by a key does not stop this one.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.spawn();
    started.inspect_err(|error| tracing::debug!("what is learnt is not kept: {error}")).ok()
}

/// `fathom learn-process`.
pub(crate) fn keep(arguments: &LearnProcessArguments) -> Result<ExitCode, Failure> {
    // With its disks.
    let saved = Saved::open(&arguments.path).map_err(Failure::usage)?;
    let snapshot = saved.snapshot();
    let most = u64::from(snapshot.layout().frames()) * 4;
    let mut bytes = Vec::new();
    io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(Failure::host)?;
    let words = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    let frames: Vec<Frame> = words.map(Frame).collect();
    // A VM that ended before it ran has nothing to tell.
    if !frames.is_empty() {
        // One at a time: several VMs may have been restored from it.
        let folder = File::open(&arguments.path).map_err(Failure::host)?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive).map_err(Failure::host)?;
        let compression = snapshot.manifest().memory.compression;
        WorkingSet::replace(snapshot, &frames, compression).map_err(Failure::host)?;
    }
    Ok(ExitCode::from(SUCCESS))
}
