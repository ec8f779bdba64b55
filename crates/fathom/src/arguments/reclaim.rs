//! Options of `fathom reclaim`.

use std::path::PathBuf;

use clap::Args;
use vmm::config::Bytes;

pub(super) const AFTER: &str = "\
The host takes the guest's coldest frames without asking it; what the guest touches comes back. What is zero, or the same as the
image of a disk that nobody writes, is dropped; the rest is written to the store, compressed, and stays with the guest where
there is none. The store is a file that is made, and has no name from then on: its space is free again when the VM ends. It is given
once.

Example:
  fathom reclaim web 128M --store /var/tmp/web.swap
  fathom reclaim web 64M --rate 16M";

#[derive(Debug, Args)]
pub(crate) struct ReclaimArguments {
    /// Name of the VM
    pub(crate) name: String,
    /// How much to take, beyond what was taken before
    pub(crate) size: Bytes,
    /// Write what is nowhere else to this file; nothing may be there
    #[arg(long, value_name = "FILE")]
    pub(crate) store: Option<PathBuf>,
    /// The store may take so much
    #[arg(long, value_name = "SIZE")]
    pub(crate) store_limit: Option<Bytes>,
    /// Take at most so much in a second
    #[arg(long, value_name = "SIZE")]
    pub(crate) rate: Option<Bytes>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
