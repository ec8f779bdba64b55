//! The stream to gdb, with whole answers in one write.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gdbstub::conn::Connection;

/// A client that does not read for so long is gone: the guest must not stand for it, nor the VM's end
/// wait.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);

/// Answers are sent in pieces of this many bytes.
const PIECE: usize = 4096;

/// What gdbstub writes to.
pub(super) struct Answers {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Answers {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        Ok(Self { stream, pending: Vec::with_capacity(PIECE) })
    }
}

impl Connection for Answers {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.pending.push(byte);
        // An acknowledgement is awaited, and is not part of an answer.
        let acknowledges = matches!(self.pending[..], [b'+' | b'-']);
        if acknowledges || self.pending.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::write_all(&mut self.stream, &self.pending)?;
        self.pending.clear();
        Ok(())
    }
}
