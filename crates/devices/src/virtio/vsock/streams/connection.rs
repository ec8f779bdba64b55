//! One stream: its phase, its credit, what it has to say.

use std::collections::VecDeque;
use std::time::Duration;

use super::Violation;
use super::credit::{GuestRoom, OwnRoom};
use crate::virtio::vsock::packet::{Halves, Header, Op};

/// An empty buffer keeps so much memory for the next bytes.
const KEPT_CAPACITY: usize = 4096;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has asked; the host's answer is not known yet.
    Connecting,
    /// The host has asked; the guest has not answered. Whether it was told yet.
    Requesting { told: bool },
    /// Both agree.
    Open,
    /// Over for the guest; the host has not taken all bytes yet.
    Draining,
}

/// A packet, or bytes to be fetched for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Control(Op),
    /// Up to so many bytes of the host.
    Data(u32),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) phase: Phase,
    guest_room: GuestRoom,
    own_room: OwnRoom,
    /// What the guest has sent and the host has not taken; `len == received - forwarded`.
    to_host: VecDeque<u8>,
    /// What the guest is done with.
    pub(super) guest: Halves,
    /// What the host is done with.
    pub(super) host: Halves,
    /// What of `host` the guest knows.
    told: Halves,
    /// The host may have bytes for us.
    readable: bool,
    response_due: bool,
    credit_due: bool,
    /// The guest was asked for credit since it gave some.
    credit_asked: bool,
    /// When it must have left this phase.
    pub(super) deadline: Option<Duration>,
    /// It is in the ring of those with something to say.
    pub(super) queued: bool,
}

impl Connection {
    pub(super) fn new(phase: Phase, buffer_bytes: u32) -> Self {
        Self {
            phase,
            guest_room: GuestRoom::default(),
            own_room: OwnRoom::new(buffer_bytes),
            to_host: VecDeque::new(),
            guest: Halves::default(),
            host: Halves::default(),
            told: Halves::default(),
            readable: false,
            response_due: false,
            credit_due: false,
            credit_asked: false,
            deadline: None,
            queued: false,
        }
    }

    /// Takes what every packet says of the guest's buffer.
    pub(super) fn take_credit(&mut self, header: &Header) -> Result<(), Violation> {
        let before = self.guest_room.free();
        self.guest_room.update(header.buf_alloc, header.fwd_cnt)?;
        // Otherwise the answer to the question would be the next question.
        self.credit_asked &= self.guest_room.free() == before;
        Ok(())
    }

    /// Bytes of the guest.
    pub(super) fn take_payload(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if self.guest.send {
            return Err(Violation::AfterShutdown);
        }
        let len = u32::try_from(payload.len()).map_err(|_| Violation::Credit)?;
        self.own_room.receive(len)?;
        if self.host.receive {
            // It was on its way when the host left.
            self.own_room.forward(len);
        } else {
            self.to_host.extend(payload);
        }
        Ok(())
    }

    /// The oldest bytes for the host: not all, perhaps, but some if there are any.
    pub(super) fn bytes_for_host(&self) -> &[u8] {
        self.to_host.as_slices().0
    }

    pub(super) fn held(&self) -> usize {
        self.to_host.len()
    }

    /// The host has taken the oldest `len` bytes, or will never take them.
    pub(super) fn forward(&mut self, len: usize) {
        let len = len.min(self.to_host.len());
        self.to_host.drain(..len);
        if self.to_host.is_empty() && self.to_host.capacity() > KEPT_CAPACITY {
            self.to_host = VecDeque::new();
        }
        // A buffer is at most 16 MiB.
        self.own_room.forward(len as u32);
    }

    pub(super) fn respond(&mut self) {
        self.response_due = true;
    }

    pub(super) fn answer_credit(&mut self) {
        self.credit_due = true;
    }

    pub(super) fn set_readable(&mut self, readable: bool) {
        self.readable = readable;
    }

    /// What it has to say now, most urgent first.
    pub(super) fn next(&self) -> Option<Next> {
        match self.phase {
            Phase::Connecting | Phase::Draining => None,
            Phase::Requesting { told } => (!told).then_some(Next::Control(Op::Request)),
            Phase::Open => self.next_open(),
        }
    }

    fn next_open(&self) -> Option<Next> {
        let has_data = self.readable && !self.host.send && !self.guest.receive;
        let free = self.guest_room.free();
        // Every packet tells our credit, so data comes before news of it.
        let op = match () {
            () if self.response_due => Op::Response,
            () if has_data && free > 0 => return Some(Next::Data(free)),
            () if self.host != self.told => Op::Shutdown,
            () if self.credit_due || self.own_room.is_news() => Op::CreditUpdate,
            () if has_data && !self.credit_asked => Op::CreditRequest,
            () => return None,
        };
        Some(Next::Control(op))
    }

    /// Notes that `op` is said now; `len` bytes of payload go with it. Returns its flags, and our
    /// buffer's size and `fwd_cnt`.
    pub(super) fn say(&mut self, op: Op, len: u32) -> (u32, u32, u32) {
        let mut flags = 0;
        match op {
            Op::Request => self.phase = Phase::Requesting { told: true },
            Op::Response => self.response_due = false,
            Op::Shutdown => {
                self.told = self.host;
                flags = self.told.flags();
            }
            Op::CreditRequest => self.credit_asked = true,
            Op::ReadWrite => self.guest_room.send(len),
            Op::CreditUpdate | Op::Reset => {}
        }
        // Linux's driver wakes its writers whichever packet brings credit.
        self.credit_due = false;
        let (alloc, forwarded) =
            self.own_room.tell(self.guest_room.alloc(), self.told == Halves::BOTH);
        (flags, alloc, forwarded)
    }
}
