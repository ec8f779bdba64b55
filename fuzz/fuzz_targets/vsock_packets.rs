//! A guest and programs of the host that do anything with a vsock device: no turn panics or hangs, what the
//! guest is given are whole packets, and the device works again after a reset.
//!
//! The input is a list of acts, a byte that chooses one and then its arguments; what is missing is zero.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use devices::DeviceView;
use devices::bus::BusDevice;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::vsock::{Vsock, VsockConfig, VsockListener};
use libfuzzer_sys::fuzz_target;
use memory::{Gpa, GuestMemory};

const RAM: u64 = 1 << 20;
const QUEUE_SIZE: u16 = 8;
/// A page for the rings of each queue, then as much for each of its buffers.
const RINGS: u64 = 0x1000;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const BUFFERS: u64 = 0x1_0000;
const BUFFER_LEN: u64 = 0x2000;

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const QUEUES: u64 = 3;
const STATUS: u64 = 0x70;
const WRITE: u16 = 2;
const HEADER_LEN: usize = 44;
const CID: u32 = 3;
const REQUEST: u16 = 1;
/// Ports that the host serves.
const SERVED: std::ops::Range<u32> = 1..3;
const BUFFER_BYTES: u32 = 4 << 10;
const CONNECTIONS: u32 = 8;

/// The input, which never ends.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// Mostly a small number.
    fn count(&mut self) -> u32 {
        match self.byte() {
            255 => self.word(),
            small => u32::from(small) * 32,
        }
    }

    /// Mostly one that means something.
    fn port(&mut self) -> u32 {
        match self.byte() {
            255 => self.word(),
            port @ 128.. => (1 << 30) + u32::from(port & 7),
            port => u32::from(port & 3),
        }
    }
}

/// The guest's side of the queues.
struct Guest {
    transport: MmioTransport,
    view: DeviceView,
    offered: [u16; 2],
    seen: [u16; 2],
}

impl Guest {
    fn new(config: &VsockConfig) -> Self {
        let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("guest memory"));
        let view = DeviceView::new(memory);
        let listener = VsockListener::open(config).expect("a socket");
        let device = Vsock::new(config, Arc::new(listener)).expect("descriptors");
        let transport = MmioTransport::new(Box::new(device), view.clone(), Arc::new(|| ()));
        let transport = transport.expect("eventfds");
        let mut guest = Self { transport, view, offered: [0; 2], seen: [0; 2] };
        guest.start();
        guest
    }

    fn start(&mut self) {
        let set = |register, value: u32| self.transport.write(register, &value.to_le_bytes());
        for status in [0, 1, 3] {
            set(STATUS, status);
        }
        for (half, features) in [(0, 0), (1, 1)] {
            set(0x24, half);
            set(0x20, features);
        }
        set(STATUS, 11);
        for queue in 0..QUEUES {
            self.view.write(Gpa(RINGS * (queue + 1)), &[0; RINGS as usize]).expect("RAM");
            set(0x30, queue as u32);
            set(0x38, QUEUE_SIZE.into());
            for (register, offset) in [(0x80, 0), (0x90, AVAILABLE), (0xa0, USED)] {
                set(register, (RINGS * (queue + 1) + offset) as u32);
            }
            set(0x44, 1);
        }
        set(STATUS, 15);
        (self.offered, self.seen) = ([0; 2], [0; 2]);
    }

    fn status(&self) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(STATUS, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn buffer(queue: u64, slot: u16) -> u64 {
        BUFFERS + (queue * u64::from(QUEUE_SIZE) + u64::from(slot)) * BUFFER_LEN
    }

    /// Offers the next buffer unless all are with the device.
    fn offer(&mut self, queue: u64, len: u32) -> bool {
        let at = queue as usize;
        if self.offered[at].wrapping_sub(self.seen[at]) == QUEUE_SIZE {
            return false;
        }
        let slot = self.offered[at] % QUEUE_SIZE;
        let flags = if queue == RECEIVE { WRITE } else { 0 };
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&Self::buffer(queue, slot).to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        let rings = RINGS * (queue + 1);
        self.offered[at] = self.offered[at].wrapping_add(1);
        for (address, bytes) in [
            (rings + u64::from(slot) * 16, &descriptor[..]),
            (rings + AVAILABLE + 4 + u64::from(slot) * 2, &slot.to_le_bytes()),
            (rings + AVAILABLE + 2, &self.offered[at].to_le_bytes()),
        ] {
            self.view.write(Gpa(address), bytes).expect("RAM");
        }
        true
    }

    fn send(&mut self, packet: &[u8]) {
        let slot = self.offered[TRANSMIT as usize] % QUEUE_SIZE;
        let room = self.offer(TRANSMIT, packet.len() as u32);
        if room {
            self.view.write(Gpa(Self::buffer(TRANSMIT, slot)), packet).expect("RAM");
        }
        self.transport.serve_queue(TRANSMIT as usize);
        self.used(TRANSMIT);
    }

    /// The packets that have come.
    fn hear(&mut self) -> Vec<Vec<u8>> {
        self.transport.serve_wake();
        let packets = self.used(RECEIVE);
        for packet in &packets {
            let len = u32::from_le_bytes(packet[24..28].try_into().expect("four"));
            assert_eq!(HEADER_LEN + len as usize, packet.len(), "a packet is whole");
            assert!((1..=7).contains(&packet[30]) && packet[31] == 0, "it has an operation");
        }
        packets
    }

    /// What the device has written into the buffers that it is done with.
    fn used(&mut self, queue: u64) -> Vec<Vec<u8>> {
        let (at, rings) = (queue as usize, RINGS * (queue + 1));
        let mut packets = Vec::new();
        let mut index = [0; 2];
        self.view.read(Gpa(rings + USED + 2), &mut index).expect("RAM");
        while self.seen[at] != u16::from_le_bytes(index) {
            let slot = self.seen[at] % QUEUE_SIZE;
            let mut entry = [0; 8];
            let address = rings + USED + 4 + u64::from(slot) * 8;
            self.view.read(Gpa(address), &mut entry).expect("RAM");
            let [head, len] =
                [0, 4].map(|i| u32::from_le_bytes(entry[i..i + 4].try_into().expect("four")));
            assert_eq!(head, u32::from(slot), "buffers are used in their order");
            let mut packet = vec![0; len as usize];
            self.view.read(Gpa(Self::buffer(queue, slot)), &mut packet).expect("RAM");
            packets.push(packet);
            self.seen[at] = self.seen[at].wrapping_add(1);
        }
        packets
    }
}

/// Programs of the host.
struct Host<'a> {
    path: &'a Path,
    listeners: Vec<UnixListener>,
    streams: Vec<UnixStream>,
}

impl<'a> Host<'a> {
    fn new(path: &'a Path) -> Self {
        let listen = |port| {
            let socket =
                UnixListener::bind(format!("{}_{port}", path.display())).expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            socket
        };
        Self { path, listeners: SERVED.map(listen).collect(), streams: Vec::new() }
    }

    fn add(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket");
        self.streams.push(stream);
    }

    fn take_calls(&mut self) {
        for index in 0..self.listeners.len() {
            while let Ok((stream, _)) = self.listeners[index].accept() {
                self.add(stream);
            }
        }
    }

    fn call(&mut self, said: &[u8]) {
        if let Ok(mut stream) = UnixStream::connect(self.path) {
            // It may have hung up.
            let _ = stream.write_all(said);
            self.add(stream);
        }
    }

    fn stream(&mut self, which: u8) -> Option<&mut UnixStream> {
        let count = self.streams.len().max(1);
        self.streams.get_mut(usize::from(which) % count)
    }

    fn hang_up(&mut self, which: u8) {
        if !self.streams.is_empty() {
            self.streams.swap_remove(usize::from(which) % self.streams.len());
        }
    }
}

/// A packet of the guest that is almost right.
fn packet(input: &mut Input<'_>) -> Vec<u8> {
    let (op, odd) = (input.byte(), input.byte());
    let (src_port, dst_port) = (input.port(), input.port());
    let (flags, payload) = (u32::from(input.byte()), (input.count() % (2 * BUFFER_BYTES)) >> 1);
    let (buf_alloc, fwd_cnt) = (input.count(), input.count());
    let payload = if op % 10 == 5 || odd == 1 { payload } else { 0 };
    let len = if odd == 2 { input.word() } else { payload };
    let src_cid = if odd == 3 { input.word() } else { CID };
    let dst_cid = if odd == 4 { input.word() } else { 2 };
    let kind = if odd == 5 { u32::from(input.byte()) } else { 1 };
    let kind_and_op = kind | u32::from(op % 10) << 16;
    let words = [src_cid, 0, dst_cid, 0, src_port, dst_port, len, kind_and_op, flags, buf_alloc];
    let mut bytes: Vec<u8> =
        words.into_iter().chain([fwd_cnt]).flat_map(u32::to_le_bytes).collect();
    bytes.resize(HEADER_LEN + payload as usize, op);
    bytes
}

fn act(guest: &mut Guest, host: &mut Host<'_>, input: &mut Input<'_>) {
    match input.byte() % 12 {
        0..4 => guest.send(&packet(input)),
        4 => guest.send(&input.bytes::<HEADER_LEN>()),
        5 => {
            let len = input.byte() as usize;
            guest.send(&vec![0xff; len]);
        }
        6 | 7 => {
            let len = HEADER_LEN as u32 + 1 + input.count() % 4096;
            while guest.offer(RECEIVE, len) {}
            guest.transport.serve_queue(RECEIVE as usize);
        }
        8 => {
            let port = input.port();
            match input.byte() {
                255 => host.call(&input.bytes::<40>()),
                0 => host.call(format!("CONNECT {port}").as_bytes()),
                _ => host.call(format!("CONNECT {port}\nmore").as_bytes()),
            }
        }
        9 => {
            let (which, len) = (input.byte(), input.count() % (1 << 16));
            let bytes = vec![which; len as usize];
            drop(host.stream(which).map(|stream| stream.write(&bytes)));
        }
        10 => {
            let mut bytes = [0; 4096];
            let which = input.byte();
            if let Some(Err(error)) = host.stream(which).map(|stream| stream.read(&mut bytes)) {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset));
            }
        }
        _ => {
            let (which, how) = (input.byte(), input.byte() % 4);
            let shut = match how {
                0 => Shutdown::Read,
                1 => Shutdown::Write,
                2 => Shutdown::Both,
                _ => return host.hang_up(which),
            };
            // Perhaps it is gone already.
            drop(host.stream(which).map(|stream| stream.shutdown(shut)));
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vsock");
    let mut config = VsockConfig::new(CID, &path);
    (config.connections, config.buffer_bytes) = (CONNECTIONS, BUFFER_BYTES);
    let mut guest = Guest::new(&config);
    let mut host = Host::new(&path);
    let mut input = Input(input);
    while !input.0.is_empty() {
        act(&mut guest, &mut host, &mut input);
        guest.hear();
        host.take_calls();
    }
    assert_eq!(guest.status(), 15, "packets do not stop the device");

    host.streams.clear();
    guest.start();
    // Those who hung up are forgotten, and there is room for one who calls now.
    guest.transport.serve_wake();
    host.call(b"CONNECT 77\n");
    while guest.offer(RECEIVE, 4096) {}
    guest.transport.serve_queue(RECEIVE as usize);
    let heard = (0..4).flat_map(|_| guest.hear()).collect::<Vec<_>>();
    let wanted = |packet: &&Vec<u8>| packet[20] == 77 && u16::from(packet[30]) == REQUEST;
    assert_eq!(heard.iter().filter(wanted).count(), 1, "a reset makes it as good as new");
});
