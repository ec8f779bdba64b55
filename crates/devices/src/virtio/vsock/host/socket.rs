//! A connected UNIX socket that never blocks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// A connection to a program on the host.
#[derive(Debug)]
pub(in super::super) struct Socket(OwnedFd);

/// What there was to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Fetched {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    None,
    /// No more will come.
    End,
    /// The other end is gone.
    Gone,
}

/// What became of bytes for the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Put {
    /// It has taken so many.
    Taken(usize),
    /// There is no room now.
    Full,
    /// It takes no more.
    Refused,
}

impl Socket {
    /// `socket` is connected and does not block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(in super::super) fn fetch(&self, bytes: &mut [u8]) -> Fetched {
        self.receive(bytes, RecvFlags::empty())
    }

    /// As `fetch`, but the bytes stay.
    pub(super) fn peek(&self, bytes: &mut [u8]) -> Fetched {
        self.receive(bytes, RecvFlags::PEEK)
    }

    fn receive(&self, bytes: &mut [u8], flags: RecvFlags) -> Fetched {
        loop {
            return match recv(&self.0, &mut *bytes, flags) {
                Ok((0, _)) => Fetched::End,
                Ok((len, _)) => Fetched::Bytes(len),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => Fetched::None,
                Err(_) => Fetched::Gone,
            };
        }
    }

    pub(in super::super) fn put(&self, bytes: &[u8]) -> Put {
        loop {
            return match send(&self.0, bytes, SendFlags::NOSIGNAL) {
                Ok(len) => Put::Taken(len),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => Put::Full,
                Err(_) => Put::Refused,
            };
        }
    }

    /// The other end sees the end of what it reads.
    pub(in super::super) fn shut_write(&self) {
        self.shut(Shutdown::Write);
    }

    /// The other end cannot write any more.
    pub(in super::super) fn shut_read(&self) {
        self.shut(Shutdown::Read);
    }

    fn shut(&self, how: Shutdown) {
        // Fails only if the other end is gone, which shuts both.
        let _ = shutdown(&self.0, how);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
