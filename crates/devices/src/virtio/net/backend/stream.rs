//! Frames on a stream socket, each behind its length: four bytes, big-endian. QEMU's `-netdev stream`
//! has the same form.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::virtio::net::config::{FRAME_MAX, FRAME_MIN};

/// Bytes of the length.
const PREFIX_LEN: usize = 4;
/// Bytes read at a time: several of the largest frames.
const INCOMING_LEN: usize = 256 << 10;
/// With as many bytes waiting to be sent there is no room for another frame.
const OUTGOING_LIMIT: usize = 256 << 10;

/// A connected stream.
pub(super) struct Stream {
    socket: OwnedFd,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// Why a stream can no longer be used.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// The other end closed it, or the host failed.
    Gone(io::Error),
    /// A length that no frame has: where the next one begins cannot be known.
    Length(u32),
}

/// Bytes received: `start <= end <= bytes.len()`, those between are waiting.
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// The socket may have more.
    readable: bool,
}

/// Bytes to be sent, from `sent` on.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Stream {
    /// A stream on a connected socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        let bytes = vec![0; INCOMING_LEN].into();
        let incoming = Incoming { bytes, start: 0, end: 0, readable: true };
        Self { socket, incoming, outgoing: Outgoing::default() }
    }

    /// There is more to read.
    pub(super) fn set_readable(&mut self) {
        self.incoming.readable = true;
    }

    /// Where the oldest frame lies, of at least `FRAME_MIN` bytes; `None` if it is not all here yet.
    /// Counts shorter ones, which it leaves out, in `short`.
    pub(super) fn next(&mut self, short: &mut u64) -> Result<Option<&[u8]>, StreamEnd> {
        loop {
            match self.incoming.frame_len()? {
                Some(len) if len >= FRAME_MIN => {
                    let start = self.incoming.start + PREFIX_LEN;
                    return Ok(Some(&self.incoming.bytes[start..start + len]));
                }
                Some(_) => {
                    *short += 1;
                    self.consume();
                }
                None if !self.incoming.readable => return Ok(None),
                None => self.incoming.fill(&self.socket)?,
            }
        }
    }

    /// Drops the oldest frame, if it is all here.
    pub(super) fn consume(&mut self) {
        if let Ok(Some(len)) = self.incoming.frame_len() {
            self.incoming.start += PREFIX_LEN + len;
        }
    }

    /// Takes a frame of at most `FRAME_MAX` bytes; false if there is no room.
    pub(super) fn push(&mut self, frame: &[u8]) -> Result<bool, StreamEnd> {
        if self.outgoing.waiting() >= OUTGOING_LIMIT {
            self.flush()?;
        }
        if self.outgoing.waiting() >= OUTGOING_LIMIT {
            return Ok(false);
        }
        self.outgoing.push(frame);
        Ok(true)
    }

    /// Sends what the socket takes now.
    pub(super) fn flush(&mut self) -> Result<(), StreamEnd> {
        while self.outgoing.waiting() > 0 {
            let bytes = &self.outgoing.bytes[self.outgoing.sent..];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match retry_on_intr(|| send(&self.socket, bytes, flags)) {
                Ok(len) => self.outgoing.sent += len,
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(errno) => return Err(StreamEnd::Gone(errno.into())),
            }
        }
        Ok(())
    }
}

impl Incoming {
    /// Length of the oldest frame, if all of it is here.
    fn frame_len(&self) -> Result<Option<usize>, StreamEnd> {
        let waiting = &self.bytes[self.start..self.end];
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix);
        match usize::try_from(length) {
            Ok(len) if len <= FRAME_MAX => Ok((len <= rest.len()).then_some(len)),
            _ => Err(StreamEnd::Length(length)),
        }
    }

    /// Reads behind what is here, moved to the front: less than one frame.
    fn fill(&mut self, socket: &OwnedFd) -> Result<(), StreamEnd> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = &mut self.bytes[self.end..];
        match retry_on_intr(|| recv(socket, &mut *room, RecvFlags::DONTWAIT)) {
            Ok((_, 0)) => Err(StreamEnd::Gone(ErrorKind::UnexpectedEof.into())),
            Ok((_, len)) => {
                self.end += len;
                Ok(())
            }
            Err(Errno::WOULDBLOCK) => {
                self.readable = false;
                Ok(())
            }
            Err(errno) => Err(StreamEnd::Gone(errno.into())),
        }
    }
}

impl Outgoing {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn push(&mut self, frame: &[u8]) {
        if self.waiting() == 0 {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent >= OUTGOING_LIMIT {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        // At most FRAME_MAX, so this never saturates.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(frame);
    }
}
