//! One gdb, from its connection until it leaves.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError};
use rustix::event::{PollFd, PollFlags, poll};
use thiserror::Error;

use super::connection::Answers;
use super::desk::Desk;
use super::target::{DebugError, GuestTarget};

/// Bytes read from gdb at a time.
const CHUNK: usize = 1024;

/// Why a session ends without gdb having said so.
#[derive(Debug, Error)]
enum SessionError {
    #[error("the connection fails: {0}")]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Guest(DebugError),
    #[error("it sends what is no packet, or none that it may send now")]
    Protocol,
}

impl From<GdbStubError<DebugError, io::Error>> for SessionError {
    fn from(error: GdbStubError<DebugError, io::Error>) -> Self {
        tracing::debug!("gdb: {error}");
        if error.is_target_error() {
            return error.into_target_error().map_or(Self::Protocol, Self::Guest);
        }
        error.into_connection_error().map_or(Self::Protocol, |(error, _)| Self::Connection(error))
    }
}

/// Serves `stream`; turns others away meanwhile. The guest goes on afterwards, unless gdb killed it.
pub(super) fn serve(stream: UnixStream, listener: &UnixListener, desk: &Arc<Desk>) {
    tracing::info!("gdb is here: the guest stands");
    let mut target = GuestTarget::new(Arc::clone(desk));
    target.hold();
    let wire = Wire { stream: &stream, listener, desk, incoming: VecDeque::new() };
    match converse(wire, &mut target) {
        Ok(Some(DisconnectReason::Kill)) => {
            // gdb waits for this answer to vKill, which gdbstub does not give. One that has gone, has gone.
            let _ = (&stream).write_all(b"$OK#9a");
            target.kill();
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("gdb: {error}"),
    }
    leave_from(&mut target, desk);
    tracing::info!("gdb has left");
}

/// Undoes what a session has left behind that did not end in order.
pub(super) fn leave(desk: &Arc<Desk>) {
    leave_from(&mut GuestTarget::new(Arc::clone(desk)), desk);
}

fn leave_from(target: &mut GuestTarget, desk: &Desk) {
    desk.set_holds(false);
    target.leave();
}

/// Until one of the two leaves; how gdb left, `None` where it just went or the VM ended.
fn converse(
    mut wire: Wire<'_>,
    target: &mut GuestTarget,
) -> Result<Option<DisconnectReason>, SessionError> {
    let answers = Answers::new(wire.stream.try_clone()?)?;
    let mut state = GdbStub::new(answers).run_state_machine(target)?;
    loop {
        state = match state {
            GdbStubStateMachine::Idle(idle) => match wire.next()? {
                Event::Byte(byte) => idle.incoming_data(target, byte)?,
                Event::Woken if target.is_over() => return Ok(None),
                Event::Woken => {
                    target.follow_life();
                    idle.into()
                }
                Event::Closed => return Ok(None),
            },
            GdbStubStateMachine::Running(running) => match target.next_stop() {
                Some(stop) => running.report_stop(target, stop)?,
                None => match wire.next()? {
                    Event::Byte(byte) => running.incoming_data(target, byte)?,
                    Event::Woken => running.into(),
                    Event::Closed => return Ok(None),
                },
            },
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                let stop = target.interrupt();
                interrupt.interrupt_handled(target, stop)?
            }
            GdbStubStateMachine::Disconnected(gone) => return Ok(Some(gone.get_reason())),
        };
    }
}

/// What a session waits for.
enum Event {
    Byte(u8),
    /// The desk may have news.
    Woken,
    Closed,
}

struct Wire<'a> {
    stream: &'a UnixStream,
    listener: &'a UnixListener,
    desk: &'a Desk,
    /// Read, and not yet understood.
    incoming: VecDeque<u8>,
}

impl Wire<'_> {
    fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(byte) = self.incoming.pop_front() {
                return Ok(Event::Byte(byte));
            }
            let [readable, woken, asked] = self.wait()?;
            // Before another is looked at: it may come in the place of this one, which has gone.
            if readable && self.read()? == 0 {
                return Ok(Event::Closed);
            }
            if woken {
                self.desk.woken();
                return Ok(Event::Woken);
            }
            if asked {
                self.turn_away();
            }
        }
    }

    /// Which are ready: gdb, the desk, another gdb.
    fn wait(&self) -> io::Result<[bool; 3]> {
        let wake = self.desk.wake_fd();
        let mut fds = [self.stream.as_fd(), wake, self.listener.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) => Ok(fds.map(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => Ok([false; 3]),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns how many bytes there were; 0 at the end.
    fn read(&mut self) -> io::Result<usize> {
        let mut bytes = [0; CHUNK];
        match { self.stream }.read(&mut bytes) {
            Ok(len) => {
                self.incoming.extend(&bytes[..len]);
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn turn_away(&self) {
        // Whoever has gone again needs no telling.
        if let Ok((other, _)) = self.listener.accept() {
            tracing::warn!("gdb: a second one is turned away: detach the first");
            drop(other);
        }
    }
}
