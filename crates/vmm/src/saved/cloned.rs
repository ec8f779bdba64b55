//! Clones of a running machine: the same state, over memory that they have in common.
//!
//! ```text
//!   parent, running: its memory ----------+        clone 1    clone 2    ...
//!        | stands for milliseconds        |           |          |       what each has written
//!        v                                v           v          v
//!   parent, running: what it writes | the image of memory: never written again
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use memory::{GuestMemory, Image, ImageRuns, RamLayout};

use super::{MachineState, Saved, SavedError, open};
use crate::config::{DiskAccess, NetBackend, VmConfig, VmPlan};
use crate::error::VmError;
use crate::restore::{Keeper, Restore, RestoreOptions};

/// Where it is read from, in messages.
const NAME: &str = "the clone's state";
/// A state has a few KiB a vCPU and device.
const STATE_MAX: u64 = 16 << 20;

/// What a machine is cloned into: opened by whoever asked, since the VM's process can open none. Both are empty.
#[derive(Debug)]
pub struct CloneFiles {
    /// Takes the state.
    pub machine: File,
    /// For memory; in no file system, and can be sealed: memfd_create(2).
    pub memory: OwnedFd,
}

/// What a clone came to, and the memory that clones lie over.
#[derive(Debug)]
pub struct CloneReport {
    /// How long the guest stood.
    pub pause: Duration,
    /// Frames of the guest in all.
    pub frames: u32,
    /// It stands until it is resumed, because its disks have overlays that are to be copied as they are.
    pub stands: bool,
    /// The image; its descriptor is for clones.
    pub image: Image,
}

/// A clone that does not run yet. Its state is checked.
#[derive(Debug)]
pub struct Cloned {
    /// Everything but the memory.
    pub state: MachineState,
    memory: OwnedFd,
    layer: Option<OwnedFd>,
    runs: ImageRuns,
}

/// What a machine goes on from. A reboot goes on from none: it boots.
pub enum Origin<'a> {
    /// A saved machine, and how its memory comes.
    Saved(&'a Saved, RestoreOptions),
    /// A running one.
    Cloned(&'a Cloned),
}

impl CloneFiles {
    /// Writes the state, from the file's beginning.
    pub(crate) fn write_state(&self, state: &MachineState) -> Result<(), VmError> {
        let json = serde_json::to_vec(state).map_err(std::io::Error::from);
        let written = json.and_then(|json| (&self.machine).write_all(&json));
        written.map_err(VmError::host("write the machine's state"))
    }
}

impl VmPlan {
    /// Whether clones of it can have what it has; `own_nets` if their first network is another one each.
    ///
    /// # Errors
    /// What they cannot have, and what to do.
    pub(crate) fn check_clonable(&self, own_nets: bool) -> Result<(), String> {
        for disk in &self.disks {
            if disk.access == DiskAccess::Write {
                return Err(format!(
                    "disk {} is written directly and would change under its clones: run the VM with \
                     --disk {},overlay=FILE",
                    disk.path.display(),
                    disk.path.display()
                ));
            }
        }
        check_nets(self.nets.iter().skip(usize::from(own_nets)).map(|net| &net.backend))
    }

    /// Whether what its guest writes to a disk goes into an overlay.
    pub(crate) fn has_overlays(&self) -> bool {
        self.disks.iter().any(|disk| matches!(disk.access, DiskAccess::Overlay(_)))
    }
}

/// The same of a configuration, whose files may be in use.
pub(super) fn check_config(config: &VmConfig) -> Result<(), String> {
    let written = |disk: &&crate::config::DiskConfig| !disk.read_only && disk.overlay.is_none();
    if let Some(disk) = config.disks.iter().find(written) {
        let path = disk.path.display();
        return Err(format!(
            "disk {path} is written directly, and would change under whoever goes on from here: run the VM with \
             --disk {path},overlay=FILE"
        ));
    }
    check_nets(config.nets.iter().map(|net| &net.backend))
}

fn check_nets<'a>(backends: impl Iterator<Item = &'a NetBackend>) -> Result<(), String> {
    for backend in backends {
        let what = match backend {
            NetBackend::Passt(_) => continue,
            NetBackend::Tap(name) => format!("the TAP interface {name}"),
            NetBackend::Socket(path) => format!("the passt at {}", path.display()),
        };
        return Err(format!("{what} can have one VM only: run the VM with --net passt"));
    }
    Ok(())
}

impl Cloned {
    /// Reads a state, and checks it; `memory` is the image, from byte 0 on, and `layer` what is different from it.
    ///
    /// # Errors
    /// The state is of another version, or says what cannot be.
    pub fn read(
        state: impl Read,
        memory: OwnedFd,
        layer: Option<OwnedFd>,
    ) -> Result<Self, SavedError> {
        let mut json = Vec::new();
        let path = Path::new(NAME);
        state.take(STATE_MAX + 1).read_to_end(&mut json).map_err(SavedError::file(path))?;
        if json.len() as u64 > STATE_MAX {
            let what = format!("more than {STATE_MAX} bytes");
            return Err(SavedError::Damaged { path: path.to_owned(), what });
        }
        let state = open::parse_state(path, &json)?;
        Ok(Self { state, memory, layer, runs: ImageRuns::default() })
    }

    /// The same, with `runs` in place of what the image has there; without a layer.
    #[must_use]
    pub fn with_runs(self, runs: ImageRuns) -> Self {
        Self { runs, ..self }
    }
}

impl<'a> Origin<'a> {
    /// Everything but the memory.
    pub(crate) fn state(&self) -> &'a MachineState {
        match self {
            Self::Saved(saved, _) => &saved.state,
            Self::Cloned(cloned) => &cloned.state,
        }
    }

    /// Whether a machine of `plan` can go on from it, with disks as the guest knows them: those of a clone are copies
    /// that were made for it.
    pub(crate) fn check(&self, plan: &VmPlan) -> Result<(), VmError> {
        self.state().check_plan(plan)?;
        match self {
            Self::Saved(saved, _) => saved.state.check_disks(plan),
            Self::Cloned(_) => Ok(()),
        }
    }

    /// Memory that has its contents from the start; `None` where it must be filled.
    pub(crate) fn memory(&self) -> Option<Result<GuestMemory, VmError>> {
        let Self::Cloned(cloned) = self else { return None };
        let over = || {
            let layout = RamLayout::new(cloned.state.config.memory.0).map_err(other)?;
            let memory = cloned.memory.try_clone()?;
            if let Some(layer) = &cloned.layer {
                let layer = Some(layer.try_clone()?);
                return GuestMemory::over_layers(layout, memory, 0, layer).map_err(other);
            }
            GuestMemory::over_runs(layout, memory, 0, cloned.runs.try_clone()?).map_err(other)
        };
        Some(over().map_err(VmError::host("take up the clone's memory")))
    }

    /// Brings the contents into memory, now or from now on; if `recorded`, it is written down who waits.
    pub(crate) fn fill(
        self,
        memory: &Arc<GuestMemory>,
        recorded: bool,
    ) -> Result<(Option<Arc<Restore>>, Option<Keeper>), VmError> {
        match self {
            Self::Saved(saved, options) => saved.fill(memory, options, recorded),
            Self::Cloned(cloned) => cloned.state.take_balloon(memory).map(|()| (None, None)),
        }
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}
