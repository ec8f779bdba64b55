//! Any sequence of register accesses, of any width, to every port and MMIO device at once, with the I/O
//! thread's work in between: no panic, no hang.
//!
//! Each access is 12 bytes: what, width, address (low bits choose the device), value.
#![no_main]

use std::sync::Arc;

use devices::DeviceView;
use devices::bus::Bus;
use devices::input::InputSink;
use devices::output::Output;
use devices::power::PowerSink;
use devices::pvpanic::{self, PvPanic};
use devices::reset::{self, I8042, Reset};
use devices::rtc::{self, Rtc};
use devices::serial::{self, Serial};
use devices::virtio::balloon::{Balloon, BalloonConfig, FrameBalloon};
use devices::virtio::console::Console;
use devices::virtio::mmio::{MmioTransport, REGISTERS_LEN};
use devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;
use memory::{Gpa, GuestMemory};

const RAM: u64 = 1 << 20;

struct Machine {
    ports: Bus,
    mmio: Bus,
    serial: Arc<Serial>,
    transports: Vec<Arc<MmioTransport>>,
    view: DeviceView,
}

impl Machine {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("guest memory"));
        let view = DeviceView::new(Arc::clone(&memory));
        let output = || Output::new(std::io::sink());
        let serial = Arc::new(Serial::new(Arc::new(|| ()), output()).expect("an eventfd"));
        let power: PowerSink = Arc::new(|_| ());
        let mut ports = Bus::port();
        let mut port = |base: u16, len, device| {
            ports.insert(base.into(), len, device).expect("no overlap");
        };
        port(serial::COM1_BASE, serial::PORT_COUNT, Arc::clone(&serial) as Arc<_>);
        port(
            reset::SLEEP_CONTROL_PORT,
            reset::PORT_COUNT,
            Arc::new(Reset::new(Arc::clone(&power))),
        );
        let i8042 = Arc::new(I8042::new(Arc::clone(&power)));
        port(reset::I8042_COMMAND_PORT, reset::I8042_PORT_COUNT, i8042);
        port(pvpanic::PORT, pvpanic::PORT_COUNT, Arc::new(PvPanic::new(power)));
        port(rtc::INDEX_PORT, rtc::PORT_COUNT, Arc::new(Rtc::new()));

        let config = BalloonConfig {
            guest_pages: (RAM >> 12) as u32,
            deflate_on_oom: true,
            free_page_reporting: true,
        };
        let frames = Box::new(FrameBalloon::new(memory));
        let mut mmio = Bus::mmio();
        let mut transports = Vec::new();
        let devices: [Box<dyn devices::virtio::VirtioDevice>; 3] = [
            Box::new(Rng::new()),
            Box::new(Console::new(output()).expect("an eventfd")),
            Box::new(Balloon::new(config, frames).expect("an eventfd")),
        ];
        for (slot, device) in (0..).zip(devices) {
            let transport = MmioTransport::new(device, view.clone(), Arc::new(|| ()));
            let transport = Arc::new(transport.expect("eventfds"));
            mmio.insert(slot * REGISTERS_LEN, REGISTERS_LEN, Arc::clone(&transport) as Arc<_>)
                .expect("no overlap");
            transports.push(transport);
        }
        Self { ports, mmio, serial, transports, view }
    }

    fn act(&self, [what, width, address @ .., v0, v1, v2, v3, v4, v5]: [u8; 12]) {
        let value = [v0, v1, v2, v3, v4, v5, 0, 0];
        let address = u64::from(u32::from_le_bytes(address));
        let len = usize::from(width % 8) + 1;
        let mut data = value;
        match what % 8 {
            0 => self.ports.read(address & 0xffff, &mut data[..len]),
            1 => self.ports.write(address & 0xffff, &data[..len]),
            2 => self.mmio.read(address & 0x3fff, &mut data[..len]),
            3 => self.mmio.write(address & 0x3fff, &data[..len]),
            // What a driver does: an aligned 32-bit register below the configuration space.
            4 | 5 => self.mmio.write(address & 0x30fc, &data[..4]),
            6 => self.view.write(Gpa(address % (RAM - 8)), &data[..len]).expect("inside RAM"),
            _ => self.serve(address as usize, &data[..len]),
        }
    }

    fn serve(&self, which: usize, typed: &[u8]) {
        let transport = &self.transports[which % self.transports.len()];
        transport.serve_queue(which / 4 % 8);
        transport.serve_wake();
        self.serial.push(typed);
    }
}

fuzz_target!(|input: &[u8]| {
    let machine = Machine::new();
    for access in input.as_chunks().0 {
        machine.act(*access);
    }
    for transport in &machine.transports {
        transport.state();
        transport.metrics();
    }
});
