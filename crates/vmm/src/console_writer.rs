//! The thread that writes the console's output out: a reader who does not read holds up nobody else.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use confine::Thread;
use devices::output::{OutputBuffer, STALLED_AFTER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::VmError;

/// Until a descriptor that is ready and refuses is tried again: somebody else has made it non-blocking.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// Writes what the consoles of all lives push; dropping it writes the rest, if it is read.
#[derive(Debug)]
pub(crate) struct ConsoleWriter {
    buffer: OutputBuffer,
    thread: Option<thread::JoinHandle<()>>,
}

impl ConsoleWriter {
    pub(crate) fn start(fd: OwnedFd) -> Result<Self, VmError> {
        let buffer = OutputBuffer::new();
        let taken = buffer.clone();
        let body = move || {
            if let Err(error) = write_all(&fd, &taken) {
                tracing::warn!("console output: {error}: output is lost from here on");
            }
            taken.dead();
        };
        let builder = thread::Builder::new().name("console".into());
        let thread = confine::spawn(builder, Thread::Console, body)
            .map_err(VmError::host("start the console thread"))?;
        Ok(Self { buffer, thread: Some(thread) })
    }

    pub(crate) fn buffer(&self) -> OutputBuffer {
        self.buffer.clone()
    }
}

impl Drop for ConsoleWriter {
    fn drop(&mut self) {
        let finished = self.buffer.close();
        match self.thread.take() {
            Some(thread) if finished => drop(thread.join()),
            // It hangs in its write, to a terminal that is stopped.
            _ => tracing::warn!("console output: nobody reads it: the last of it is lost"),
        }
    }
}

/// Until the console is closed and all is written, or nobody reads.
fn write_all(fd: &OwnedFd, buffer: &OutputBuffer) -> io::Result<()> {
    while let Some(bytes) = buffer.next() {
        if !is_ready(fd)? {
            if buffer.stalled() {
                continue;
            }
            return Err(io::Error::other("nobody reads it"));
        }
        match rustix::io::write(fd, &bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => buffer.taken(length),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => thread::sleep(RETRY_AFTER),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until the descriptor takes output, or for a while.
fn is_ready(fd: &OwnedFd) -> io::Result<bool> {
    let timeout = Timespec::try_from(STALLED_AFTER).expect("a second is a time");
    match poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use devices::output::{CAPACITY, SHUT_AT};
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn what_is_pushed_comes_out_before_the_end() {
        let (reader, writer) = pipe().expect("pipe");
        let writer = ConsoleWriter::start(writer).expect("start");
        let all: Vec<u8> = (0..=255).cycle().take(3 * SHUT_AT).collect();
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            File::from(reader).read_to_end(&mut read).expect("read");
            read
        });
        let buffer = writer.buffer();
        for bytes in all.chunks(1000) {
            buffer.wait();
            assert_eq!(buffer.push(bytes), bytes.len());
        }
        drop(writer);
        assert!(reading.join().expect("reader") == all);
    }

    #[test]
    fn nobody_reads() {
        let (reader, writer) = pipe().expect("pipe");
        let writer = ConsoleWriter::start(writer).expect("start");
        let buffer = writer.buffer();
        buffer.push(&[b'a'; CAPACITY]);
        // Returns although the pipe stays full.
        buffer.wait();
        drop(writer);
        assert_eq!(buffer.push(b"x"), 0);
        drop(reader);
    }

    #[test]
    fn a_reader_who_left_ends_the_thread() {
        let (reader, writer) = pipe().expect("pipe");
        drop(reader);
        let writer = ConsoleWriter::start(writer).expect("start");
        let buffer = writer.buffer();
        while buffer.push(b"x") > 0 {
            thread::yield_now();
        }
    }
}
