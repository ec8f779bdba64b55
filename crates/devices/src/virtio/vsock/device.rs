//! The running device, and its queues. What it does with sockets is in `sockets`.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::config::{EVENTS, F_STREAM, QUEUES, RECEIVE, TRANSMIT};
use super::host::{Fetched, Host};
use super::packet::{HEADER_LEN, Halves, Header};
use super::streams::{Key, Outgoing, Streams};
use super::{VsockConfig, VsockListener, VsockState};
use crate::virtio::queue::Chain;
use crate::virtio::{
    DeviceKind, DeviceMetrics, DeviceState, GuestError, RestoreError, Turn, VirtioDevice,
    read_space,
};
use crate::{Notifier, Watch};

/// Most bytes fetched from the host for one packet.
const FETCH_MAX: usize = 64 << 10;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// A vsock device.
#[derive(Debug)]
pub struct Vsock {
    cid: u32,
    buffer_bytes: u32,
    pub(super) streams: Streams,
    pub(super) host: Host,
    pub(super) started: Instant,
    /// Somebody may knock.
    pub(super) knocking: bool,
    /// The guest was restored and must be told that its connections are gone.
    reset_due: bool,
    /// Brings the device back after a turn that left work behind.
    pub(super) again: Notifier,
    scratch: Vec<u8>,
}

impl Vsock {
    /// The device that `config` describes, called at `listener`, which may outlive it.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(config: &VsockConfig, listener: Arc<VsockListener>) -> io::Result<Self> {
        Ok(Self {
            cid: config.cid,
            buffer_bytes: config.buffer_bytes,
            streams: Streams::new(config.cid, config.connections, config.buffer_bytes),
            host: Host::new(listener)?,
            started: Instant::now(),
            knocking: true,
            reset_due: false,
            again: Notifier::new()?,
            scratch: vec![0; FETCH_MAX],
        })
    }

    /// All the work there is, as far as a turn allows. The guest can fill a turn with either
    /// direction: so each comes first when its own queue is served.
    fn serve(&mut self, to_guest_first: bool, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        self.streams.tick(self.started.elapsed());
        self.act();
        self.let_callers_in();
        self.announce_reset(turn)?;
        if to_guest_first {
            self.fill(turn)?;
        }
        let stalled = self.transmit(turn)?;
        self.fill(turn)?;
        if stalled && self.streams.takes_packets() {
            self.again.signal();
        }
        self.set_alarm();
        Ok(())
    }

    /// Packets of the guest. True if some are left because too many answers wait.
    fn transmit(&mut self, turn: &mut Turn<'_>) -> Result<bool, GuestError> {
        while self.streams.takes_packets() {
            let Some(chain) = turn.next(TRANSMIT)? else { return Ok(false) };
            self.take_packet(&chain, turn)?;
            self.act();
            turn.spend(chain.readable.len());
            turn.complete(TRANSMIT, chain.head, 0)?;
        }
        Ok(true)
    }

    fn take_packet(&mut self, chain: &Chain, turn: &Turn<'_>) -> Result<(), GuestError> {
        let Some(room) = chain.readable.len().checked_sub(HEADER_LEN as u64) else {
            self.streams.metrics.lost_packets += 1;
            return Ok(());
        };
        let mut bytes = [0; HEADER_LEN];
        chain.readable.read(turn.memory(), 0, &mut bytes)?;
        let header = Header::parse(&bytes);
        // More than the buffer is more than the credit, whatever the stream.
        if u64::from(header.len) > room || header.len > self.buffer_bytes {
            self.streams.reject(&header);
            return Ok(());
        }
        let len = header.len as usize;
        if self.scratch.len() < len {
            self.scratch.resize(len, 0);
        }
        let payload = &mut self.scratch[..len];
        chain.readable.read(turn.memory(), HEADER_LEN as u64, payload)?;
        self.streams.receive(&header, payload);
        Ok(())
    }

    /// Packets for the guest, while there are any and it has buffers.
    fn fill(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while self.streams.has_packet() {
            let Some(chain) = turn.next(RECEIVE)? else { return Ok(()) };
            match self.give_packet(&chain, turn)? {
                Some(written) => {
                    turn.spend(written);
                    turn.complete(RECEIVE, chain.head, written)?;
                }
                None => turn.put_back(RECEIVE, 1),
            }
        }
        Ok(())
    }

    /// Puts the next packet into `chain`; `None` if there is none after all.
    fn give_packet(&mut self, chain: &Chain, turn: &Turn<'_>) -> Result<Option<u64>, GuestError> {
        let room = chain.writable.len().saturating_sub(HEADER_LEN as u64);
        if room == 0 {
            let rule = "a receive buffer without room for a byte of data";
            return Err(GuestError::Device { kind: DeviceKind::Vsock, rule });
        }
        let room = room.min(FETCH_MAX as u64) as u32;
        while let Some(outgoing) = self.streams.next_packet() {
            let header = match outgoing {
                Outgoing::Packet(header) => Some(header),
                Outgoing::Data { key, limit } => self.fetch(key, limit.min(room)),
            };
            self.act();
            let Some(header) = header else { continue };
            let payload = &self.scratch[..header.len as usize];
            chain.writable.write(turn.memory(), 0, &header.bytes())?;
            chain.writable.write(turn.memory(), HEADER_LEN as u64, payload)?;
            return Ok(Some((HEADER_LEN + payload.len()) as u64));
        }
        Ok(None)
    }

    /// Bytes of the host into `scratch`, and the header for them.
    fn fetch(&mut self, key: Key, limit: u32) -> Option<Header> {
        let bytes = &mut self.scratch[..limit as usize];
        match self.host.stream(key).map_or(Fetched::Gone, |socket| socket.fetch(bytes)) {
            Fetched::Bytes(len) => return Some(self.streams.data(key, len as u32)),
            Fetched::None => self.streams.no_data(key),
            Fetched::End => self.streams.host_shut(key, Halves::SEND),
            Fetched::Gone => self.streams.host_shut(key, Halves::BOTH),
        }
        None
    }

    fn announce_reset(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        if !self.reset_due {
            return Ok(());
        }
        let Some(chain) = turn.next(EVENTS)? else { return Ok(()) };
        chain.writable.write(turn.memory(), 0, &TRANSPORT_RESET)?;
        turn.complete(EVENTS, chain.head, TRANSPORT_RESET.len() as u64)?;
        self.reset_due = false;
        self.streams.metrics.transport_resets += 1;
        Ok(())
    }

    fn close_all(&mut self) {
        self.streams.clear();
        self.host.clear();
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_space(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn serve_queue(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        self.serve(index == RECEIVE, turn)
    }

    fn wake(&self) -> Option<Notifier> {
        Some(self.again.clone())
    }

    fn watch(&self) -> Option<Watch> {
        Some(self.host.watch())
    }

    fn serve_wake(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        self.take_changes();
        self.serve(true, turn)
    }

    fn reset(&mut self) {
        self.close_all();
        self.reset_due = false;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { cid: self.cid })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(_) = state else {
            return Err(RestoreError::Kind { expected: DeviceKind::Vsock });
        };
        self.close_all();
        self.reset_due = true;
        Ok(())
    }

    fn metrics(&self) -> DeviceMetrics {
        DeviceMetrics::Vsock(self.streams.metrics)
    }
}
