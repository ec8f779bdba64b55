//! The running device.

use std::fmt;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::announce;
use super::backend::{Backend, Sent};
use super::config::{FRAME_MAX, FRAME_MIN, QUEUES, RECEIVE, TRANSMIT};
use super::header::{HEADER_LEN, Header};
use super::receive::{Delivery, Receiver};
use super::{NetMetrics, NetPlan, NetState};
use crate::Watch;
use crate::sync::lock;
use crate::virtio::queue::{QueueError, Segments};
use crate::virtio::{
    DeviceKind, DeviceMetrics, DeviceState, GuestError, RestoreError, Turn, VirtioDevice,
    read_space,
};

/// A network interface with one pair of queues.
pub struct Net {
    plan: NetPlan,
    /// What the driver and this device agreed on.
    features: u64,
    /// The driver is ready, and the backend does not know it yet.
    activated: bool,
    /// The guest goes on after a restore, and its networks have not been told.
    announce: bool,
    /// What the guest sees of the link.
    link_up: bool,
    /// The backend had no room for the oldest request.
    waits: bool,
    /// A header and a frame of the guest.
    packet: Vec<u8>,
    receiver: Receiver,
    metrics: NetMetrics,
}

impl Net {
    /// The interface that `plan` describes. One device at a time may use a plan.
    pub fn new(plan: NetPlan) -> Self {
        let link_up = lock(&plan.backend).is_up();
        Self {
            plan,
            features: 0,
            activated: false,
            announce: false,
            link_up,
            waits: false,
            packet: Vec::with_capacity(HEADER_LEN + FRAME_MAX),
            receiver: Receiver::default(),
            metrics: NetMetrics::default(),
        }
    }

    /// Does `work` with the backend, and what comes before and after any.
    fn with_backend(
        &mut self,
        turn: &mut Turn<'_>,
        work: impl FnOnce(&mut Self, &mut dyn Backend, &mut Turn<'_>) -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let backend = Arc::clone(&self.plan.backend);
        let backend = &mut **lock(&backend);
        if std::mem::take(&mut self.activated) {
            backend.set_features(self.features);
            // What changed before this driver was there is told to nobody else.
            backend.attend();
        }
        if self.announce && backend.is_up() {
            // Full is as lost as on the wire.
            backend.send(&mut announce::packet(self.plan.mac));
            self.announce = false;
        }
        let worked = work(self, backend, turn);
        backend.flush();
        if backend.is_up() != self.link_up {
            self.link_up = !self.link_up;
            turn.change_config();
        }
        worked
    }

    fn receive(
        &mut self,
        backend: &mut dyn Backend,
        turn: &mut Turn<'_>,
    ) -> Result<(), GuestError> {
        let mergeable = self.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        while let Some(frame) = backend.peek() {
            let len = frame.bytes.len() as u64;
            match self.receiver.deliver(frame, mergeable, turn)? {
                Delivery::Done => {
                    self.metrics.received_frames += 1;
                    self.metrics.received_bytes += len;
                }
                Delivery::Never => self.metrics.dropped_received += 1,
                Delivery::Wait => {
                    self.metrics.receive_waits += 1;
                    return Ok(());
                }
            }
            backend.consume();
        }
        Ok(())
    }

    fn transmit(
        &mut self,
        backend: &mut dyn Backend,
        turn: &mut Turn<'_>,
    ) -> Result<(), GuestError> {
        self.waits = false;
        while let Some(chain) = turn.next(TRANSMIT)? {
            match self.send(&chain.readable, backend, turn)? {
                Sent::Full => {
                    turn.put_back(TRANSMIT, 1);
                    self.waits = true;
                    self.metrics.send_waits += 1;
                    return Ok(());
                }
                Sent::Taken | Sent::Refused => turn.complete(TRANSMIT, chain.head, 0)?,
            }
        }
        Ok(())
    }

    /// Sends one request of the guest, or counts why not.
    fn send(
        &mut self,
        request: &Segments,
        backend: &mut dyn Backend,
        turn: &mut Turn<'_>,
    ) -> Result<Sent, QueueError> {
        let len = request.len();
        if !read_packet(request, self.features, &mut self.packet, turn)? {
            self.metrics.bad_requests += 1;
            return Ok(Sent::Refused);
        }
        let sent = if backend.is_up() { backend.send(&mut self.packet) } else { Sent::Refused };
        match sent {
            Sent::Taken => {
                self.metrics.sent_frames += 1;
                self.metrics.sent_bytes += len - HEADER_LEN as u64;
                turn.spend(len);
            }
            Sent::Refused => self.metrics.dropped_sent += 1,
            Sent::Full => {}
        }
        Ok(sent)
    }
}

/// Copies a request out of guest memory, so that no vCPU changes it once it is checked, with its
/// header in its sane form; false if it is no frame.
fn read_packet(
    request: &Segments,
    features: u64,
    packet: &mut Vec<u8>,
    turn: &Turn<'_>,
) -> Result<bool, QueueError> {
    let len = usize::try_from(request.len()).unwrap_or(usize::MAX);
    if !(HEADER_LEN + FRAME_MIN..=HEADER_LEN + FRAME_MAX).contains(&len) {
        return Ok(false);
    }
    packet.resize(len, 0);
    request.read(turn.memory(), 0, packet)?;
    let Some((header, frame)) = packet.split_first_chunk_mut() else { return Ok(false) };
    let Some(sane) = Header::parse(header).sanitized(frame.len(), features) else {
        return Ok(false);
    };
    *header = sane.bytes(0);
    Ok(true)
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        let mtu = if self.plan.mtu.is_some() { 1 << VIRTIO_NET_F_MTU } else { 0 };
        let always = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        lock(&self.plan.backend).features() | always | mtu
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu (5.1.4).
        let mut space = [0; 12];
        let status = if self.link_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        space[..6].copy_from_slice(&self.plan.mac.bytes());
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[10..].copy_from_slice(&self.plan.mtu.unwrap_or(0).to_le_bytes());
        read_space(&space, offset, data);
    }

    fn activate(&mut self, features: u64, _ready: &[bool]) {
        self.features = features;
        // The backend is told on the I/O thread.
        self.activated = true;
    }

    fn serve_queue(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        self.with_backend(turn, |net, backend, turn| match index {
            RECEIVE => net.receive(backend, turn),
            _ => net.transmit(backend, turn),
        })
    }

    fn watch(&self) -> Option<Watch> {
        Some(self.plan.watch.clone())
    }

    fn serve_wake(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        self.with_backend(turn, |net, backend, turn| {
            backend.attend();
            if net.waits {
                net.transmit(backend, turn)?;
            }
            net.receive(backend, turn)
        })
    }

    fn reset(&mut self) {
        (self.features, self.activated, self.announce, self.waits) = (0, false, false, false);
    }

    fn state(&self) -> DeviceState {
        DeviceState::Net(NetState { mac: self.plan.mac, mtu: self.plan.mtu })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        self.state().must_equal(state)?;
        self.announce = true;
        Ok(())
    }

    fn metrics(&self) -> DeviceMetrics {
        let faults = lock(&self.plan.backend).faults();
        DeviceMetrics::Net(NetMetrics {
            bad_frames: faults.bad_frames,
            bad_streams: faults.bad_streams,
            links_lost: faults.links_lost,
            ..self.metrics
        })
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("plan", &self.plan).finish_non_exhaustive()
    }
}
