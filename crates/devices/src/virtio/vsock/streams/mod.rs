//! The connections of a device, without sockets and queues: packets and events in, packets and
//! actions out.
//!
//! ```text
//!   guest                        Streams                           host
//!   packet -------> receive()              next_action() -------> connect, flush, close ...
//!   packet <------- next_packet()          connected(), readable(), forwarded() ... <------ socket
//! ```
//!
//! ```text
//!   guest asks: Connecting --connected--> Open --both halves shut--> gone, or
//!   host asks:  Requesting --response---> Open                       Draining --all taken--> gone
//! ```
//!
//! Nothing here waits, and everything is bounded: connections by the configuration, bytes by the
//! credit given, resets by [`Streams::takes_packets`], which the caller asks before each packet.

mod connection;
mod credit;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod model;
mod packets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::config::{REQUEST_TIMEOUT, SHUTDOWN_TIMEOUT};
use super::metrics::VsockMetrics;
use super::packet::{Halves, Header, PORT_ANY};
use connection::{Connection, Phase};

pub(super) use packets::Outgoing;

/// Where the host's ports begin that are given out to those who connect from the host: above what
/// anybody would listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Resets that wait for the guest's buffers; with more, none of its packets is taken.
const RESETS_MAX: usize = 256;

/// A connection's name: its two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// What the sockets of the host have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Connect, then say `connected` or `refused`.
    Connect(Key),
    /// The guest has taken the host's connection: tell who asked.
    Greet(Key),
    /// There are bytes for the host.
    Flush(Key),
    /// No more bytes come for the host.
    ShutWrite(Key),
    /// No more bytes of the host are taken.
    ShutRead(Key),
    /// The socket has done its work.
    Close(Key),
}

/// What a packet does that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// More bytes than there was room for, or forwarding more than there was.
    Credit,
    /// Bytes after their end.
    AfterShutdown,
    /// It does not fit the connection's phase.
    Phase,
}

/// All connections of a device.
#[derive(Debug)]
pub(super) struct Streams {
    cid: u32,
    /// `connections.len() <= connections_max`
    connections_max: usize,
    buffer_bytes: u32,
    now: Duration,
    connections: HashMap<Key, Connection>,
    /// Those that may have something to say, each once, in the order in which they have their turn.
    ring: VecDeque<Key>,
    resets: VecDeque<Header>,
    actions: VecDeque<Action>,
    /// The deadline of each connection that has one.
    deadlines: BTreeSet<(Duration, Key)>,
    next_host_port: u32,
    pub(super) metrics: VsockMetrics,
}

impl Streams {
    pub(super) fn new(cid: u32, connections_max: u32, buffer_bytes: u32) -> Self {
        Self {
            cid,
            connections_max: connections_max as usize,
            buffer_bytes,
            now: Duration::ZERO,
            connections: HashMap::new(),
            ring: VecDeque::new(),
            resets: VecDeque::new(),
            actions: VecDeque::new(),
            deadlines: BTreeSet::new(),
            next_host_port: FIRST_HOST_PORT,
            metrics: VsockMetrics::default(),
        }
    }

    /// Forgets everything but the counters. The sockets are the caller's to close.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.ring.clear();
        self.resets.clear();
        self.actions.clear();
        self.deadlines.clear();
    }

    /// What the sockets must do next. To be asked after each call, until there is nothing.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether no connection can be added, with so many more on their way.
    pub(super) fn is_full_with(&self, more: usize) -> bool {
        self.connections.len() + more >= self.connections_max
    }

    fn is_full(&self) -> bool {
        self.is_full_with(0)
    }

    /// It is `now`, since some beginning: ends what has waited for too long.
    pub(super) fn tick(&mut self, now: Duration) {
        self.now = now;
        while let Some(&(deadline, key)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            let requesting = matches!(self.phase(key), Some(Phase::Requesting { .. }));
            self.metrics.timeouts += u64::from(requesting);
            self.abort(key);
        }
    }

    /// When `tick` has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Somebody on the host wants port `guest_port` of the guest; `None` if there is no room.
    pub(super) fn open(&mut self, guest_port: u32) -> Option<Key> {
        if self.is_full() || guest_port == PORT_ANY {
            self.metrics.refused += 1;
            return None;
        }
        let key = self.free_key(guest_port);
        let phase = Phase::Requesting { told: false };
        self.connections.insert(key, Connection::new(phase, self.buffer_bytes));
        self.set_deadline(key, Some(REQUEST_TIMEOUT));
        self.metrics.from_host += 1;
        self.queue(key);
        Some(key)
    }

    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key { host_port: self.next_host_port, guest_port };
            self.next_host_port = match self.next_host_port + 1 {
                PORT_ANY => FIRST_HOST_PORT,
                next => next,
            };
            // Connections are far fewer than ports.
            if !self.connections.contains_key(&key) {
                return key;
            }
        }
    }

    /// The host took the guest's connection.
    pub(super) fn connected(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.phase = Phase::Open;
            connection.respond();
            self.metrics.from_guest += 1;
            self.queue(key);
        }
    }

    /// Nobody on the host took it.
    pub(super) fn refused(&mut self, key: Key) {
        self.metrics.refused += 1;
        self.abort(key);
    }

    /// The host may have bytes, or their end.
    pub(super) fn readable(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.set_readable(true);
            self.queue(key);
        }
    }

    /// The host is done with these directions. It sends no more: all it sent has gone to the guest.
    pub(super) fn host_shut(&mut self, key: Key, halves: Halves) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let before = connection.host;
        connection.host = before.and(halves);
        if let Phase::Requesting { .. } | Phase::Connecting = connection.phase {
            return if connection.host == Halves::BOTH {
                self.abort(key);
            };
        }
        if halves.receive {
            self.metrics.dropped_bytes += connection.held() as u64;
            connection.forward(connection.held());
        }
        if connection.phase == Phase::Draining && halves.receive {
            return self.remove(key);
        }
        if connection.host != Halves::BOTH || before == Halves::BOTH {
            return self.queue(key);
        }
        self.actions.push_back(Action::Close(key));
        self.set_deadline(key, Some(SHUTDOWN_TIMEOUT));
        self.queue(key);
    }

    /// The host has gone: it takes nothing, and what it sent is still to be fetched unless nobody
    /// wants it.
    pub(super) fn host_gone(&mut self, key: Key) {
        let Some(connection) = self.connections.get(&key) else { return };
        let unwanted = match connection.phase {
            Phase::Open => connection.guest.receive || connection.host.send,
            Phase::Connecting | Phase::Requesting { .. } | Phase::Draining => true,
        };
        self.host_shut(key, if unwanted { Halves::BOTH } else { Halves::RECEIVE });
        self.readable(key);
    }

    /// The oldest bytes for the host; empty when there are none.
    pub(super) fn bytes_for_host(&self, key: Key) -> &[u8] {
        self.connections.get(&key).map_or(&[], Connection::bytes_for_host)
    }

    /// The host has taken the oldest `len` bytes.
    pub(super) fn forwarded(&mut self, key: Key, len: usize) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.forward(len);
        if connection.held() == 0 {
            match connection.phase {
                Phase::Draining => return self.remove(key),
                _ if connection.guest.send => self.actions.push_back(Action::ShutWrite(key)),
                _ => {}
            }
        }
        self.queue(key);
    }

    fn phase(&self, key: Key) -> Option<Phase> {
        self.connections.get(&key).map(|connection| connection.phase)
    }

    /// Ends a connection at once; the guest is told with a reset if it knows of it.
    fn abort(&mut self, key: Key) {
        match self.phase(key) {
            None => return,
            Some(Phase::Requesting { told: false } | Phase::Draining) => {}
            Some(_) => self.resets.push_back(self.reset_of(key)),
        }
        self.remove(key);
    }

    fn remove(&mut self, key: Key) {
        let Some(connection) = self.connections.remove(&key) else { return };
        if let Some(deadline) = connection.deadline {
            self.deadlines.remove(&(deadline, key));
        }
        if connection.queued {
            self.ring.retain(|queued| *queued != key);
        }
        self.metrics.dropped_bytes += connection.held() as u64;
        self.actions.push_back(Action::Close(key));
    }

    fn set_deadline(&mut self, key: Key, timeout: Option<Duration>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let deadline = timeout.map(|timeout| self.now + timeout);
        if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
            self.deadlines.remove(&(old, key));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, key)));
    }

    /// Gives a connection its turn if it has something to say.
    fn queue(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if !connection.queued && connection.next().is_some() {
            connection.queued = true;
            self.ring.push_back(key);
        }
    }
}
