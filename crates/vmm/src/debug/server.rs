//! The debugger's thread: waits for gdb, serves one at a time.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use confine::Thread;
use rustix::event::{PollFd, PollFlags, poll};

use super::desk::{Desk, Finish, Life};
use super::session;
use super::socket::Socket;
use crate::config::GdbConfig;
use crate::error::VmError;
use crate::post_mortem;

/// Serves gdb until dropped.
///
/// Its thread is named `gdb`; the socket is open when it starts. The socket's file is removed by whoever
/// drops this.
pub(crate) struct Debugger {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
    _socket: Arc<Socket>,
}

impl Debugger {
    /// Listens, and starts the thread.
    pub(crate) fn start(config: &GdbConfig) -> Result<Self, VmError> {
        let refused = |source| VmError::Host(format!("gdb at {}", config.socket.display()), source);
        let socket = Arc::new(Socket::open(&config.socket).map_err(refused)?);
        let desk = Arc::new(Desk::new(config.wait).map_err(refused)?);
        let (served, at) = (Arc::clone(&socket), Arc::clone(&desk));
        let body = move || {
            if let Err(error) = serve(&served, &at) {
                tracing::error!("gdb: {error}: the guest can no longer be debugged");
                at.set_holds(false);
            }
        };
        let thread = confine::spawn(Builder::new().name("gdb".into()), Thread::Gdb, body);
        let thread = thread.map_err(refused)?;
        Ok(Self { desk, thread: Some(thread), _socket: socket })
    }

    /// Where the debugger is met.
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// The VM has ended: a debugger that is there is told so, and the thread ends.
    pub(crate) fn end(mut self, finish: Finish) {
        self.finish(finish);
    }

    fn finish(&mut self, finish: Finish) {
        if let Some(thread) = self.thread.take() {
            self.desk.over(finish);
            // It catches its panics.
            let _ = thread.join();
        }
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        self.finish(Finish::FAILED);
    }
}

fn serve(socket: &Socket, desk: &Arc<Desk>) -> io::Result<()> {
    while let Some(stream) = next_client(socket, desk)? {
        desk.set_holds(true);
        let served =
            catch_unwind(AssertUnwindSafe(|| session::serve(stream, &socket.listener, desk)));
        if let Err(panic) = served {
            tracing::error!("bug: the session with gdb: {}", post_mortem::message(&*panic));
            session::leave(desk);
        }
    }
    Ok(())
}

/// Waits for a client, once there is a machine; `None`: the VM has ended.
fn next_client(socket: &Socket, desk: &Desk) -> io::Result<Option<UnixStream>> {
    loop {
        let born = match desk.life() {
            Life::Over(_) => return Ok(None),
            Life::Machine(..) => true,
            Life::Unborn => false,
        };
        let wake = desk.wake_fd();
        let mut fds = [
            PollFd::new(&wake, PollFlags::IN),
            PollFd::from_borrowed_fd(socket.listener.as_fd(), PollFlags::IN),
        ];
        let watched = if born { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        desk.woken();
        if born && let Some(stream) = accept(socket)? {
            return Ok(Some(stream));
        }
    }
}

fn accept(socket: &Socket) -> io::Result<Option<UnixStream>> {
    match socket.listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Nobody there after all, or a client that has left already.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}
