//! The server: one thread that accepts, one a connection.

mod connection;
mod documents;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use confine::Thread;
use rustix::event::{PollFd, PollFlags, poll};

use crate::control::VmControl;
use crate::directory::Claim;
use crate::http::{Connection, Fail};

pub use documents::{Document, DocumentServer, Documents};

/// Connections at a time; more are told to come again.
const CONNECTIONS_MAX: usize = 16;
/// How long closing waits for answers that are being written.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Rest after the host refused to accept, so as not to spin while it is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// JSON of our depth needs little.
const STACK_BYTES: usize = 256 << 10;

/// Serves one VM on its socket, on threads of its own, until dropped.
///
/// Dropping it lets answers under way be written, ends every connection, then gives up the name.
#[derive(Debug)]
pub struct Server {
    _listening: Listening,
    /// After everything else: the name is free only when nobody is served any more.
    _claim: Claim,
}

/// A socket that is answered, until dropped.
#[derive(Debug)]
struct Listening {
    shared: Arc<Shared>,
    wake: UnixStream,
    accept: Option<JoinHandle<()>>,
}

/// Where peers come from. It does not block.
trait Listener: AsFd + Send + 'static {
    fn accept_stream(&self) -> io::Result<UnixStream>;
}

impl Listener for UnixListener {
    fn accept_stream(&self) -> io::Result<UnixStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

/// Serves a connection until it ends, or the flag says to.
type Serve = dyn Fn(UnixStream, &AtomicBool) + Send + Sync;

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    open: Mutex<Open>,
    closed_one: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, UnixStream>,
}

impl Server {
    /// Listens on the socket of `claim` and answers from `control`.
    ///
    /// Fails when the host is out of threads or descriptors; then the name is free again.
    pub fn start(mut claim: Claim, control: Arc<dyn VmControl>) -> io::Result<Self> {
        let listener = claim.listen()?;
        listener.set_nonblocking(true)?;
        let serve = move |stream: UnixStream, stopping: &AtomicBool| {
            connection::serve(stream, control.as_ref(), stopping);
        };
        Ok(Self { _listening: Listening::start(listener, Arc::new(serve))?, _claim: claim })
    }
}

impl Listening {
    fn start(listener: impl Listener, serve: Arc<Serve>) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let builder = thread::Builder::new().name("api".to_owned()).stack_size(STACK_BYTES);
        let accept = confine::spawn(builder, Thread::Api, move || {
            accept_loop(&listener, &woken, &for_thread, &serve);
        })?;
        Ok(Self { shared, wake, accept: Some(accept) })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Fails only if the other end is gone: then the thread is, too.
        let _ = self.wake.write_all(&[0]);
        if let Some(accept) = self.accept.take() {
            let _ = accept.join();
        }
        self.shared.drain();
    }
}

fn accept_loop(
    listener: &impl Listener,
    woken: &UnixStream,
    shared: &Arc<Shared>,
    serve: &Arc<Serve>,
) {
    while !shared.stopping.load(Ordering::Acquire) {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        // An interruption, or a spurious wake-up, ends in WouldBlock below.
        let _ = poll(&mut fds, None);
        match listener.accept_stream() {
            Ok(stream) => begin(stream, shared, serve),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!("api socket: accept: {error}");
                thread::sleep(ACCEPT_RETRY);
            }
        }
    }
}

/// Starts a thread for the connection, or says why not. It may make the system calls of this one.
fn begin(stream: UnixStream, shared: &Arc<Shared>, serve: &Arc<Serve>) {
    let Some(entry) = Entry::new(&stream, shared) else {
        return refuse(stream);
    };
    let serve = Arc::clone(serve);
    let spawned = thread::Builder::new()
        .name("api connection".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || serve(stream, &entry.shared.stopping));
    if let Err(error) = spawned {
        tracing::warn!("api socket: thread: {error}");
    }
}

fn refuse(stream: UnixStream) {
    // The buffer of a fresh socket is empty: this cannot block. A peer that has left needs no answer.
    let fail = Fail::new(503, format!("{CONNECTIONS_MAX} connections are open: try again later"));
    let _ = Connection::new(stream).and_then(|mut to| to.write_fail(&fail, false));
}

/// A place among the open connections.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Entry {
    /// `None`: all places are taken, or the host is out of descriptors.
    fn new(stream: &UnixStream, shared: &Arc<Shared>) -> Option<Self> {
        let stream = stream.try_clone().ok()?;
        let mut open = shared.lock();
        if open.streams.len() >= CONNECTIONS_MAX {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, stream);
        drop(open);
        Some(Self { shared: Arc::clone(shared), number })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.lock().streams.remove(&self.number);
        self.shared.closed_one.notify_all();
    }
}

impl Shared {
    /// Ends the connections: those that wait for a request now, the others once they have answered.
    fn drain(&self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut open = self.lock();
        for stream in open.streams.values() {
            // Already shut down by the peer: just as well.
            let _ = stream.shutdown(Shutdown::Read);
        }
        while !open.streams.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.closed_one.wait_timeout(open, left);
            open = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Inserting and removing leave the map whole whoever panics.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
