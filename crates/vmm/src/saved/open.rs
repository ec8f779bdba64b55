//! A saved machine, opened.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use memory::FRAME_SIZE;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use snapshot::{Batch, Extent, Kind, Snapshot, WorkingSet};

use super::images::Images;
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

/// Memory that VMs have in common: frame n at byte 4096 n of the image, unless an extent says where it is.
#[derive(Debug)]
pub struct CommonImage {
    /// The image.
    pub file: OwnedFd,
    /// What is elsewhere.
    pub extents: Vec<Extent>,
    /// The files of the extents, from number 1 on.
    pub shared: Vec<OwnedFd>,
}

impl Saved {
    /// Opens the snapshot at `path` and checks all but the contents of its memory.
    ///
    /// # Errors
    /// It is not there, not whole, of another version, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self, SavedError> {
        Self::of(Snapshot::open(path)?, path)
    }

    /// The same of a snapshot that is open; `path` is what messages call it.
    ///
    /// # Errors
    /// As for [`Saved::open`].
    pub fn of(mut snapshot: Snapshot, path: &Path) -> Result<Self, SavedError> {
        let state = parse_state(path, &snapshot.machine()?)?;
        if snapshot.manifest().memory.frames.disk > 0 {
            let images = Images::needed_by(snapshot.runs(), &state.config, snapshot.manifest())?;
            snapshot.set_disks(Arc::new(images));
        }
        let snapshot = Arc::new(snapshot);
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

    /// The files that VMs lie over which have this memory in common. All of it is read and checked now; nobody checks it
    /// later. Where it cannot be mapped as it lies (it is compressed, in an ancestor, on a disk, in a store), it is a copy
    /// in memory that has all and that nobody can change. `own_nets` if each of them has a first network of its own
    /// instead of the saved one.
    ///
    /// # Errors
    /// A disk has been written since, or can be written by one VM only; or what is read is not what was saved.
    pub fn common_image(&self, own_nets: bool) -> Result<CommonImage, SavedError> {
        let path = self.snapshot.store().name();
        let not_common = |what: String| Err(SavedError::NotCommon { path, what });
        let plan = VmPlan::new(self.state.config.clone());
        let plan = match plan.map_err(|error| error.to_string()) {
            Ok(plan) => plan,
            Err(what) => return not_common(what),
        };
        if let Err(what) = plan.check_clonable(own_nets) {
            return not_common(what);
        }
        match self.state.check_disks(&plan) {
            Ok(()) => {}
            Err(VmError::Saved(error)) => return Err(error),
            Err(error) => return not_common(error.to_string()),
        }
        let is_here = |kind: Kind| !matches!(kind, Kind::Parent | Kind::Disk(_));
        let whole = self.snapshot.runs().iter().all(|run| is_here(run.kind));
        let plain = self.snapshot.plain_image().filter(|image| whole && image.offset == 0);
        let Some(image) = plain else { return self.copied() };
        self.snapshot.verify()?;
        let owned = |file: BorrowedFd<'_>| {
            file.try_clone_to_owned().map_err(SavedError::file(Path::new("the image of memory")))
        };
        Ok(CommonImage {
            file: owned(image.file)?,
            extents: image.extents.to_vec(),
            shared: image.shared.iter().map(|file| owned(*file)).collect::<Result<_, _>>()?,
        })
    }

    /// All contents, checked, in a file in memory.
    fn copied(&self) -> Result<CommonImage, SavedError> {
        let refused = |error: Errno| SavedError::file(Path::new("a copy of memory"))(error.into());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let copy = rustix::fs::memfd_create("fathom-snapshot", flags).map_err(refused)?;
        rustix::fs::ftruncate(&copy, self.snapshot.layout().bytes()).map_err(refused)?;
        let copy = File::from(copy);
        let mut batch = Batch::new();
        for place in self.snapshot.places() {
            self.snapshot.read_place(place, &mut batch)?;
            for (frame, contents) in batch.iter() {
                let at = u64::from(frame.0) * FRAME_SIZE as u64;
                let written = copy.write_all_at(contents, at);
                written.map_err(SavedError::file(Path::new("a copy of memory")))?;
            }
        }
        // VMs get it with the right to write: one that breaks out changes no other's memory.
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&copy, seals).map_err(refused)?;
        Ok(CommonImage { file: copy.into(), extents: Vec::new(), shared: Vec::new() })
    }

    /// Has the host begin to read what the guest will need first, for a restore that begins with it.
    pub fn expect_set(&self) {
        if let Some(set) = &self.set {
            set.expect();
        }
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
