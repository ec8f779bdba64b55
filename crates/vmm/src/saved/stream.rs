//! A socket of a save, on either side. Tests have it fail.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// One lane.
#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    #[cfg(test)]
    pub(super) faults: faults::Faults,
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self {
            socket,
            #[cfg(test)]
            faults: faults::Faults::default(),
        }
    }
}

impl Stream {
    /// Lets the other end know at once.
    pub(super) fn hang_up(&self) {
        // It may be gone already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    #[cfg(test)]
    fn allowed(&self, bytes: usize) -> io::Result<usize> {
        self.faults.ask(&self.socket, bytes)
    }

    #[cfg(not(test))]
    #[allow(clippy::unnecessary_wraps, clippy::unused_self, reason = "of tests it asks")]
    fn allowed(&self, bytes: usize) -> io::Result<usize> {
        Ok(bytes)
    }
}

impl Read for &Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.allowed(into.len())?;
        (&self.socket).read(&mut into[..bytes])
    }
}

impl Write for &Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let bytes = self.allowed(from.len())?;
        (&self.socket).write(&from[..bytes])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads and writes that fail at a step.
#[cfg(test)]
pub(super) mod faults {
    use std::io;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(in super::super) enum How {
        /// An error, once.
        Refused,
        /// The other end goes away.
        Vanished,
        /// Half of the bytes, which is no failure.
        Short,
        /// A signal comes, which is none either.
        Interrupted,
    }

    impl How {
        pub(in super::super) const ALL: [Self; 4] =
            [Self::Refused, Self::Vanished, Self::Short, Self::Interrupted];

        pub(in super::super) fn is_failure(self) -> bool {
            matches!(self, Self::Refused | Self::Vanished)
        }
    }

    #[derive(Debug)]
    struct Fault {
        how: How,
        at: u32,
        step: AtomicU32,
    }

    /// Of all sockets of one side. Without any, nothing fails.
    #[derive(Clone, Debug, Default)]
    pub(in super::super) struct Faults(Option<Arc<Fault>>);

    impl Faults {
        /// At the step of that number, counted from 0 over all reads and writes.
        pub(in super::super) fn at(at: u32, how: How) -> Self {
            Self(Some(Arc::new(Fault { how, at, step: AtomicU32::new(0) })))
        }

        /// Whether it has come to the step.
        pub(in super::super) fn met(&self) -> bool {
            let met = |fault: &Arc<Fault>| fault.step.load(Ordering::Relaxed) > fault.at;
            self.0.as_ref().is_some_and(met)
        }

        pub(super) fn ask(&self, socket: &UnixStream, bytes: usize) -> io::Result<usize> {
            let Some(fault) = &self.0 else { return Ok(bytes) };
            if fault.step.fetch_add(1, Ordering::Relaxed) != fault.at {
                return Ok(bytes);
            }
            match fault.how {
                How::Refused => Err(io::Error::other("planted")),
                How::Vanished => socket.shutdown(Shutdown::Both).map(|()| bytes),
                How::Short => Ok(bytes.div_ceil(2)),
                How::Interrupted => Err(io::ErrorKind::Interrupted.into()),
            }
        }
    }
}
