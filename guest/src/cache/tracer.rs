//! Which of the kernel's events are traced.
//!
//! Two are the kernel's own: a page is added to the page cache, a page is removed. Neither says why, nor do they
//! tell of the swap cache, so four probes do, on functions that the kernel calls for nothing else:
//!
//! - `remove` comes just before a removal, on the same processor and with interrupts off, if one page is removed
//!   and not a batch of a truncated file. It has who asked for it, and the shadow entry that stays in the page's
//!   place, which only reclaim leaves there (mm/workingset.c).
//! - `swap_add` and `swap_remove` do as much for the swap cache.
//! - `move` is a page that goes on in another frame (compaction).
//!
//! XFS keeps what is not a file's outside the page cache, and tells of such a buffer when it goes to the disk or
//! comes from there.

use super::drain::{Drain, Writer};
use crate::patching::tracefs;
use crate::sys;
use std::fs;
use std::path::Path;

type Result<T> = std::result::Result<T, String>;

/// Folders of events.
const EVENTS: [&str; 6] = [
    "filemap/mm_filemap_add_to_page_cache",
    "filemap/mm_filemap_delete_from_page_cache",
    "cache/remove",
    "cache/swap_add",
    "cache/swap_remove",
    "cache/move",
];

/// The same, where XFS is.
const OF_XFS: [&str; 1] = ["xfs/xfs_buf_submit"];

/// Arguments by the calling convention; `base` is where the array of `struct page` begins.
const PROBES: [&str; 4] = [
    "p:cache/remove __filemap_remove_folio folio=%di:x64 shadow=%si:x64 caller=$stack0:x64",
    "p:cache/swap_add add_to_swap_cache folio=%di:x64 entry=%si:x64 base=@vmemmap_base:x64",
    "p:cache/swap_remove __delete_from_swap_cache folio=%di:x64 entry=%si:x64 shadow=%dx:x64 base=@vmemmap_base:x64",
    "p:cache/move folio_migrate_flags to=%di:x64 folio=%si:x64 base=@vmemmap_base:x64",
];

/// For all processors together; emptied many times a second.
const BUFFER_KIB: u64 = 4096;

/// Events come until it is stopped.
pub(super) struct Tracer {
    cpus: u64,
    drain: Drain,
}

/// What came.
pub(super) struct Traced {
    pub(super) writer: Writer,
    pub(super) events: u64,
    pub(super) lost: u64,
}

impl Tracer {
    pub(super) fn start(disk: &Path) -> Result<Self> {
        tracefs::mount()?;
        let cpus = sys::cpus_online();
        tracefs::replace("tracing_on", "0")?;
        tracefs::replace("trace_clock", "x86-tsc")?;
        tracefs::replace("buffer_size_kb", &(BUFFER_KIB / cpus).to_string())?;
        // What does not fit is lost, and counted.
        tracefs::replace("options/overwrite", "0")?;
        tracefs::forget_trace()?;
        PROBES.iter().try_for_each(|probe| tracefs::set("kprobe_events", probe))?;
        switch(true)?;
        let drain = Drain::start(disk, cpus).map_err(|error| error.to_string())?;
        tracefs::replace("tracing_on", "1")?;
        Ok(Self { cpus, drain })
    }

    pub(super) fn stop(self) -> Result<Traced> {
        tracefs::replace("tracing_on", "0")?;
        switch(false)?;
        let writer = self.drain.finish().map_err(|error| error.to_string())?;
        let count = |names: &[&str]| tracefs::counted(self.cpus, names);
        let events = count(&["read events: "])?;
        let lost = count(&["entries: ", "overrun: ", "commit overrun: ", "dropped events: "])?;
        Ok(Traced { writer, events, lost })
    }
}

/// All that there are, once a file system is mounted and the probes are set.
pub(super) fn events() -> Vec<&'static str> {
    let there = |name: &&str| fs::exists(tracefs::path(&format!("events/{name}"))).unwrap_or(false);
    EVENTS.into_iter().chain(OF_XFS.into_iter().filter(there)).collect()
}

fn switch(on: bool) -> Result<()> {
    let value = if on { "1" } else { "0" };
    events().iter().try_for_each(|name| tracefs::replace(&format!("events/{name}/enable"), value))
}
