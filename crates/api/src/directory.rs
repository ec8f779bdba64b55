//! Where the sockets are, and who owns a name.
//!
//! ```text
//! $XDG_RUNTIME_DIR/fathom/   or   /tmp/fathom-UID/     mode 0700, ours
//!     web.lock     locked by the process that runs `web`; holds its process id
//!     web.sock     where it listens
//!     .serve.sock  where the user's daemon listens: no VM has a name that begins so
//! ```
//!
//! The lock, not the socket, decides whether a name is in use: the kernel lets go of it however the process
//! ends. So a socket that a killed process left behind is known to be nobody's and is replaced.

mod claim;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::geteuid;

use crate::client::Client;

pub use claim::Claim;

/// A socket's path takes 108 bytes with the closing zero: unix(7).
const SOCKET_PATH_MAX: usize = 107;
/// Beside those of VMs.
const DAEMON_SOCKET: &str = ".serve.sock";
const CLAIM_TRIES: u32 = 5;
const CLAIM_RETRY: Duration = Duration::from_millis(20);

/// Why there is no socket to be had.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A running VM has that name.
    #[error(
        "name `{name}` is in use by process {pid}: choose another with --name, or end that VM with \
         `fathom stop {name}`"
    )]
    InUse {
        /// The name.
        name: String,
        /// Who has it; `?` if it has not said yet.
        pid: String,
    },
    /// The name cannot be a file name.
    #[error("name `{name}` is refused: it cannot be a file name")]
    Name {
        /// The name.
        name: String,
    },
    /// The path has no room in a socket address.
    #[error(
        "socket path {path} has {length} bytes, at most {SOCKET_PATH_MAX} are possible: choose a shorter \
         --name or XDG_RUNTIME_DIR"
    )]
    PathLength {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Others could have put things there.
    #[error(
        "socket directory {path} {fault}: remove it, or set XDG_RUNTIME_DIR to a directory of yours"
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The host refused.
    #[error("{operation} {path}: {source}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// The directory that holds the sockets of this user's VMs.
#[derive(Clone, Debug)]
pub struct SocketDirectory {
    path: PathBuf,
}

impl SocketDirectory {
    /// This user's directory, made if need be.
    ///
    /// In `XDG_RUNTIME_DIR` if that is set and ours, which it is not after `su`; otherwise in `/tmp`.
    pub fn open() -> Result<Self, DirectoryError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        Self::at(match runtime.filter(|path| path.is_absolute() && is_ours(path)) {
            Some(runtime) => runtime.join("fathom"),
            None => PathBuf::from(format!("/tmp/fathom-{}", geteuid().as_raw())),
        })
    }

    /// The directory `path`, made if need be. Refused if anybody else could write there.
    pub fn at(path: PathBuf) -> Result<Self, DirectoryError> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(host("create directory", &path)(error));
            }
            _ => {}
        }
        // Not `metadata`: a link that somebody put there in /tmp is not ours, wherever it leads.
        let metadata = fs::symlink_metadata(&path).map_err(host("examine", &path))?;
        match fault_of(&metadata) {
            Some(fault) => Err(DirectoryError::Unsafe { path, fault }),
            None => Ok(Self { path }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a name for this process, until the claim is dropped.
    pub fn claim(&self, name: &str) -> Result<Claim, DirectoryError> {
        for _ in 1..CLAIM_TRIES {
            match self.try_claim(name) {
                // Perhaps only by somebody who lists the VMs, for a moment.
                Err(DirectoryError::InUse { .. }) => thread::sleep(CLAIM_RETRY),
                other => return other,
            }
        }
        self.try_claim(name)
    }

    fn try_claim(&self, name: &str) -> Result<Claim, DirectoryError> {
        if !is_file_name(name) {
            return Err(DirectoryError::Name { name: name.escape_debug().collect() });
        }
        let path = self.socket(name);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(DirectoryError::PathLength { path, length });
        }
        Claim::new(name, self.lock(name), path)
    }

    /// A client of the VM `name`, whether it runs or not.
    pub fn client(&self, name: &str) -> Client {
        Client::new(name, self.socket(name))
    }

    /// Where the user's daemon listens, if it runs.
    pub fn daemon_socket(&self) -> PathBuf {
        self.path.join(DAEMON_SOCKET)
    }

    /// A client of the user's daemon, whether it runs or not; it has documents only ([`Client::document`]).
    pub fn daemon(&self) -> Client {
        Client::new("daemon", self.daemon_socket())
    }

    /// Names of the VMs that run, sorted. Clears away what dead ones have left.
    pub fn names(&self) -> Result<Vec<String>, DirectoryError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(host("read directory", &self.path))? {
            let entry = entry.map_err(host("read directory", &self.path))?;
            let file = entry.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".sock"));
            if let Some(name) = name.filter(|name| self.is_running(name)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether a process has the name.
    pub fn is_running(&self, name: &str) -> bool {
        if !is_file_name(name) || !self.lock(name).exists() {
            return false;
        }
        // To take it is the only way to know; dropping the claim removes what was left behind.
        matches!(self.try_claim(name), Err(DirectoryError::InUse { .. }))
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.lock"))
    }

    /// The name is joined only here, so that no name leads out of the directory.
    fn socket(&self, name: &str) -> PathBuf {
        let file = if is_file_name(name) { name } else { "" };
        self.path.join(format!("{file}.sock"))
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn is_ours(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == geteuid().as_raw())
}

fn fault_of(metadata: &Metadata) -> Option<&'static str> {
    if !metadata.is_dir() {
        return Some("is not a directory");
    }
    // Root may look after the VMs of others, such as one in a jail.
    if metadata.uid() != geteuid().as_raw() && !geteuid().is_root() {
        return Some("belongs to somebody else");
    }
    (metadata.mode() & 0o077 != 0).then_some("is open to others (its mode is not 0700)")
}

fn host(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Host { operation, path, source }
}
