//! A TAP interface: the kernel takes and gives frames with virtio-net's own header before them.

use std::io::{self, ErrorKind};

use tap::{Offloads, Tap};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
};

use super::retry::Retry;
use super::{Backend, Faults, Frame, Sent};
use crate::Watch;
use crate::virtio::net::NetError;
use crate::virtio::net::config::{FRAME_MAX, FRAME_MIN, MTU_MAX};
use crate::virtio::net::header::{HEADER_LEN, Header};

/// Tokens in the watch.
const TAP: u64 = 0;
const RETRY: u64 = 1;

/// What the kernel can be left to do with a guest's frames, whatever its version.
const HOST_FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_UFO;

const ALL_OFFLOADS: Offloads =
    Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true };

pub(in crate::virtio::net) struct TapBackend {
    tap: Tap,
    watch: Watch,
    retry: Retry,
    /// What the kernel can leave to the guest.
    granted: Offloads,
    /// What it leaves to this driver.
    accepted: Offloads,
    up: bool,
    readable: bool,
    /// A packet that was read and not consumed yet: its length, else 0.
    held: usize,
    packet: Box<[u8]>,
    faults: Faults,
}

impl TapBackend {
    pub(in crate::virtio::net) fn open(name: &str) -> Result<Self, NetError> {
        let tap = Tap::open(name)?;
        let (watch, retry) = watches(&tap).map_err(NetError::host("watch a TAP interface"))?;
        let granted = tap.grant_offloads(ALL_OFFLOADS);
        Ok(Self {
            tap,
            watch,
            retry,
            granted,
            accepted: Offloads::default(),
            up: true,
            readable: true,
            held: 0,
            packet: vec![0; HEADER_LEN + FRAME_MAX].into(),
            faults: Faults::default(),
        })
    }

    /// What the interface takes now, as far as a guest can be told.
    pub(in crate::virtio::net) fn mtu(&self) -> Option<u16> {
        let mtu = self.tap.mtu().ok()?;
        Some(u16::try_from(mtu).unwrap_or(MTU_MAX).min(MTU_MAX))
    }

    fn lost(&mut self) {
        if !self.up {
            return;
        }
        tracing::warn!("tap {}: gone: the guest's link is down until it is back", self.tap.name());
        (self.up, self.readable, self.held) = (false, false, 0);
        self.faults.links_lost += 1;
        self.watch.remove(&self.tap);
        self.retry.start();
    }

    fn look_for_it(&mut self) {
        if self.up || self.tap.attach().is_err() || self.watch.add(&self.tap, TAP).is_err() {
            return;
        }
        tracing::info!("tap {}: back: the guest's link is up", self.tap.name());
        (self.up, self.readable) = (true, true);
        self.retry.stop();
        self.set_offloads();
    }

    fn set_offloads(&mut self) {
        if let Err(error) = self.tap.set_offloads(self.accepted)
            && !tap::is_gone(&error)
        {
            // It has granted as much before, so this does not happen.
            tracing::warn!("tap {}: set offloads: {error}", self.tap.name());
        }
    }

    /// Reads until there is a frame; false if there is none now.
    fn read(&mut self) -> bool {
        while self.readable && self.held == 0 {
            match self.tap.read(&mut self.packet) {
                Ok(len) if len >= HEADER_LEN + FRAME_MIN => self.held = len,
                Ok(_) => self.faults.bad_frames += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => self.lost(),
            }
        }
        self.held > 0
    }
}

fn watches(tap: &Tap) -> io::Result<(Watch, Retry)> {
    let (watch, retry) = (Watch::new()?, Retry::new()?);
    watch.add(tap, TAP)?;
    watch.add(&retry, RETRY)?;
    Ok((watch, retry))
}

impl Backend for TapBackend {
    fn features(&self) -> u64 {
        let granted = [
            (self.granted.checksum, VIRTIO_NET_F_GUEST_CSUM),
            (self.granted.tso4, VIRTIO_NET_F_GUEST_TSO4),
            (self.granted.tso6, VIRTIO_NET_F_GUEST_TSO6),
            (self.granted.ecn, VIRTIO_NET_F_GUEST_ECN),
            (self.granted.ufo, VIRTIO_NET_F_GUEST_UFO),
        ];
        granted.iter().filter(|(on, _)| *on).fold(HOST_FEATURES, |all, (_, bit)| all | 1 << bit)
    }

    fn set_features(&mut self, features: u64) {
        let has = |feature: u32| features & 1 << feature != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        // All others need the checksum (5.1.3.1), and the kernel refuses them without.
        self.accepted = Offloads {
            checksum,
            tso4: checksum && has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: checksum && has(VIRTIO_NET_F_GUEST_ECN),
            ufo: checksum && has(VIRTIO_NET_F_GUEST_UFO),
        };
        if self.up {
            self.set_offloads();
        }
    }

    fn watch(&self) -> Watch {
        self.watch.clone()
    }

    fn attend(&mut self) {
        let (mut closed, mut retry) = (false, false);
        let readable = &mut self.readable;
        self.watch.take(|change| match change.token {
            TAP => {
                *readable |= change.readable;
                closed |= change.closed;
            }
            _ => retry = true,
        });
        match () {
            // While it vanishes, reads may still find it empty.
            () if closed => self.lost(),
            () if retry => self.look_for_it(),
            () => {}
        }
    }

    fn is_up(&self) -> bool {
        self.up
    }

    fn peek(&mut self) -> Option<Frame<'_>> {
        if !self.read() {
            return None;
        }
        let (header, bytes) = self.packet[..self.held].split_first_chunk()?;
        Some(Frame { header: Header::parse(header), bytes })
    }

    fn consume(&mut self) {
        self.held = 0;
    }

    fn send(&mut self, packet: &mut [u8]) -> Sent {
        if !self.up {
            return Sent::Refused;
        }
        match self.tap.write(packet) {
            Ok(()) => Sent::Taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Full,
            Err(error) => {
                // Else the interface is down, or the kernel does not like the header.
                if tap::is_gone(&error) {
                    self.lost();
                }
                Sent::Refused
            }
        }
    }

    fn faults(&self) -> Faults {
        self.faults
    }
}
