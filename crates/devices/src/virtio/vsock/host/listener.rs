//! The socket on which the host calls the guest.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{accept_with, bind, connect, listen, socket_with};

use super::error::{PATH_MAX, VsockError};
use super::socket::Socket;
use crate::virtio::vsock::config::{BUFFER_RANGE, CID_MAX, CID_MIN, CONNECTIONS_MAX, VsockConfig};

/// Callers that wait to be let in; the host may allow fewer.
const BACKLOG: i32 = 1024;
const TURN_TRIES: u32 = 50;
const TURN_RETRY: Duration = Duration::from_millis(20);

impl VsockConfig {
    /// Looks at everything that can be looked at without making anything.
    ///
    /// # Errors
    /// A number is out of its range, or the path cannot be listened on.
    pub fn check(&self) -> Result<(), VsockError> {
        if !(CID_MIN..=CID_MAX).contains(&self.cid) {
            return Err(VsockError::Cid { cid: self.cid });
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(VsockError::Connections { connections: self.connections });
        }
        if !BUFFER_RANGE.contains(&self.buffer_bytes) {
            return Err(VsockError::Buffer { bytes: self.buffer_bytes });
        }
        check_path(&self.path)
    }
}

fn check_path(path: &Path) -> Result<(), VsockError> {
    let length = path.as_os_str().len();
    if length == 0 || length > PATH_MAX {
        return Err(VsockError::PathLength { path: path.to_owned(), length });
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(directory_of(path), access).map_err(host(path, "look at its directory"))?;
    is_free(path).map(drop)
}

/// Whether there is a dead socket; an error if there is anything else.
fn is_free(path: &Path) -> Result<bool, VsockError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(host(path, "look at it")(error)),
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(VsockError::NotASocket { path: path.to_owned() }),
    }
    // Only a process that listens takes connections, and only one that is alive listens.
    let knock = || {
        let socket = new_socket()?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    match knock() {
        Err(Errno::CONNREFUSED) => Ok(true),
        Ok(()) | Err(Errno::WOULDBLOCK) => Err(VsockError::InUse { path: path.to_owned() }),
        Err(error) => Err(host(path, "see whether it is in use")(error)),
    }
}

/// Where the host calls the guest: a socket that is there while this value lives.
#[derive(Debug)]
pub struct VsockListener {
    path: PathBuf,
    socket: OwnedFd,
    /// The socket's file, so that nobody else's is removed.
    file: (u64, u64),
}

impl VsockListener {
    /// Listens at the configured path, for the owner alone.
    ///
    /// # Errors
    /// As for [`VsockConfig::check`]; nothing is left behind.
    pub fn open(config: &VsockConfig) -> Result<Self, VsockError> {
        config.check()?;
        let path = &config.path;
        // Two who start at once could both find the old socket dead, and the second would remove
        // the new one of the first.
        let _turn = turn(path)?;
        if is_free(path)? {
            fs::remove_file(path).map_err(host(path, "remove the old socket"))?;
        }
        let socket = new_socket().map_err(host(path, "make a socket"))?;
        let address = SocketAddrUnix::new(path).map_err(host(path, "name a socket"))?;
        bind(&socket, &address).map_err(host(path, "bind a socket"))?;
        let file = fs::symlink_metadata(path).map_err(host(path, "look at the socket"))?;
        let listener = Self { path: path.clone(), socket, file: identity(&file) };
        // Before it listens, nobody can connect to it.
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(host(path, "set the socket's mode"))?;
        listen(&listener.socket, BACKLOG).map_err(host(path, "listen"))?;
        Ok(listener)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a program listens that serves port `port` of the host.
    pub fn peer(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        path.into()
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next who has connected; `None` if nobody has.
    pub(super) fn accept(&self) -> io::Result<Option<Socket>> {
        loop {
            return match accept_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => Ok(Some(Socket::new(socket))),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        let ours = |found: &Metadata| identity(found) == self.file;
        if fs::symlink_metadata(&self.path).as_ref().is_ok_and(ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("remove {}: {error}", self.path.display());
        }
    }
}

/// The directory of `path`, locked until dropped.
fn turn(path: &Path) -> Result<File, VsockError> {
    let directory = File::open(directory_of(path)).map_err(host(path, "open its directory"))?;
    let mut tries = TURN_TRIES;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            // Each holds it for a moment only.
            Err(Errno::WOULDBLOCK) if tries > 0 => {
                tries -= 1;
                thread::sleep(TURN_RETRY);
            }
            // Where there are no locks, the race is so short that one can do without.
            Ok(()) | Err(_) => return Ok(directory),
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn host<E: Into<io::Error>>(path: &Path, operation: &'static str) -> impl FnOnce(E) -> VsockError {
    let path = path.to_owned();
    move |source| VsockError::Host { path, operation, source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn config(folder: &tempfile::TempDir) -> VsockConfig {
        VsockConfig::new(3, folder.path().join("vsock"))
    }

    #[test]
    fn the_socket_is_the_owners_alone_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder);
        let listener = VsockListener::open(&config).unwrap();
        assert_eq!(config.path.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(listener.accept().unwrap().is_none());
        let _caller = UnixStream::connect(&config.path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        assert_eq!(listener.peer(1024), folder.path().join("vsock_1024"));
        drop(listener);
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder);
        drop(UnixListener::bind(&config.path).unwrap());
        assert!(config.path.exists());
        config.check().unwrap();
        let first = VsockListener::open(&config).unwrap();
        let inode = config.path.metadata().unwrap().ino();
        for refused in [config.check(), VsockListener::open(&config).map(drop)] {
            assert!(matches!(refused, Err(VsockError::InUse { .. })), "{refused:?}");
        }
        assert_eq!(config.path.metadata().unwrap().ino(), inode);
        fs::remove_file(&config.path).unwrap();
        let second = VsockListener::open(&config).unwrap();
        drop(first);
        assert!(config.path.exists(), "not the first one's to remove");
        drop(second);
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let good = config(&folder);
        let at = |path: PathBuf| VsockConfig { path, ..good.clone() };
        fs::write(folder.path().join("file"), "kept").unwrap();
        let refusals = [
            (VsockConfig { cid: 2, ..good.clone() }, "cid 2"),
            (VsockConfig { cid: u32::MAX, ..good.clone() }, "cid 4294967295"),
            (VsockConfig { connections: 0, ..good.clone() }, "0 vsock connections"),
            (VsockConfig { connections: CONNECTIONS_MAX + 1, ..good.clone() }, "65537"),
            (VsockConfig { buffer_bytes: 4095, ..good.clone() }, "4095"),
            (VsockConfig { buffer_bytes: (16 << 20) + 1, ..good.clone() }, "16777217"),
            (at(folder.path().join("file")), "no socket"),
            (at(folder.path().to_owned()), "no socket"),
            (at(folder.path().join("not/there")), "not/there"),
            (at(PathBuf::new()), "0 bytes"),
            (at(folder.path().join("x".repeat(100))), "1 to 96"),
        ];
        for (config, expected) in refusals {
            let error = VsockListener::open(&config).unwrap_err().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
