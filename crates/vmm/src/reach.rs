//! Which files a VM needs for as long as it lives, so that the rest can be put out of its reach.
//!
//! A guest that reboots gets a new machine, which opens every file again: what is needed once is needed
//! always.

use std::fs::OpenOptions;
use std::path::Path;

use confine::{Need, PathRule};

use crate::board;
use crate::config::{ConsoleConfig, DiskAccess, EngineKind, VmPlan};
use crate::error::VmError;

impl VmPlan {
    /// Makes the files that the VM writes and that are not there yet: only what exists can be kept within
    /// reach of a confined process.
    ///
    /// # Errors
    /// As [`start`](crate::start) would fail for a disk or the console.
    pub fn make_files(&self) -> Result<(), VmError> {
        for disk in &self.disks {
            if let DiskAccess::Overlay(_) = disk.access {
                board::disk_config(disk).plan()?;
            }
        }
        if let ConsoleConfig::File(path) = &self.console {
            make("console", path)?;
        }
        self.report.as_deref().map_or(Ok(()), |path| make("report", path))
    }

    /// What it opens, and what for.
    #[must_use]
    pub fn paths(&self) -> Vec<PathRule> {
        let mut paths = vec![PathRule::new(&self.kernel, Need::Read)];
        paths.extend(self.initrd.as_ref().map(|path| PathRule::new(path, Need::Read)));
        for disk in &self.disks {
            let image = if disk.access == DiskAccess::Write { Need::ReadWrite } else { Need::Read };
            paths.push(PathRule::new(&disk.path, image));
            if let DiskAccess::Overlay(overlay) = &disk.access {
                paths.push(PathRule::new(overlay, Need::ReadWrite));
            }
        }
        if let ConsoleConfig::File(path) = &self.console {
            paths.push(PathRule::new(path, Need::Output));
        }
        paths.extend(self.report.as_ref().map(|path| PathRule::new(path, Need::Output)));
        if self.engine.kind == EngineKind::Kvm {
            paths.push(PathRule::new("/dev/kvm", Need::Device));
        }
        paths
    }
}

/// Leaves alone what is there: it may be a FIFO, whose opening waits for a reader.
fn make(what: &str, path: &Path) -> Result<(), VmError> {
    if path.exists() {
        return Ok(());
    }
    let made = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    made.map(drop).map_err(|error| VmError::Host(format!("make {what} {}", path.display()), error))
}
