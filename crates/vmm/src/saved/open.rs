//! A saved machine, opened.

use std::path::Path;
use std::sync::Arc;

use snapshot::{Learning, Snapshot, WorkingSet};

use super::{MachineState, SavedError, VERSION};

/// A saved machine, open. Its state is checked; its memory is when it is read.
pub struct Saved {
    /// Everything but the memory.
    pub state: MachineState,
    pub(super) snapshot: Arc<Snapshot>,
    /// What its guest needs first, as far as that is known.
    pub(super) set: Option<Arc<WorkingSet>>,
}

impl Saved {
    /// Opens the snapshot at `path` and checks all but the contents of its memory. What an earlier restore has learnt
    /// of its working set is taken over.
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
        if let Err(error) = WorkingSet::adopt(&snapshot) {
            // Others may own the snapshot.
            tracing::debug!("{error}");
        }
        // It is only an advice.
        let set = snapshot.working_set().unwrap_or_else(|error| {
            tracing::warn!("{error}: the working set is not known");
            None
        });
        Ok(Self { state, snapshot, set: set.map(Arc::new) })
    }

    /// A file for what this one learns; `None` where another learns, or nobody may write.
    #[must_use]
    pub fn begin_to_learn(&self) -> Option<Learning> {
        Learning::begin(&self.snapshot).unwrap_or_else(|error| {
            tracing::debug!("{error}");
            None
        })
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
