//! Console input: from a host file descriptor into a console, losing nothing.
//!
//! The pump reads only as much as the console can take; the rest stays where it is, in the
//! terminal's or the pipe's own buffer. So a paste larger than any buffer arrives whole, however
//! slowly the guest reads.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{Error as EventError, EventOps, EventSet, EventSubscriber, Events};

use crate::Notifier;
use crate::sync::lock;

mod escape;
#[cfg(test)]
mod tests;

pub use escape::{ESCAPE, Escape};

/// Most bytes read from the host at a time.
const CHUNK: usize = 1024;
/// Most reads in a row from a source that is always ready, before others get their turn.
const READS_IN_A_ROW: usize = 16;

/// A console that takes typed input.
pub trait InputSink: Send + Sync {
    /// How many bytes it can take now.
    fn space(&self) -> usize;
    /// Takes from the front of `bytes`; returns how many it took.
    fn push(&self, bytes: &[u8]) -> usize;
    /// Signalled whenever there is space again.
    fn space_notifier(&self) -> Notifier;
}

/// Moves bytes from a file descriptor to an [`InputSink`], on the I/O thread.
///
/// At the end of the input it stops watching; the guest goes on.
pub struct InputPump {
    sink: Arc<dyn InputSink>,
    space: Notifier,
    inner: Mutex<Inner>,
}

struct Inner {
    source: File,
    watch: Watch,
    /// Read from the source and not yet taken by the sink; empty while `watch` is `Epoll`.
    pending: Vec<u8>,
    escape: Escape,
    on_escape: Option<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// epoll says when to read.
    Epoll,
    /// The sink is full: wait for space.
    Space,
    /// A regular file or /dev/null, which epoll refuses because it is always ready.
    AlwaysReady,
    /// End of input, or an error.
    Closed,
}

impl InputPump {
    /// A pump from `source` (for example a duplicate of standard input) to `sink`.
    pub fn new(source: OwnedFd, sink: Arc<dyn InputSink>) -> Self {
        let space = sink.space_notifier();
        let inner = Inner {
            source: File::from(source),
            watch: Watch::Closed,
            pending: Vec::new(),
            escape: Escape::default(),
            on_escape: None,
        };
        Self { sink, space, inner: Mutex::new(inner) }
    }

    /// The same pump, where Ctrl-A x calls `on_escape` instead of reaching the guest. For a
    /// terminal in raw mode, where Ctrl-C belongs to the guest and somebody must be able to leave.
    #[must_use]
    pub fn with_escape(self, on_escape: impl Fn() + Send + Sync + 'static) -> Self {
        lock(&self.inner).on_escape = Some(Box::new(on_escape));
        self
    }

    fn source_event(&self, inner: &mut Inner, ops: &mut EventOps<'_>) {
        self.read_some(inner);
        match inner.watch {
            Watch::Epoll => {}
            _ => inner.unwatch(ops),
        }
    }

    fn space_event(&self, inner: &mut Inner, ops: &mut EventOps<'_>) {
        self.space.take();
        self.push_pending(inner);
        if !inner.pending.is_empty() || self.sink.space() == 0 {
            return;
        }
        match inner.watch {
            Watch::Space => inner.watch(ops),
            Watch::AlwaysReady => self.read_always_ready(inner),
            Watch::Epoll | Watch::Closed => {}
        }
    }

    fn read_always_ready(&self, inner: &mut Inner) {
        for _ in 0..READS_IN_A_ROW {
            if inner.watch != Watch::AlwaysReady || self.sink.space() == 0 {
                return;
            }
            self.read_some(inner);
            if !inner.pending.is_empty() {
                return;
            }
        }
        self.space.signal();
    }

    /// One read, no larger than the sink has space for.
    fn read_some(&self, inner: &mut Inner) {
        let mut buffer = [0; CHUNK];
        let limit = self.sink.space().min(CHUNK);
        if limit == 0 {
            return inner.wait_for_space();
        }
        match inner.source.read(&mut buffer[..limit]) {
            Ok(0) => inner.watch = Watch::Closed,
            Ok(n) => {
                inner.take_in(&buffer[..n]);
                self.push_pending(inner);
            }
            Err(error) if is_retry(&error) => {}
            Err(error) => {
                tracing::warn!("console input: {error}: no more input is read");
                inner.watch = Watch::Closed;
            }
        }
    }

    fn push_pending(&self, inner: &mut Inner) {
        let taken = self.sink.push(&inner.pending).min(inner.pending.len());
        inner.pending.drain(..taken);
        if !inner.pending.is_empty() {
            inner.wait_for_space();
        }
    }
}

impl Inner {
    fn take_in(&mut self, bytes: &[u8]) {
        let Some(on_escape) = &self.on_escape else {
            return self.pending.extend_from_slice(bytes);
        };
        if self.escape.filter(bytes, &mut self.pending) {
            on_escape();
        }
    }

    fn wait_for_space(&mut self) {
        if self.watch == Watch::Epoll {
            self.watch = Watch::Space;
        }
    }

    fn watch(&mut self, ops: &mut EventOps<'_>) {
        self.watch = match ops.add(Events::new(&self.source, EventSet::IN)) {
            Ok(()) => Watch::Epoll,
            Err(EventError::Epoll(errno)) if errno.errno() == EPERM => Watch::AlwaysReady,
            Err(error) => {
                tracing::warn!("console input: {error}: no input is read");
                Watch::Closed
            }
        };
    }

    fn unwatch(&self, ops: &mut EventOps<'_>) {
        // Fails only if it is not watched, which is what is wanted.
        let _ = ops.remove(Events::empty(&self.source));
    }
}

/// epoll's answer to a file that is always ready.
const EPERM: i32 = rustix::io::Errno::PERM.raw_os_error();

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

impl EventSubscriber for InputPump {
    fn init(&self, ops: &mut EventOps<'_>) {
        let mut inner = lock(&self.inner);
        if let Err(error) = ops.add(Events::new(&self.space, EventSet::IN)) {
            tracing::warn!("console input: {error}: no input is read");
            return;
        }
        inner.watch(ops);
        if inner.watch == Watch::AlwaysReady {
            self.space.signal();
        }
    }

    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let mut inner = lock(&self.inner);
        if events.fd() == self.space.as_raw_fd() {
            self.space_event(&mut inner, ops);
        } else if inner.watch == Watch::Epoll {
            self.source_event(&mut inner, ops);
        }
    }
}

impl fmt::Debug for InputPump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InputPump").field("watch", &lock(&self.inner).watch).finish_non_exhaustive()
    }
}
