//! The host's side: UNIX sockets, a timer, and one [`Watch`] over all of them.
//!
//! Nothing here blocks, and nothing decides: what a change means is for the device.
//!
//! System calls, for whoever filters them. The listener, before all else: `open` of its directory, `flock`,
//! `statx`, `connect`, `bind`, `chmod`, `listen`; at the end `statx` and `unlink`. Each life of the machine:
//! `timerfd_create`, `epoll_create1`, `epoll_ctl`, `eventfd2`. The I/O thread: `accept4`, `socket` and
//! `connect` of UNIX streams, `recvfrom`, `sendto`, `shutdown`, `epoll_ctl`, `epoll_wait`, `timerfd_settime`,
//! `close`.

mod error;
mod greeting;
mod listener;
mod socket;
mod token;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::streams::Key;
use crate::{Change, Watch};
use greeting::GREETING_MAX;

pub use error::VsockError;
pub(super) use greeting::{Greeting, answer};
pub use listener::VsockListener;
pub(super) use socket::{Fetched, Put, Socket};
pub(super) use token::Token;

/// Sockets of one device.
#[derive(Debug)]
pub(super) struct Host {
    listener: Arc<VsockListener>,
    watch: Watch,
    timer: OwnedFd,
    /// When the timer is set to go off, if it is.
    alarm: Option<Duration>,
    callers: HashMap<u32, Socket>,
    next_caller: u32,
    streams: HashMap<Key, Socket>,
}

impl Host {
    pub(super) fn new(listener: Arc<VsockListener>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let watch = Watch::new()?;
        watch.add(listener.socket(), Token::Listener.to_bits())?;
        watch.add(&timer, Token::Timer.to_bits())?;
        Ok(Self {
            listener,
            watch,
            timer,
            alarm: None,
            callers: HashMap::new(),
            next_caller: 0,
            streams: HashMap::new(),
        })
    }

    pub(super) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// What has happened since the last call.
    pub(super) fn changes(&self) -> Vec<(Token, Change)> {
        let mut changes = Vec::new();
        self.watch.take(|change| changes.push((Token::from_bits(change.token), change)));
        changes
    }

    /// Closes every connection. Who knocks is not turned away: he may be waiting for the guest.
    pub(super) fn clear(&mut self) {
        self.callers.clear();
        self.streams.clear();
    }

    /// How many callers have not said yet what they want.
    pub(super) fn callers(&self) -> usize {
        self.callers.len()
    }

    /// Lets in the next who knocks; false when there is nobody.
    pub(super) fn accept(&mut self, welcome: bool) -> io::Result<bool> {
        let Some(socket) = self.listener.accept()? else { return Ok(false) };
        if welcome {
            let number = self.next_caller;
            // Only 2^31 numbers: the port of nobody is none.
            self.next_caller = (number + 1) & (u32::MAX >> 1);
            self.watch.add(&socket, Token::Caller(number).to_bits())?;
            self.callers.insert(number, socket);
        }
        Ok(true)
    }

    /// What a caller has said so far. The bytes behind his greeting are the stream's.
    pub(super) fn hear(&self, caller: u32) -> Greeting {
        let Some(socket) = self.callers.get(&caller) else { return Greeting::Unfinished };
        let mut bytes = [0; GREETING_MAX];
        let heard = match socket.peek(&mut bytes) {
            Fetched::Bytes(len) => Greeting::parse(&bytes[..len]),
            Fetched::None => Greeting::Unfinished,
            Fetched::End | Fetched::Gone => Greeting::Bad,
        };
        if let Greeting::Connect { len, .. } = heard {
            // They are there: a moment ago we saw them.
            socket.fetch(&mut bytes[..len]);
        }
        heard
    }

    pub(super) fn dismiss(&mut self, caller: u32) {
        self.callers.remove(&caller);
    }

    /// The caller's socket becomes that of a stream, whose state counts as a change.
    pub(super) fn adopt(&mut self, caller: u32, key: Key) -> io::Result<()> {
        let socket = self.callers.remove(&caller).ok_or(io::ErrorKind::NotFound)?;
        self.watch.remove(&socket);
        self.insert(key, socket)
    }

    /// Connects to whom the guest has called.
    pub(super) fn connect(&mut self, key: Key) -> io::Result<()> {
        let address = SocketAddrUnix::new(self.listener.peer(key.host_port))?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // At once or not at all: a full backlog is an error.
        connect(&socket, &address)?;
        self.insert(key, Socket::new(socket))
    }

    fn insert(&mut self, key: Key, socket: Socket) -> io::Result<()> {
        self.watch.add(&socket, Token::Stream(key).to_bits())?;
        self.streams.insert(key, socket);
        Ok(())
    }

    pub(super) fn stream(&self, key: Key) -> Option<&Socket> {
        self.streams.get(&key)
    }

    pub(super) fn close(&mut self, key: Key) {
        self.streams.remove(&key);
    }

    /// Has the timer go off at `alarm`, which is at `now` or later, by the same clock.
    pub(super) fn set_alarm(&mut self, alarm: Option<Duration>, now: Duration) -> io::Result<()> {
        if self.alarm == alarm {
            return Ok(());
        }
        // A timer that is set to zero is off.
        let least = Duration::from_nanos(1);
        let rest = alarm.map_or(Duration::ZERO, |alarm| alarm.saturating_sub(now).max(least));
        let off = Timespec::try_from(Duration::ZERO).map_err(io::Error::other)?;
        let rest = Timespec::try_from(rest).map_err(io::Error::other)?;
        let time = Itimerspec { it_interval: off, it_value: rest };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        self.alarm = alarm;
        Ok(())
    }
}
