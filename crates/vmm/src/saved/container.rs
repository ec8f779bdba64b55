//! Where a saved machine is: a folder with `machine.json` and `memory.img`.
//!
//! This is the simplest form that can be right; the format with checksums, parents and working sets takes its place
//! behind these functions.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{MachineState, SavedError};

const MACHINE: &str = "machine.json";
const MEMORY: &str = "memory.img";
/// A state has a few KiB a vCPU and device.
const MACHINE_MAX: u64 = 16 << 20;

/// The files that a machine is saved into: opened by whoever asked, since the VM's process can open none.
#[derive(Debug)]
pub struct SaveFiles {
    /// Takes the state.
    pub machine: File,
    /// Takes the image of memory.
    pub memory: File,
}

/// A new snapshot beside `path`, under another name until it is whole. Dropped before that, it is removed.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    path: PathBuf,
    whole: bool,
}

/// A saved machine, open. Its state is checked; its memory is read when it is built.
#[derive(Debug)]
pub struct Saved {
    /// Everything but the memory.
    pub state: MachineState,
    pub(super) memory: File,
    pub(super) memory_path: PathBuf,
}

impl Draft {
    /// Makes the folder and its files, for a snapshot at `path`, where nothing is.
    ///
    /// # Errors
    /// Something is there, or the host refuses.
    pub fn create(path: &Path) -> Result<(Self, SaveFiles), SavedError> {
        if path.symlink_metadata().is_ok() {
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something is there: name a path where nothing is",
            );
            return Err(SavedError::file(path)(source));
        }
        let mut folder = path.as_os_str().to_owned();
        folder.push(".new");
        let folder = PathBuf::from(folder);
        fs::create_dir(&folder).map_err(SavedError::file(&folder))?;
        let draft = Self { folder, path: path.to_owned(), whole: false };
        let create = |name: &str| {
            let path = draft.folder.join(name);
            let options = File::options().read(true).write(true).create_new(true).clone();
            options.open(&path).map_err(SavedError::file(&path))
        };
        let files = SaveFiles { machine: create(MACHINE)?, memory: create(MEMORY)? };
        Ok((draft, files))
    }

    /// The files are written: gives the snapshot its name.
    ///
    /// # Errors
    /// The host refuses. What was written stays where it is, under the name in the error: its VM may have ended.
    pub fn finish(mut self) -> Result<(), SavedError> {
        self.whole = true;
        let failed = SavedError::file(&self.folder);
        sync(&self.folder).map_err(&failed)?;
        fs::rename(&self.folder, &self.path).map_err(&failed)?;
        let parent = self.path.parent().filter(|parent| *parent != Path::new(""));
        sync(parent.unwrap_or(Path::new("."))).map_err(&failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.whole {
            // What cannot be removed now, the user can.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes the state, last of all: without it there is no snapshot.
pub(super) fn write_state(state: &MachineState, mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()
}

impl Saved {
    /// Opens the snapshot at `path` and checks all but its memory.
    ///
    /// # Errors
    /// It is not there, not whole, of another version, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self, SavedError> {
        let machine = path.join(MACHINE);
        let state = state(&machine, File::open(&machine).map_err(SavedError::file(&machine))?)?;
        let memory_path = path.join(MEMORY);
        let memory = File::open(&memory_path).map_err(SavedError::file(&memory_path))?;
        let found = memory.metadata().map_err(SavedError::file(&memory_path))?.len();
        let expected = state.config.memory.0;
        if found != expected {
            let what = format!("{found} bytes, expected {expected}");
            return Err(SavedError::Damaged { path: memory_path, what });
        }
        Ok(Self { state, memory, memory_path })
    }
}

/// Only the version, of whatever version it is.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

fn state(path: &Path, file: File) -> Result<MachineState, SavedError> {
    let mut json = Vec::new();
    file.take(MACHINE_MAX + 1).read_to_end(&mut json).map_err(SavedError::file(path))?;
    parse_state(path, &json)
}

/// A state as it is read from `path`.
pub(super) fn parse_state(path: &Path, json: &[u8]) -> Result<MachineState, SavedError> {
    let damaged = |what: String| SavedError::Damaged { path: path.to_owned(), what };
    if json.len() as u64 > MACHINE_MAX {
        return Err(damaged(format!("more than {MACHINE_MAX} bytes")));
    }
    let Versioned { version } = parse(json).map_err(damaged)?;
    if version != super::VERSION {
        return Err(SavedError::Version { found: version, expected: super::VERSION });
    }
    let state: MachineState = parse(json).map_err(damaged)?;
    state.check()?;
    Ok(state)
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| error.to_string())
}
