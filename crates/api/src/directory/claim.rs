//! A name, owned.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{DirectoryError, host};

/// Longest process id we read back.
const PID_MAX: u64 = 20;

/// A name that no other process can have while this value lives.
#[derive(Debug)]
pub struct Claim {
    lock_path: PathBuf,
    socket_path: PathBuf,
    /// Locked; the file is the one at `lock_path`.
    _lock: File,
}

impl Claim {
    pub(super) fn new(
        name: &str,
        lock_path: PathBuf,
        socket_path: PathBuf,
    ) -> Result<Self, DirectoryError> {
        let mut lock = loop {
            let lock = lock(name, &lock_path)?;
            // Between opening and locking, the owner may have ended and removed the file: then what we
            // locked is not what the next process will find.
            if is_at(&lock, &lock_path) {
                break lock;
            }
        };
        let written = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
        written.map_err(host("write", &lock_path))?;
        let claim = Self { lock_path, socket_path, _lock: lock };
        remove(&claim.socket_path).map_err(host("remove old socket", &claim.socket_path))?;
        Ok(claim)
    }

    /// Where the owner of the name listens.
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    pub(crate) fn listen(&mut self) -> io::Result<UnixListener> {
        UnixListener::bind(&self.socket_path)
    }
}

impl Drop for Claim {
    /// The socket first: while the lock is held nobody else can have made a new one.
    fn drop(&mut self) {
        for path in [&self.socket_path, &self.lock_path] {
            if let Err(error) = remove(path) {
                tracing::warn!("remove {}: {error}", path.display());
            }
        }
    }
}

fn lock(name: &str, path: &Path) -> Result<File, DirectoryError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(host("open", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            Err(DirectoryError::InUse { name: name.to_owned(), pid: pid_in(&mut file) })
        }
        Err(error) => Err(host("lock", path)(error.into())),
    }
}

fn pid_in(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(PID_MAX).read_to_string(&mut text);
    let is_pid = read.is_ok() && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if is_pid { text } else { "?".to_owned() }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), path.metadata()) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
