//! Substrates: VMs that are kept in memory and started from there.

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(super) const DOCK_AFTER: &str = "\
The VM is made small, saved in a pool in memory, and ends: nothing has to run for it. `fathom activate` starts VMs from
there. What of its memory the guest's kernel can do without is taken from it before: free memory, and files that it can
read again from its disks (--keep-cache leaves them). Contents that another substrate has already are stored once. Overlays
of its disks are copied beside it; an image that it writes to directly is refused.

A snapshot, a path, is docked as it is.

Example:
  fathom dock web
  fathom dock web --as base --keep-running
  fathom dock ./web.snapshot
  fathom activate web --count 20";

pub(super) const POOL_AFTER: &str = "\
OWN is what a substrate has for itself, SHARED what of it is in others, or in it twice. The last line says what all take
together, and what they would take apart. A substrate that is removed takes nothing from others, nor from VMs that run.

Example:
  fathom pool
  fathom pool --json
  fathom pool remove web";

/// Where substrates are.
#[derive(Debug, Args)]
pub(crate) struct PoolPlace {
    /// The pool, a folder in a file system in memory [default: $FATHOM_POOL, or /dev/shm/fathom-UID]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) pool: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DockArguments {
    /// Name of the VM, or the path of a snapshot
    pub(crate) source: String,
    /// Name of the substrate [default: the VM's, or the snapshot's]
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) substrate: Option<String>,
    #[command(flatten)]
    pub(crate) place: PoolPlace,
    /// The VM goes on when it is kept
    #[arg(long)]
    pub(crate) keep_running: bool,
    /// Keep the guest's cache of files
    #[arg(long)]
    pub(crate) keep_cache: bool,
    /// Print JSON: sizes, frames by kind, how long it took
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PoolArguments {
    #[command(flatten)]
    pub(crate) place: PoolPlace,
    /// Print JSON: an object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<PoolCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Remove a substrate with its disks
    Remove {
        /// Name of the substrate
        name: String,
    },
}
