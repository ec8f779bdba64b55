//! Hostile guests against every device: any registers, any rings, any order.
//!
//! What must hold: nothing panics, every turn ends, and a reset makes the device as good as new.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use memory::GuestMemory;
use proptest::prelude::*;

use super::balloon::{Balloon, BalloonConfig, FrameBalloon};
use super::block::{Disk, DiskConfig};
use super::console::Console;
use super::net::{Net, NetPlan};
use super::rng::Rng;
use super::testing::*;
use super::vsock::{Vsock, VsockConfig, VsockListener};
use super::{DeviceKind, VirtioDevice};
use crate::bus::BusDevice;
use crate::input::InputSink;
use crate::output::Output;

const KINDS: [DeviceKind; 6] = [
    DeviceKind::Block,
    DeviceKind::Console,
    DeviceKind::Net,
    DeviceKind::Rng,
    DeviceKind::Balloon,
    DeviceKind::Vsock,
];

/// Something a guest can do.
#[derive(Clone, Debug)]
enum Act {
    /// Access a register of any width.
    Register { offset: u64, bytes: Vec<u8>, write: bool },
    /// A 32-bit register write with a value that means something.
    Set { register: u64, value: u32 },
    /// Write memory, most likely where the rings are.
    Memory { address: u64, bytes: Vec<u8> },
    /// Write a descriptor of the first few.
    Descriptor { queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16 },
    /// Make a chain available.
    Available { queue: usize, head: u16 },
    /// Initialise the device as the specification says.
    Start,
    /// Let the I/O thread run.
    Run,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..MEMORY_LEN,
        2 => (0..16_u64).prop_map(|i| DATA + i * 512),
        1 => MEMORY_LEN - 64..MEMORY_LEN + 64,
        1 => u64::MAX - 64..=u64::MAX,
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..64_u32, 4 => 0..0x2000_u32, 1 => any::<u32>(), 1 => Just(512), 1 => Just(16)]
}

fn act() -> impl Strategy<Value = Act> {
    let register = prop_oneof![
        Just(0x14_u64),
        Just(0x20),
        Just(0x24),
        Just(0x30),
        Just(0x38),
        Just(0x44),
        Just(0x50),
        Just(0x64),
        Just(0x70),
        Just(0x80),
        Just(0x90),
        Just(0xa0),
        Just(0x84),
        Just(0x104),
    ];
    let value = prop_oneof![0..16_u32, any::<u32>(), address().prop_map(|a| a as u32)];
    let bytes = proptest::collection::vec(any::<u8>(), 1..9);
    let ring = (0..5_usize, 0..0xb000_u64).prop_map(|(queue, offset)| rings(queue)[0] + offset);
    prop_oneof![
        2 => (0..0x1000_u64, bytes.clone(), any::<bool>())
            .prop_map(|(offset, bytes, write)| Act::Register { offset, bytes, write }),
        4 => (register, value).prop_map(|(register, value)| Act::Set { register, value }),
        3 => (prop_oneof![ring, 0..MEMORY_LEN - 8], bytes)
            .prop_map(|(address, bytes)| Act::Memory { address, bytes }),
        8 => (0..5_usize, 0..8_u16, address(), len(), 0..8_u16, 0..9_u16).prop_map(
            |(queue, index, address, len, flags, next)| {
                Act::Descriptor { queue, index, address, len, flags, next }
            }
        ),
        4 => (0..5_usize, 0..9_u16).prop_map(|(queue, head)| Act::Available { queue, head }),
        2 => Just(Act::Start),
        3 => Just(Act::Run),
    ]
}

struct Rig {
    driver: Driver,
    kind: DeviceKind,
    queues: usize,
    available: [u16; 8],
    _folder: tempfile::TempDir,
}

/// A network interface with frames to come, and then a link that is down.
fn net() -> Box<dyn VirtioDevice> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    for len in [60_u32, 1514, 65549] {
        theirs.write_all(&len.to_be_bytes()).unwrap();
        theirs.write_all(&vec![0x5a; len as usize]).unwrap();
    }
    let mac = "52:54:00:12:34:56".parse().unwrap();
    Box::new(Net::new(NetPlan::over_stream(ours, mac, Some(1500)).unwrap()))
}

impl Rig {
    fn new(kind: DeviceKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let memory = Arc::new(GuestMemory::with_bytes(MEMORY_LEN).unwrap());
        let device: Box<dyn VirtioDevice> = match kind {
            DeviceKind::Block => {
                let path = folder.path().join("disk");
                std::fs::write(&path, vec![7; 1 << 20]).unwrap();
                let overlay = Some(folder.path().join("overlay"));
                let config = DiskConfig { path, overlay, ..DiskConfig::default() };
                Box::new(Disk::new(config.plan().unwrap()))
            }
            DeviceKind::Console => {
                let console = Console::new(Output::new(io::sink())).unwrap();
                console.input().push(b"typed before");
                Box::new(console)
            }
            DeviceKind::Net => net(),
            DeviceKind::Rng => Box::new(Rng::new()),
            DeviceKind::Balloon => {
                let config = BalloonConfig {
                    guest_pages: (MEMORY_LEN >> 12) as u32,
                    deflate_on_oom: true,
                    free_page_reporting: true,
                };
                let memory = FrameBalloon::new(Arc::clone(&memory));
                let balloon = Balloon::new(config, Box::new(memory)).unwrap();
                balloon.handle().set_target(3).unwrap();
                balloon.handle().request_statistics();
                Box::new(balloon)
            }
            DeviceKind::Vsock => {
                let config = VsockConfig::new(3, folder.path().join("vsock"));
                let listener = Arc::new(VsockListener::open(&config).unwrap());
                Box::new(Vsock::new(&config, listener).unwrap())
            }
        };
        let queues = device.queue_sizes().len();
        let driver = Driver::with_memory(memory, device);
        Self { driver, kind, queues, available: [0; 8], _folder: folder }
    }

    fn act(&mut self, act: Act) {
        let driver = &mut self.driver;
        match act {
            Act::Register { offset, mut bytes, write } => {
                let len = bytes.len().min((0x1000 - offset) as usize);
                if write {
                    driver.transport.write(offset, &bytes[..len]);
                } else {
                    driver.transport.read(offset, &mut bytes[..len]);
                }
            }
            Act::Set { register, value } => driver.set(register, value),
            Act::Memory { address, bytes } => driver.write(address, &bytes),
            Act::Descriptor { queue, index, address, len, flags, next } => {
                driver.descriptor(queue, index, address, len, flags, next);
            }
            Act::Available { queue, head } => self.offer(queue, head),
            Act::Start => self.start(),
            Act::Run => driver.run(),
        }
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let slot = self.available[queue];
        let ring = rings(queue)[1];
        self.driver.write(ring + 4 + 2 * u64::from(slot % 16), &head.to_le_bytes());
        self.available[queue] = slot.wrapping_add(1);
        self.driver.write(ring + 2, &self.available[queue].to_le_bytes());
        self.driver.set(0x50, queue as u32);
    }

    fn start(&mut self) {
        let features = if self.kind == DeviceKind::Balloon { 0b10_0010 } else { 0 };
        self.available = [0; 8];
        self.driver.start(features);
        for queue in 0..self.queues {
            // Small rings, so that a few descriptors fill them.
            self.driver.set(0x30, queue as u32);
            self.driver.set(0x44, 0);
            self.driver.set_up_queue(queue, 16);
        }
    }

    /// After a reset the device does its work as if nothing had been.
    fn expect_as_new(&mut self) {
        self.driver.run();
        self.start();
        let driver = &mut self.driver;
        match self.kind {
            DeviceKind::Rng => assert_eq!(driver.request(0, &[(DATA, 32, true)]), 32),
            DeviceKind::Console => {
                assert_eq!(driver.request(1, &[(DATA, 32, false)]), 0);
            }
            DeviceKind::Net => {
                driver.write(DATA, &[0; 12]);
                assert_eq!(driver.request(1, &[(DATA, 12 + 60, false)]), 0);
            }
            DeviceKind::Balloon => {
                driver.write(DATA, &700_u32.to_le_bytes());
                assert_eq!(driver.request(0, &[(DATA, 4, false)]), 0);
            }
            DeviceKind::Block => {
                driver.write(DATA, &[0; 16]);
                let buffers = [(DATA, 16, false), (DATA + 512, 512, true), (DATA + 100, 1, true)];
                assert_eq!(driver.request(0, &buffers), 513);
                assert_eq!(driver.read(DATA + 100, 1), [0]);
            }
            DeviceKind::Vsock => {
                driver.write(DATA, &[0; 44]);
                assert_eq!(driver.request(1, &[(DATA, 44, false)]), 0);
                assert_eq!(driver.request(0, &[(DATA, 64, true)]), 44, "answered by a reset");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn hostile_guests_harm_nobody(
        kind in proptest::sample::select(&KINDS[..]),
        acts in proptest::collection::vec(act(), 1..120),
    ) {
        let mut rig = Rig::new(kind);
        rig.start();
        for act in acts {
            rig.act(act);
        }
        rig.expect_as_new();
    }
}

/// A guest that refills the queue while it is served, from another vCPU.
#[test]
fn a_queue_that_never_empties_does_not_hold_the_thread() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        rig.start();
        let queue =
            usize::from(matches!(kind, DeviceKind::Console | DeviceKind::Net | DeviceKind::Vsock));
        // An available index ahead by the whole queue, again and again.
        for round in 1..100_u16 {
            rig.driver.descriptor(
                queue,
                0,
                DATA,
                16,
                NEXT * u16::from(kind == DeviceKind::Block),
                1,
            );
            rig.driver.descriptor(queue, 1, DATA, 1, WRITE, 0);
            if kind == DeviceKind::Rng {
                rig.driver.descriptor(queue, 0, DATA, 16, WRITE, 0);
            }
            rig.driver.set_available_index(queue, round.wrapping_mul(16));
            rig.driver.set(0x50, queue as u32);
            rig.driver.run_once();
        }
        assert_eq!(rig.driver.status(), DRIVER_OK, "{kind:?}");
        assert_eq!(rig.driver.used(queue).len(), 99 * 16, "{kind:?}");
    }
}
