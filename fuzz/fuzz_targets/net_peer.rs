//! Any bytes from a network interface's other side, in any pieces, into buffers of any size: no panic, no
//! hang, and the device serves on.
//!
//! The first byte chooses what guest and device agreed on; then, again and again: two bytes with the size
//! of a receive buffer (0: none), one with the number of bytes to come, and these.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::DeviceView;
use devices::bus::BusDevice;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::net::{Net, NetPlan};
use libfuzzer_sys::fuzz_target;
use memory::{Gpa, GuestMemory};

const RAM: u64 = 1 << 20;
const SIZE: u16 = 64;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;

const STATUS: u64 = 0x70;
/// Status, mergeable buffers, checksums that need not be looked at.
const FEATURES: u32 = 1 << 16 | 1 << 15 | 1 << 1;

struct Guest {
    transport: MmioTransport,
    view: DeviceView,
    available: u16,
}

impl Guest {
    fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn start(&self, features: u32) {
        for status in [0, 1, 3] {
            self.set(STATUS, status);
        }
        for (half, value) in [(0, features), (1, 1)] {
            self.set(0x24, half);
            self.set(0x20, value);
        }
        self.set(STATUS, 11);
        self.set(0x30, 0);
        self.set(0x38, SIZE.into());
        for (register, address) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
            self.set(register, address as u32);
        }
        self.set(0x44, 1);
        self.set(STATUS, 15);
    }

    fn offer(&mut self, len: u16) {
        let slot = self.available % SIZE;
        let write = |address, bytes: &[u8]| self.view.write(Gpa(address), bytes).expect("RAM");
        let descriptor = u128::from(BUFFERS) | u128::from(len) << 64 | 2 << 96;
        write(DESCRIPTORS + 16 * u64::from(slot), &descriptor.to_le_bytes());
        write(AVAILABLE + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        write(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    fn status(&self) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(STATUS, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("guest memory"));
    let view = DeviceView::new(memory);
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let mac = "52:54:00:12:34:56".parse().expect("an address");
    let plan = NetPlan::over_stream(ours, mac, Some(1500)).expect("an epoll");
    let transport = MmioTransport::new(Box::new(Net::new(plan)), view.clone(), Arc::new(|| ()))
        .expect("eventfds");
    let mut guest = Guest { transport, view, available: 0 };
    guest.start(FEATURES & (u32::from(*choice) * 0x101_0101));

    let mut rest = input;
    while let [low, high, count, after @ ..] = rest {
        let (bytes, after) = after.split_at(after.len().min((*count).into()));
        // A buffer without room for a header stops the device, as it should.
        match u16::from_le_bytes([*low, *high]) {
            0 => {}
            len => guest.offer(len.max(12)),
        }
        // A device that has seen enough closes its end.
        let _ = theirs.write(bytes);
        guest.transport.serve_wake();
        guest.transport.serve_queue(0);
        rest = after;
    }
    // More buffers than the queue holds stop it, as they should.
    assert_eq!(guest.status() & !0x40, 15);
});
