//! What was decided last, for whoever wants to see it: a file beside the sockets, replaced at each decision.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use policy::{Facts, Settings, Verdict};
use serde::{Deserialize, Serialize};

/// No VM can have a name that begins so.
const FILE: &str = ".serve.json";
const NEW: &str = ".serve.json.new";

/// A decision. It replays: [`policy::decide`] makes the same verdict of the same facts and settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Board {
    /// Seconds since 1970.
    pub at: f64,
    /// The daemon.
    pub pid: u32,
    /// What was known.
    pub facts: Facts,
    /// What the user decided.
    pub settings: Settings,
    /// What follows.
    pub verdict: Verdict,
    /// The host can take memory that balloons do not give. Without it, what the verdict says of that is not done.
    #[serde(default)]
    pub takes: bool,
    /// VMs that the daemon has stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<String>,
}

/// There is none, or it cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// No daemon has decided anything.
    #[error(
        "no daemon runs for this user: `fathom serve` starts one, `fathom balance --dry-run --memory SIZE` does without"
    )]
    None,
    /// The host refused.
    #[error("{path}: {source}")]
    Host {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Of another version, say.
    #[error("{path}: {what}: is the daemon of another version?")]
    Strange {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Board {
    /// The last one in the directory of sockets.
    ///
    /// # Errors
    /// There is none, or it is not one of this version.
    pub fn read(directory: &Path) -> Result<Self, BoardError> {
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BoardError::None),
            text => text.map_err(|source| BoardError::Host { path: path.clone(), source })?,
        };
        serde_json::from_slice(&text)
            .map_err(|error| BoardError::Strange { path, what: error.to_string() })
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<(), BoardError> {
        let new = directory.join(NEW);
        let json = serde_json::to_vec(self).map_err(io::Error::from);
        let written = json.and_then(|json| fs::write(&new, json));
        let written = written.and_then(|()| fs::rename(&new, directory.join(FILE)));
        written.map_err(|source| BoardError::Host { path: new, source })
    }

    pub(crate) fn remove(directory: &Path) {
        // Who looks at it next is told by its age.
        let _ = fs::remove_file(directory.join(FILE));
    }
}
