//! Streams against a simple model: bytes are numbered, and both ends only count.
//!
//! The guest here keeps the rules, and the host does what it likes, in any order. What must hold: each
//! end gets what the other has sent, in order, within its credit; nobody hears of a connection that
//! is over; and when both ends wait, nothing is left undone.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{CID, packet};
use super::*;
use crate::virtio::vsock::packet::Op;

const BUFFER: u32 = 64;
const GUEST_BUFFER: u32 = 50;
pub(super) const CONNECTIONS: u32 = 5;

/// The guest's end of a connection.
#[derive(Debug, Default)]
struct GuestEnd {
    open: bool,
    /// It has sent, and knows the host's side to have forwarded.
    sent: u32,
    known_forwarded: u32,
    /// It has got, and consumed.
    got: u32,
    consumed: u32,
    shut: Halves,
    /// What the other side has said of itself.
    peer: Halves,
}

/// The host's end.
#[derive(Debug, Default)]
struct HostEnd {
    connected: bool,
    /// It has written, and has had fetched.
    written: u32,
    fetched: u32,
    taken: u32,
    shut: Halves,
    /// It was told that no more bytes come.
    end_seen: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Ends {
    guest: GuestEnd,
    host: HostEnd,
}

pub(super) struct World {
    pub(super) streams: Streams,
    /// Every connection that ever was.
    ends: BTreeMap<Key, Ends>,
    next_guest_port: u32,
}

/// Something that one of the ends does; `Index` chooses the connection.
#[derive(Clone, Debug)]
enum Step {
    GuestConnects { welcome: bool },
    HostConnects,
    GuestSends(Index, u32),
    GuestConsumes(Index, u32),
    GuestShuts(Index, u32),
    HostWrites(Index, u32),
    HostTakes(Index, u32),
    HostShuts(Index, u32),
    Packets(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<Index>;
    prop_oneof![
        1 => any::<bool>().prop_map(|welcome| Step::GuestConnects { welcome }),
        1 => Just(Step::HostConnects),
        4 => (which(), 0..80_u32).prop_map(|(i, n)| Step::GuestSends(i, n)),
        3 => (which(), 0..60_u32).prop_map(|(i, n)| Step::GuestConsumes(i, n)),
        1 => (which(), 1..4_u32).prop_map(|(i, flags)| Step::GuestShuts(i, flags)),
        4 => (which(), 0..120_u32).prop_map(|(i, n)| Step::HostWrites(i, n)),
        3 => (which(), 0..80_u32).prop_map(|(i, n)| Step::HostTakes(i, n)),
        1 => (which(), 1..4_u32).prop_map(|(i, flags)| Step::HostShuts(i, flags)),
        6 => (1..10_usize).prop_map(Step::Packets),
    ]
}

/// Byte `at` of what one end of `key` sends.
fn byte(key: Key, from_guest: bool, at: u32) -> u8 {
    (key.guest_port.wrapping_mul(31) ^ at.wrapping_mul(7)) as u8 ^ u8::from(from_guest)
}

impl World {
    pub(super) fn new() -> Self {
        let streams = Streams::new(CID, CONNECTIONS, BUFFER);
        Self { streams, ends: BTreeMap::new(), next_guest_port: 1 }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::GuestConnects { welcome } => self.guest_connects(welcome),
            Step::HostConnects => self.host_connects(),
            Step::GuestSends(i, len) => self.with(i, |world, key| world.guest_sends(key, len)),
            Step::GuestConsumes(i, len) => self.with(i, |world, key| world.consumes(key, len)),
            Step::GuestShuts(i, flags) => {
                self.with(i, |world, key| world.guest_shuts(key, Halves::from_flags(flags)));
            }
            Step::HostWrites(i, len) => self.with(i, |world, key| world.host_writes(key, len)),
            Step::HostTakes(i, len) => self.with(i, |world, key| world.host_takes(key, len)),
            Step::HostShuts(i, flags) => {
                self.with(i, |world, key| world.host_shuts(key, Halves::from_flags(flags)));
            }
            Step::Packets(count) => {
                for _ in 0..count {
                    self.packet();
                }
            }
        }
        self.act();
        self.check();
    }

    fn with(&mut self, which: Index, act: impl FnOnce(&mut Self, Key)) {
        if !self.ends.is_empty() {
            let at = which.index(self.ends.len());
            let key = *self.ends.keys().nth(at).unwrap();
            act(self, key);
        }
    }

    fn guest(&mut self, key: Key) -> &mut GuestEnd {
        &mut self.ends.get_mut(&key).unwrap().guest
    }

    fn host(&mut self, key: Key) -> &mut HostEnd {
        &mut self.ends.get_mut(&key).unwrap().host
    }

    fn guest_says(&mut self, key: Key, op: Op, flags: u32, payload: &[u8]) {
        let guest = self.guest(key);
        let header = Header {
            flags,
            len: payload.len() as u32,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: guest.consumed,
            ..packet(key, op)
        };
        self.streams.receive(&header, payload);
    }

    pub(super) fn guest_connects(&mut self, welcome: bool) {
        let key = Key { host_port: 80, guest_port: self.next_guest_port };
        self.next_guest_port += 1;
        self.ends.insert(key, Ends::default());
        self.guest_says(key, Op::Request, 0, &[]);
        match self.streams.next_action() {
            Some(Action::Connect(asked)) if welcome => {
                assert_eq!(asked, key);
                self.host(key).connected = true;
                self.streams.connected(key);
            }
            Some(Action::Connect(asked)) => self.streams.refused(asked),
            action => assert_eq!(action, None, "too many connections"),
        }
    }

    fn host_connects(&mut self) {
        let port = self.next_guest_port;
        self.next_guest_port += 1;
        if let Some(key) = self.streams.open(port) {
            self.ends.insert(key, Ends::default());
            self.host(key).connected = true;
        }
    }

    fn guest_sends(&mut self, key: Key, len: u32) {
        let guest = self.guest(key);
        if !guest.open || guest.shut.send || guest.peer.receive {
            return;
        }
        let len = len.min(BUFFER - (guest.sent - guest.known_forwarded));
        let bytes: Vec<u8> = (0..len).map(|i| byte(key, true, guest.sent + i)).collect();
        guest.sent += len;
        self.guest_says(key, Op::ReadWrite, 0, &bytes);
    }

    fn consumes(&mut self, key: Key, len: u32) {
        let guest = self.guest(key);
        if guest.open {
            guest.consumed += len.min(guest.got - guest.consumed);
            self.guest_says(key, Op::CreditUpdate, 0, &[]);
        }
    }

    fn guest_shuts(&mut self, key: Key, halves: Halves) {
        let guest = self.guest(key);
        if guest.open {
            guest.shut = guest.shut.and(halves);
            let flags = guest.shut.flags();
            self.guest_says(key, Op::Shutdown, flags, &[]);
        }
    }

    fn host_writes(&mut self, key: Key, len: u32) {
        let host = self.host(key);
        if host.connected && !host.closed && !host.shut.send {
            host.written += len;
            self.streams.readable(key);
        }
    }

    fn host_takes(&mut self, key: Key, len: u32) {
        let bytes = self.streams.bytes_for_host(key);
        let bytes = bytes[..bytes.len().min(len as usize)].to_vec();
        let host = self.host(key);
        if bytes.is_empty() || host.shut.receive {
            return;
        }
        for got in &bytes {
            assert_eq!(*got, byte(key, true, host.taken), "in order");
            host.taken += 1;
        }
        self.streams.forwarded(key, bytes.len());
    }

    fn host_shuts(&mut self, key: Key, halves: Halves) {
        let host = self.host(key);
        if !host.connected || host.closed {
            return;
        }
        host.shut = host.shut.and(halves);
        if host.shut == Halves::BOTH {
            self.streams.host_gone(key);
        } else if halves.receive {
            self.streams.host_shut(key, Halves::RECEIVE);
        }
        // The end is something to read.
        self.streams.readable(key);
    }

    fn act(&mut self) {
        while let Some(action) = self.streams.next_action() {
            match action {
                // Bytes are taken in steps of their own.
                Action::Flush(_) | Action::ShutRead(_) => {}
                Action::Greet(key) => assert!(self.host(key).connected),
                Action::ShutWrite(key) => {
                    assert!(self.streams.bytes_for_host(key).is_empty());
                    let Ends { guest, host } = self.ends.get_mut(&key).unwrap();
                    assert!(host.shut.receive || host.taken == guest.sent, "the end is the end");
                    assert!(guest.shut.send);
                    host.end_seen = true;
                }
                Action::Close(key) => self.host(key).closed = true,
                Action::Connect(key) => panic!("{key:?} was not asked for"),
            }
        }
    }

    /// One buffer of the guest's; false if there was nothing to put into it.
    fn packet(&mut self) -> bool {
        let Some(outgoing) = self.streams.next_packet() else { return false };
        let (header, first) = match outgoing {
            Outgoing::Packet(header) => (header, 0),
            Outgoing::Data { key, limit } => {
                let host = self.host(key);
                let (first, len) = (host.fetched, limit.min(host.written - host.fetched));
                host.fetched += len;
                match (len, host.shut.send) {
                    (0, true) => self.streams.host_shut(key, Halves::SEND),
                    (0, false) => self.streams.no_data(key),
                    _ => {
                        let header = self.streams.data(key, len);
                        self.guest_hears(&header, first);
                    }
                }
                self.act();
                return true;
            }
        };
        self.guest_hears(&header, first);
        self.act();
        true
    }

    /// `first` is the number of the first byte that goes with it.
    fn guest_hears(&mut self, header: &Header, first: u32) {
        let key = Key { host_port: header.src_port, guest_port: header.dst_port };
        let taken = self.host(key).taken;
        let dropped = self.host(key).shut.receive;
        let guest = self.guest(key);
        let op = Op::new(header.op).unwrap();
        if op == Op::Reset {
            return guest.open = false;
        }
        assert!(guest.open || matches!(op, Op::Request | Op::Response), "{op:?} after the end");
        let last = op == Op::Shutdown && Halves::from_flags(header.flags) == Halves::BOTH;
        let offered = if last { BUFFER } else { BUFFER.min(GUEST_BUFFER) - 1 };
        // A request is said before the guest's buffer is known, and after the last nothing counts.
        assert!(header.buf_alloc == offered || op == Op::Request || guest.peer == Halves::BOTH);
        assert!(dropped || header.fwd_cnt == taken, "credit is what the host has taken");
        guest.known_forwarded = header.fwd_cnt;
        match op {
            Op::Response => guest.open = true,
            Op::Request => {
                guest.open = true;
                self.guest_says(key, Op::Response, 0, &[]);
            }
            Op::ReadWrite => {
                assert!(!guest.peer.send && !guest.shut.receive);
                assert_eq!(guest.got, first, "no byte is left out");
                guest.got += header.len;
                assert!(guest.got - guest.consumed <= GUEST_BUFFER, "within the credit");
            }
            Op::Shutdown => {
                guest.peer = Halves::from_flags(header.flags);
                if guest.peer == Halves::BOTH {
                    guest.open = false;
                    self.guest_says(key, Op::Reset, 0, &[]);
                }
            }
            Op::CreditRequest => self.consumes(key, 0),
            Op::CreditUpdate | Op::Reset => {}
        }
    }

    pub(super) fn check(&self) {
        let streams = &self.streams;
        assert!(streams.connections.len() <= CONNECTIONS as usize);
        let mut ring: Vec<Key> = streams.ring.iter().copied().collect();
        ring.sort_unstable();
        let queued = streams.connections.iter().filter(|(_, connection)| connection.queued);
        let mut queued: Vec<Key> = queued.map(|(key, _)| *key).collect();
        queued.sort_unstable();
        assert_eq!(ring, queued, "each once, and nobody else");
        for (key, connection) in &streams.connections {
            assert!(connection.held() <= BUFFER as usize);
            assert!(connection.queued || connection.next().is_none(), "{key:?} waits for ever");
        }
        let deadlines = streams.connections.values().filter(|one| one.deadline.is_some()).count();
        assert_eq!(streams.deadlines.len(), deadlines);
    }

    /// Both ends do all they can, without sending anything new.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            let mut idle = !self.packet();
            for key in self.ends.keys().copied().collect::<Vec<_>>() {
                let before = (self.guest(key).consumed, self.host(key).taken);
                self.consumes(key, u32::MAX);
                self.host_takes(key, u32::MAX);
                self.act();
                idle &= before == (self.guest(key).consumed, self.host(key).taken);
            }
            self.check();
            if idle && !self.streams.has_packet() {
                return;
            }
        }
        panic!("never at rest");
    }

    /// Nothing moves any more: then everything has arrived that somebody waits for.
    fn check_settled(&self) {
        assert_eq!(self.streams.metrics.bad_packets, 0);
        for (key, Ends { guest, host }) in &self.ends {
            let connection = self.streams.connections.get(key);
            if host.connected && !host.shut.receive && (guest.open || guest.shut.send) {
                assert_eq!(host.taken, guest.sent, "{key:?} {guest:?} {host:?}");
                assert!(host.end_seen || host.closed || !guest.shut.send, "{key:?}");
            }
            if guest.open && !guest.shut.receive {
                assert_eq!(guest.got, host.written, "{key:?} {guest:?} {host:?}");
                assert_eq!(guest.peer.send, host.shut.send, "{key:?}");
            }
            assert_eq!(connection.is_some(), guest.open, "{key:?} {guest:?} {host:?}");
            assert!(guest.open || host.closed || !host.connected, "{key:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_one_end_sends_the_other_gets(steps in proptest::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        world.check_settled();
    }
}
