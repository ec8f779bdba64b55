//! passt, or whoever speaks as it does: frames on a stream socket, without headers. What a header
//! would ask for is done here.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM};

use super::retry::Retry;
use super::stream::{Stream, StreamEnd};
use super::{Backend, Faults, Frame, Sent, split};
use crate::Watch;
use crate::virtio::net::header::Header;
use crate::virtio::net::{NetError, checksum};

/// Tokens in the watch.
const STREAM: u64 = 0;
const RETRY: u64 = 1;

pub(in crate::virtio::net) struct Passt {
    watch: Watch,
    /// `None` while the link is down.
    stream: Option<Stream>,
    /// Where to find it again.
    socket: Option<(PathBuf, Retry)>,
    /// What stands before frames for the guest.
    header: Header,
    faults: Faults,
}

impl Passt {
    /// Connects to the passt that listens at `path`.
    pub(in crate::virtio::net) fn connect(path: &Path) -> Result<Self, NetError> {
        let socket = connect_to(path)
            .map_err(|source| NetError::Connect { path: path.to_owned(), source })?;
        let mut passt = Self::over(socket)?;
        let retry = Retry::new().map_err(NetError::host("make a timer"))?;
        passt.watch.add(&retry, RETRY).map_err(NetError::host("watch a timer"))?;
        passt.socket = Some((path.to_owned(), retry));
        Ok(passt)
    }

    /// Uses a connected `socket`; when it is closed the link stays down.
    pub(in crate::virtio::net) fn over(socket: OwnedFd) -> Result<Self, NetError> {
        let watch = Watch::new().map_err(NetError::host("make an epoll"))?;
        watch.add(&socket, STREAM).map_err(NetError::host("watch a socket of passt"))?;
        Ok(Self {
            watch,
            stream: Some(Stream::new(socket)),
            socket: None,
            header: Header::default(),
            faults: Faults::default(),
        })
    }

    fn lost(&mut self, end: &StreamEnd) {
        let name = match &self.socket {
            Some((path, _)) => format!("passt {}", path.display()),
            None => "passt".to_owned(),
        };
        let until = if self.socket.is_some() { " until it is back" } else { "" };
        match end {
            StreamEnd::Gone(error) => {
                tracing::warn!("{name}: {error}: the guest's link is down{until}");
            }
            StreamEnd::Length(length) => {
                self.faults.bad_streams += 1;
                tracing::warn!(
                    "{name}: a frame of {length} bytes: the guest's link is down{until}"
                );
            }
        }
        self.faults.links_lost += 1;
        // Closing the socket takes it out of the watch.
        self.stream = None;
        if let Some((_, retry)) = &self.socket {
            retry.start();
        }
    }

    fn look_for_it(&mut self) {
        let (None, Some((path, retry))) = (&self.stream, &self.socket) else { return };
        let Ok(socket) = connect_to(path) else { return };
        if self.watch.add(&socket, STREAM).is_ok() {
            tracing::info!("passt {}: back: the guest's link is up", path.display());
            retry.stop();
            self.stream = Some(Stream::new(socket));
        }
    }

    /// Does something with the stream, if there is one; an error is its end.
    fn with_stream<T>(
        &mut self,
        act: impl FnOnce(&mut Stream) -> Result<T, StreamEnd>,
    ) -> Option<T> {
        match act(self.stream.as_mut()?) {
            Ok(value) => Some(value),
            Err(end) => {
                self.lost(&end);
                None
            }
        }
    }
}

/// Never waits: a socket whose backlog is full is one that does not answer.
fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::WOULDBLOCK) => Err(Errno::CONNREFUSED.into()),
        connected => Ok(connected.map(|()| socket)?),
    }
}

impl Backend for Passt {
    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM
    }

    fn set_features(&mut self, features: u64) {
        // passt has received the data on sockets of the host, whose kernel looked at the checksums,
        // and a UNIX socket alters nothing: the guest need not look again.
        let trusts = features & 1 << VIRTIO_NET_F_GUEST_CSUM != 0;
        self.header = if trusts { Header::validated() } else { Header::default() };
    }

    fn watch(&self) -> Watch {
        self.watch.clone()
    }

    fn attend(&mut self) {
        let (mut readable, mut writable, mut retry) = (false, false, false);
        self.watch.take(|change| match change.token {
            STREAM => (readable, writable) = (change.readable, change.writable),
            _ => retry = true,
        });
        if readable && let Some(stream) = &mut self.stream {
            stream.set_readable();
        }
        if writable {
            self.flush();
        }
        if retry {
            self.look_for_it();
        }
    }

    fn is_up(&self) -> bool {
        self.stream.is_some()
    }

    fn peek(&mut self) -> Option<Frame<'_>> {
        let mut short = 0;
        let there = self.with_stream(|stream| Ok(stream.next(&mut short)?.is_some()));
        self.faults.bad_frames += short;
        if there != Some(true) {
            return None;
        }
        // Asked again because a loan that ends in an error cannot be returned; it only looks.
        let bytes = self.stream.as_mut()?.next(&mut short).ok()??;
        Some(Frame { header: self.header, bytes })
    }

    fn consume(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.consume();
        }
    }

    fn send(&mut self, packet: &mut [u8]) -> Sent {
        let (header, frame) = split(packet);
        if let Some((start, offset)) = header.checksum()
            && !checksum::finish(frame, start, offset)
        {
            return Sent::Refused;
        }
        match self.with_stream(|stream| stream.push(frame)) {
            Some(true) => Sent::Taken,
            Some(false) => Sent::Full,
            None => Sent::Refused,
        }
    }

    fn flush(&mut self) {
        self.with_stream(Stream::flush);
    }

    fn faults(&self) -> Faults {
        self.faults
    }
}
