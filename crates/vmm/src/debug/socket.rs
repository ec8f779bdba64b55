//! The socket on which gdb is awaited.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// One that is served; a few more may wait to be turned away.
const BACKLOG: i32 = 4;

/// A listening socket that only this user may connect to; its file goes when it is dropped.
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`, in the place of a socket there that nobody serves any more.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        remove_abandoned(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux makes the file with the mode of the socket: nobody can be faster.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        let socket = Self { listener: UnixListener::from(socket), path: path.to_owned() };
        listen(&socket.listener, BACKLOG)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("remove {}: {error}", self.path.display());
        }
    }
}

/// Removes a socket that a process has left behind. (A confined process may not find out that it was.)
pub(crate) fn remove_abandoned(path: &Path) -> io::Result<()> {
    if is_abandoned(path) { std::fs::remove_file(path) } else { Ok(()) }
}

/// Whether a socket is there that refuses connections.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_ours_alone_and_leaves_no_trace() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gdb");
        let socket = Socket::open(&path).expect("listens");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Socket::open(&path).is_err(), "somebody listens there");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gdb");
        drop(UnixListener::bind(&path).expect("bound"));
        drop(Socket::open(&path).expect("replaced"));
        std::fs::write(&path, "mine").expect("written");
        assert!(Socket::open(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("read"), b"mine");
    }
}
