//! Where a snapshot is written: beside its place, which it takes when it is whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::SnapshotError;
use crate::host::{Host, RealHost};
use crate::manifest::part;

/// The directory `NAME.new` beside `NAME`, locked. Dropped before [`Place::take`], it is removed.
pub(super) struct Place {
    host: Arc<dyn Host>,
    /// Where the snapshot will be.
    path: PathBuf,
    folder: PathBuf,
    new: PathBuf,
    /// There is a snapshot at `path`.
    replaces: bool,
    /// It is at `path`, or what could be removed was.
    done: bool,
    /// Held until it is there: nobody else writes to it, and nobody takes it for one that a crash left.
    lock: Option<File>,
}

/// How often a lock may turn out to be of a directory that has just been moved.
const TRIES: usize = 16;

impl Place {
    /// Makes room for a snapshot at `path`.
    pub(super) fn make(path: &Path, host: Arc<dyn Host>) -> Result<Place, SnapshotError> {
        let refused = |why: &str| SnapshotError::Refused {
            path: path.display().to_string(),
            why: why.into(),
        };
        let name = path.file_name().ok_or_else(|| refused("no name of a directory: give one"))?;
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut new_name = name.to_owned();
        new_name.push(".new");
        let replaces = match path.symlink_metadata() {
            Ok(_) if !is_snapshot(path) => {
                return Err(refused("exists and is no snapshot: give another path"));
            }
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(SnapshotError::host("look at", path.display())(error)),
        };
        let new = folder.join(new_name);
        let path = path.to_owned();
        let mut place = Place { host, path, folder, new, replaces, done: true, lock: None };
        place.lock = Some(place.claim()?);
        place.done = false;
        // Left by a crash.
        place.empty().map_err(SnapshotError::host("remove", place.new.display()))?;
        Ok(place)
    }

    /// The directory in which the parts are written.
    pub(super) fn directory(&self) -> &Path {
        &self.new
    }

    /// Where the snapshot will be.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that it will be in.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the directory if need be, and locks it.
    fn claim(&self) -> Result<File, SnapshotError> {
        let name = self.new.display();
        let busy = |why: &str| SnapshotError::Refused { path: name.to_string(), why: why.into() };
        for _ in 0..TRIES {
            match self.host.create_directory(&self.new) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(SnapshotError::host("create", name)(error));
                }
                Err(_) if !is_ours(&self.new) => {
                    return Err(busy("is in the way and is no snapshot: remove or rename it"));
                }
                _ => {}
            }
            let lock = File::open(&self.new).map_err(SnapshotError::host("open", &name))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(busy(
                        "another process is saving there: wait, or give another path",
                    ));
                }
                Err(error) => return Err(SnapshotError::host("lock", &name)(error.into())),
            }
            // It may have been moved or removed between the two.
            let locked = lock.metadata().map(|metadata| metadata.ino());
            let there = self.new.metadata().map(|metadata| metadata.ino());
            if matches!((locked, there), (Ok(a), Ok(b)) if a == b) {
                return Ok(lock);
            }
        }
        Err(busy("others are saving there all the time: give another path"))
    }

    /// Puts the snapshot in its place. Its parts are durable, its directory not yet. Answers what is left of the
    /// old one, if it could not be removed.
    ///
    /// On an error it is not there, and what was there is.
    pub(super) fn take(mut self) -> Result<Option<PathBuf>, SnapshotError> {
        let error =
            |operation, path: &Path, cause| SnapshotError::host(operation, path.display())(cause);
        let synced = self.host.sync_directory(&self.new);
        synced.map_err(|cause| error("sync", &self.new, cause))?;
        self.swap().map_err(|cause| match cause.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported if self.replaces => {
                SnapshotError::Refused {
                    path: self.path.display().to_string(),
                    why:
                        "the file system cannot replace a directory in one step: give another path"
                            .into(),
                }
            }
            _ => error("rename", &self.new, cause),
        })?;
        if let Err(cause) = self.host.sync_directory(&self.folder) {
            // Which of the two a crash would leave is not known: back to the one that the user had.
            self.done = self.swap_back().is_err();
            return Err(error("sync", &self.folder, cause));
        }
        self.done = true;
        let old_left = self.replaces && self.remove_old().is_err();
        Ok(old_left.then(|| self.new.clone()))
    }

    fn swap(&self) -> io::Result<()> {
        if self.replaces {
            self.host.exchange(&self.new, &self.path)
        } else {
            self.host.rename(&self.new, &self.path)
        }
    }

    fn swap_back(&self) -> io::Result<()> {
        if self.replaces {
            self.host.exchange(&self.new, &self.path)
        } else {
            self.host.rename(&self.path, &self.new)
        }
    }

    /// Removes the parts in the new directory, and nothing else.
    fn empty(&self) -> io::Result<()> {
        let shared = self.new.read_dir().into_iter().flatten().flatten();
        let shared = shared.filter_map(|entry| entry.file_name().into_string().ok());
        let shared = shared.filter(|name| part::is_shared(name));
        for name in part::ALL.map(str::to_owned).into_iter().chain(shared) {
            match self.host.remove_file(&self.new.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The old one has the new one's first name, for which another process may be waiting.
    fn remove_old(&self) -> io::Result<()> {
        let old = File::open(&self.new)?;
        rustix::fs::flock(&old, FlockOperation::NonBlockingLockExclusive)?;
        self.remove()
    }

    fn remove(&self) -> io::Result<()> {
        self.empty()?;
        self.host.remove_directory(&self.new)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be removed now is when the next one is saved here.
            let _ = self.remove();
        }
    }
}

/// Removes the snapshot in the directory `path`, whole or damaged: its name at once, then its parts, and nothing else. Who
/// has it open, or has contents in common with it, keeps those.
///
/// # Errors
/// It is none, or the host refuses; where it has lost its name already, what is left is removed by the next save there.
pub fn remove(path: &Path) -> Result<(), SnapshotError> {
    let refused = |why: &str| {
        let path = path.display().to_string();
        SnapshotError::Refused { path, why: why.into() }
    };
    let name = path.file_name().ok_or_else(|| refused("no name of a directory: give one"))?;
    if !is_ours(path) {
        return Err(refused("is no snapshot: give the path of one"));
    }
    let mut new_name = name.to_owned();
    new_name.push(".new");
    let (folder, new) = (path.parent().unwrap_or(Path::new(".")), path.with_file_name(new_name));
    let (host, path) = (Arc::new(RealHost), path.to_owned());
    let folder = folder.to_owned();
    let mut place = Place { host, path, folder, new, replaces: false, done: true, lock: None };
    place.lock = Some(place.claim()?);
    place.empty().map_err(SnapshotError::host("remove", place.new.display()))?;
    // In place of the empty directory.
    let renamed = place.host.rename(&place.path, &place.new);
    renamed.map_err(SnapshotError::host("rename", place.path.display()))?;
    place.remove().map_err(SnapshotError::host("remove", place.new.display()))
}

/// Whether a directory has a manifest, and nothing that a snapshot has not.
pub(super) fn is_snapshot(path: &Path) -> bool {
    is_ours(path) && path.join(part::MANIFEST).symlink_metadata().is_ok()
}

/// Whether it is a directory, and all that is in it are parts of a snapshot.
fn is_ours(path: &Path) -> bool {
    let real = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let is_part = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry.map(|entry| entry.file_name());
        name.is_ok_and(|name| {
            part::ALL.iter().any(|part| name == *part) || name.to_str().is_some_and(part::is_shared)
        })
    };
    real && path.read_dir().is_ok_and(|mut entries| entries.all(is_part))
}
