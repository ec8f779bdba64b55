//! A saved machine, opened.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use snapshot::{Kind, Snapshot, WorkingSet};

use super::{MachineState, SavedError, VERSION};
use crate::config::VmPlan;
use crate::error::VmError;

/// A saved machine, open. Its state is checked; its memory is when it is read.
pub struct Saved {
    /// Everything but the memory.
    pub state: MachineState,
    pub(super) snapshot: Arc<Snapshot>,
    /// What its guest needs first, as far as that is known.
    pub(super) set: Option<Arc<WorkingSet>>,
}

impl Saved {
    /// Opens the snapshot at `path` and checks all but the contents of its memory.
    ///
    /// # Errors
    /// It is not there, not whole, of another version, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self, SavedError> {
        let snapshot = Arc::new(Snapshot::open(path)?);
        let state = parse_state(path, &snapshot.machine()?)?;
        let (found, expected) = (snapshot.layout().bytes(), state.config.memory.0);
        if found != expected {
            let what = format!("image of {found} bytes, config.memory is {expected}");
            return Err(SavedError::Damaged { path: path.to_owned(), what });
        }
        // It is only an advice.
        let set = snapshot.working_set().unwrap_or_else(|error| {
            tracing::warn!("{error}: the working set is not known");
            None
        });
        Ok(Self { state, snapshot, set: set.map(Arc::new) })
    }

    /// The file that VMs lie over which have this memory in common: frame n at byte 4096 n. All of it is read and checked
    /// now; nobody checks it later.
    ///
    /// # Errors
    /// It is compressed, or not whole without others; a disk has been written since, or can be written by one VM only;
    /// or what is read is not what was saved.
    pub fn common_image(&self) -> Result<OwnedFd, SavedError> {
        let path = self.snapshot.store().name();
        let not_common = |what: String| Err(SavedError::NotCommon { path, what });
        let elsewhere = |kind| matches!(kind, Kind::Parent | Kind::Disk(_));
        let whole = !self.snapshot.runs().iter().any(|run| elsewhere(run.kind));
        let plain = self.snapshot.plain_image().filter(|image| whole && image.offset == 0);
        let Some(image) = plain else {
            let what =
                "it is compressed or incremental, so its memory cannot be mapped: save it without";
            return not_common(what.to_owned());
        };
        let plan = VmPlan::new(self.state.config.clone());
        let plan = match plan.map_err(|error| error.to_string()) {
            Ok(plan) => plan,
            Err(what) => return not_common(what),
        };
        if let Err(what) = plan.check_clonable() {
            return not_common(what);
        }
        match self.state.check_disks(&plan) {
            Ok(()) => {}
            Err(VmError::Saved(error)) => return Err(error),
            Err(error) => return not_common(error.to_string()),
        }
        self.snapshot.verify()?;
        image.file.try_clone_to_owned().map_err(SavedError::file(Path::new("the image of memory")))
    }

    /// Its memory.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

/// Only the version, of whatever version it is.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// The state that `json` says, checked; `path` is of the snapshot.
pub(super) fn parse_state(path: &Path, json: &[u8]) -> Result<MachineState, SavedError> {
    let damaged = |what: String| SavedError::Damaged { path: path.to_owned(), what };
    let Versioned { version } = parse(json).map_err(damaged)?;
    if version != VERSION {
        return Err(SavedError::Version { found: version, expected: VERSION });
    }
    let state: MachineState = parse(json).map_err(damaged)?;
    state.check()?;
    Ok(state)
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| error.to_string())
}
