//! Any bytes as the rings, descriptors and buffers of a running virtio device: each turn ends, without a
//! panic, and the device works again after a reset.
//!
//! The first byte chooses the device and the queue; the rest is laid over the rings and the buffers.
#![no_main]

use std::sync::Arc;

use devices::DeviceView;
use devices::bus::BusDevice;
use devices::output::Output;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonConfig, FrameBalloon};
use devices::virtio::block::{Disk, DiskConfig};
use devices::virtio::console::Console;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;
use memory::{Gpa, GuestMemory};

const RAM: u64 = 1 << 20;
/// Rings of a queue of 16, packed so that a short input reaches all of them.
const QUEUE_SIZE: u32 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x1100;
const USED: u64 = 0x1200;
const BUFFERS: u64 = 0x1300;

const STATUS: u64 = 0x70;
const NEEDS_RESET: u32 = 0x40;

fn device(kind: u8, memory: &Arc<GuestMemory>, folder: &std::path::Path) -> Box<dyn VirtioDevice> {
    match kind {
        0 => Box::new(Rng::new()),
        1 => Box::new(Console::new(Output::new(std::io::sink())).expect("an eventfd")),
        2 => {
            let config = BalloonConfig {
                guest_pages: (RAM >> 12) as u32,
                deflate_on_oom: true,
                free_page_reporting: true,
            };
            let frames = FrameBalloon::new(Arc::clone(memory));
            Box::new(Balloon::new(config, Box::new(frames)).expect("an eventfd"))
        }
        _ => {
            let path = folder.join("disk");
            std::fs::write(&path, vec![1; 64 << 10]).expect("a temporary file");
            let overlay = (kind == 3).then(|| folder.join("overlay"));
            let config = DiskConfig { path, overlay, ..DiskConfig::default() };
            Box::new(Disk::new(config.plan().expect("a good disk")))
        }
    }
}

fn start(transport: &MmioTransport, queue: u32) {
    let set = |register, value: u32| transport.write(register, &value.to_le_bytes());
    for status in [0, 1, 3] {
        set(STATUS, status);
    }
    set(0x24, 0);
    // Statistics and reporting for the balloon; nobody else has these bits on offer.
    set(0x20, if transport.kind() as u32 == 5 { 0b10_0010 } else { 0 });
    set(0x24, 1);
    set(0x20, 1);
    set(STATUS, 11);
    set(0x30, queue);
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

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("guest memory"));
    let view = DeviceView::new(Arc::clone(&memory));
    let device = device(choice % 5, &memory, folder.path());
    let queue = u32::from(choice / 5) % device.queue_sizes().len() as u32;
    let transport = MmioTransport::new(device, view.clone(), Arc::new(|| ())).expect("eventfds");
    start(&transport, queue);

    let room = (RAM - DESCRIPTORS) as usize;
    view.write(Gpa(DESCRIPTORS), &input[..input.len().min(room)]).expect("inside RAM");
    for _ in 0..4 {
        transport.serve_queue(queue as usize);
        transport.serve_wake();
    }
    // Whatever it was, the device either serves on or says that it wants a reset.
    assert!(matches!(status(&transport) & !NEEDS_RESET, 15));

    view.write(Gpa(DESCRIPTORS), &[0; (BUFFERS - DESCRIPTORS) as usize]).expect("inside RAM");
    start(&transport, queue);
    transport.serve_queue(queue as usize);
    assert_eq!(status(&transport), 15, "a reset makes it as good as new");
});
