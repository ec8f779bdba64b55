//! Any bytes as the transmit queue of a network interface, its descriptors, headers and frames: each turn
//! ends, what comes out are whole frames, and the device works again after a reset.
//!
//! The first byte chooses what guest and device agreed on; the rest is laid over the rings and the buffers.
#![no_main]

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::DeviceView;
use devices::bus::BusDevice;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::net::{Net, NetPlan};
use libfuzzer_sys::fuzz_target;
use memory::{Gpa, GuestMemory};

const RAM: u64 = 1 << 20;
/// Rings of a queue of 16, packed so that a short input reaches all of them.
const QUEUE_SIZE: u32 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x1100;
const USED: u64 = 0x1200;
const BUFFERS: u64 = 0x1300;

const TRANSMIT: u32 = 1;
const STATUS: u64 = 0x70;
const NEEDS_RESET: u32 = 0x40;
/// Largest frame: an Ethernet header, a VLAN's tag, the largest packet.
const FRAME_MAX: usize = 14 + 4 + 65535;

fn start(transport: &MmioTransport, features: u32) {
    let set = |register, value: u32| transport.write(register, &value.to_le_bytes());
    for status in [0, 1, 3] {
        set(STATUS, status);
    }
    for (half, value) in [(0, features), (1, 1)] {
        set(0x24, half);
        set(0x20, value);
    }
    set(STATUS, 11);
    set(0x30, TRANSMIT);
    set(0x38, QUEUE_SIZE);
    for (register, address) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
        set(register, address as u32);
    }
    set(0x44, 1);
    set(STATUS, 15);
}

fn status(transport: &MmioTransport) -> u32 {
    let mut bytes = [0; 4];
    transport.read(STATUS, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Takes the stream apart; what is left is the beginning of a frame at most.
fn take_frames(theirs: &mut UnixStream, waiting: &mut Vec<u8>) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match theirs.read(&mut bytes) {
            Ok(len) => waiting.extend(&bytes[..len]),
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    while let Some((prefix, rest)) = waiting.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*prefix) as usize;
        assert!((14..=FRAME_MAX).contains(&len), "a frame of {len} bytes");
        if rest.len() < len {
            return;
        }
        waiting.drain(..4 + len);
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("guest memory"));
    let view = DeviceView::new(memory);
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let mac = "52:54:00:12:34:56".parse().expect("an address");
    let plan = NetPlan::over_stream(ours, mac, None).expect("an epoll");
    let transport = MmioTransport::new(Box::new(Net::new(plan)), view.clone(), Arc::new(|| ()))
        .expect("eventfds");
    // Checksums left to the device, or not.
    start(&transport, u32::from(choice & 1));

    let room = (RAM - DESCRIPTORS) as usize;
    view.write(Gpa(DESCRIPTORS), &input[..input.len().min(room)]).expect("inside RAM");
    let mut waiting = Vec::new();
    for _ in 0..4 {
        transport.serve_queue(TRANSMIT as usize);
        transport.serve_wake();
        take_frames(&mut theirs, &mut waiting);
    }
    // Whatever it was, the device either serves on or says that it wants a reset.
    assert_eq!(status(&transport) & !NEEDS_RESET, 15);

    view.write(Gpa(DESCRIPTORS), &[0; (BUFFERS - DESCRIPTORS) as usize]).expect("inside RAM");
    start(&transport, 0);
    transport.serve_queue(TRANSMIT as usize);
    assert_eq!(status(&transport), 15, "a reset makes it as good as new");
});
