//! Packets of the guest, and packets for it.

use super::connection::{Connection, Next, Phase};
use super::{Action, Key, RESETS_MAX, Streams, Violation};
use crate::virtio::vsock::packet::{HOST_CID, Halves, Header, Op, PORT_ANY, TYPE_STREAM};

/// What goes to the guest next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Outgoing {
    /// This header, alone.
    Packet(Header),
    /// Up to `limit` bytes of the host, `limit > 0`. Fetch them; then say `data`, or `no_data`, or
    /// what has become of the host.
    Data { key: Key, limit: u32 },
}

impl Streams {
    /// Whether the guest's packets may be taken: each may cost a reset, which waits for a buffer of
    /// the guest's.
    pub(in super::super) fn takes_packets(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Takes a packet of the guest; `payload.len() == header.len`.
    pub(in super::super) fn receive(&mut self, header: &Header, payload: &[u8]) {
        let Some((key, op)) = self.address(header).filter(|(_, op)| fits(*op, payload)) else {
            return self.reject(header);
        };
        let taken = match op {
            Op::Request => self.request(key, header),
            Op::Reset => {
                self.reset(key);
                Ok(())
            }
            _ if self.is_known_to_guest(key) => self.update(key, op, header, payload),
            // Over, and the guest has not heard of it yet: told once more.
            _ => return self.resets.push_back(header.reset()),
        };
        if taken.is_err() {
            self.metrics.bad_packets += 1;
            self.abort(key);
        }
        self.queue(key);
    }

    /// Answers a packet that cannot be one of a connection's; if it is addressed as if it were, that
    /// is the connection's end.
    pub(in super::super) fn reject(&mut self, header: &Header) {
        self.metrics.bad_packets += 1;
        match self.address(header) {
            Some((key, Op::Reset)) => self.reset(key),
            Some((key, _)) if self.is_known_to_guest(key) => self.abort(key),
            // Two sides that reset each other's resets would not end.
            _ if header.op == Op::Reset as u16 => {}
            _ => self.resets.push_back(header.reset()),
        }
    }

    /// The connection a packet is for, and what it wants; `None` if it can be for none.
    fn address(&self, header: &Header) -> Option<(Key, Op)> {
        let ours = header.src_cid == u64::from(self.cid) && header.dst_cid == HOST_CID;
        let ports = header.src_port != PORT_ANY && header.dst_port != PORT_ANY;
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let op = Op::new(header.op)?;
        (ours && ports && header.kind == TYPE_STREAM).then_some((key, op))
    }

    fn is_known_to_guest(&self, key: Key) -> bool {
        match self.phase(key) {
            None | Some(Phase::Draining | Phase::Requesting { told: false }) => false,
            Some(Phase::Connecting | Phase::Requesting { told: true } | Phase::Open) => true,
        }
    }

    fn request(&mut self, key: Key, header: &Header) -> Result<(), Violation> {
        if self.is_known_to_guest(key) {
            return Err(Violation::Phase);
        }
        if self.is_full() || self.phase(key).is_some() {
            self.metrics.refused += 1;
            self.resets.push_back(header.reset());
            return Ok(());
        }
        let mut connection = Connection::new(Phase::Connecting, self.buffer_bytes);
        let credit = connection.take_credit(header);
        self.connections.insert(key, connection);
        credit?;
        self.actions.push_back(Action::Connect(key));
        Ok(())
    }

    /// The guest's end of a connection is gone.
    fn reset(&mut self, key: Key) {
        let Some(connection) = self.connections.get(&key) else { return };
        match connection.phase {
            Phase::Draining | Phase::Requesting { told: false } => {}
            Phase::Requesting { told: true } => {
                self.metrics.refused += 1;
                self.remove(key);
            }
            // It had said all, and went away without waiting for us.
            Phase::Open if connection.guest.send => self.drain(key),
            Phase::Open | Phase::Connecting => self.remove(key),
        }
    }

    /// Any other packet of a connection that the guest knows.
    fn update(
        &mut self,
        key: Key,
        op: Op,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        connection.take_credit(header)?;
        match (op, connection.phase) {
            (Op::Response, Phase::Requesting { .. }) => self.response(key),
            (Op::ReadWrite, Phase::Open) => {
                connection.take_payload(payload)?;
                let len = payload.len() as u64;
                self.metrics.sent_bytes += len;
                self.metrics.dropped_bytes += if connection.host.receive { len } else { 0 };
                self.actions.push_back(Action::Flush(key));
            }
            (Op::Shutdown, Phase::Open) => self.shutdown(key, Halves::from_flags(header.flags)),
            (Op::CreditUpdate, Phase::Open) => {}
            (Op::CreditRequest, Phase::Open) => connection.answer_credit(),
            _ => return Err(Violation::Phase),
        }
        Ok(())
    }

    fn response(&mut self, key: Key) {
        self.set_deadline(key, None);
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.phase = Phase::Open;
        }
        self.actions.push_back(Action::Greet(key));
    }

    /// The guest is done with these directions.
    fn shutdown(&mut self, key: Key, halves: Halves) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let before = connection.guest;
        connection.guest = before.and(halves);
        let (guest, idle) = (connection.guest, connection.held() == 0);
        if guest == Halves::BOTH {
            // "... followed by a VIRTIO_VSOCK_OP_RST response from the peer" (5.10.6.5).
            self.resets.push_back(self.reset_of(key));
            return self.drain(key);
        }
        if guest.send && !before.send && idle {
            self.actions.push_back(Action::ShutWrite(key));
        }
        if guest.receive && !before.receive {
            self.actions.push_back(Action::ShutRead(key));
        }
    }

    /// Over for the guest. What it has sent still goes to the host.
    fn drain(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.held() == 0 {
            return self.remove(key);
        }
        connection.phase = Phase::Draining;
        self.set_deadline(key, None);
    }

    /// Whether `next_packet` may have one.
    pub(in super::super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ring.is_empty()
    }

    /// The next packet for the guest. Resets come first; then each connection has one packet in turn.
    pub(in super::super) fn next_packet(&mut self) -> Option<Outgoing> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(Outgoing::Packet(reset));
        }
        while let Some(key) = self.ring.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            match connection.next() {
                None => {}
                Some(Next::Data(limit)) => return Some(Outgoing::Data { key, limit }),
                Some(Next::Control(op)) => {
                    let header = self.say(key, op, 0);
                    self.queue(key);
                    return Some(Outgoing::Packet(header));
                }
            }
        }
        None
    }

    /// `len` bytes were fetched, not more than allowed, not 0: the header to send them under.
    pub(in super::super) fn data(&mut self, key: Key, len: u32) -> Header {
        let header = self.say(key, Op::ReadWrite, len);
        self.metrics.received_bytes += u64::from(len);
        self.queue(key);
        header
    }

    /// There were none: `readable` tells when to ask again.
    pub(in super::super) fn no_data(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.set_readable(false);
            self.queue(key);
        }
    }

    fn say(&mut self, key: Key, op: Op, len: u32) -> Header {
        let said = self.connections.get_mut(&key).map(|connection| connection.say(op, len));
        let (flags, buf_alloc, fwd_cnt) = said.unwrap_or_default();
        Header { op: op as u16, len, flags, buf_alloc, fwd_cnt, ..self.reset_of(key) }
    }

    pub(super) fn reset_of(&self, key: Key) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid.into(),
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: TYPE_STREAM,
            op: Op::Reset as u16,
            ..Header::default()
        }
    }
}

/// Only data has a payload.
fn fits(op: Op, payload: &[u8]) -> bool {
    op == Op::ReadWrite || payload.is_empty()
}
