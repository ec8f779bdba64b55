//! A driver for tests: it talks to a transport as a guest does, through registers and rings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventManager, SubscriberOps};
use memory::{Gpa, GuestMemory};

use super::VirtioDevice;
use super::mmio::MmioTransport;
use crate::DeviceView;
use crate::bus::BusDevice;

pub(crate) const MEMORY_LEN: u64 = 4 << 20;
/// Rings start here, 64 KiB a queue; data buffers are the tests' to place from `DATA` on.
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x1_0000;
pub(crate) const DATA: u64 = 0x10_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_INDEX: u64 = 1 << 29;
pub(crate) const DRIVER_OK: u32 = 0xf;
pub(crate) const NEEDS_RESET: u32 = 0x40;

/// A buffer of a chain: address, length, whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

pub(crate) struct Driver {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) view: DeviceView,
    pub(crate) transport: Arc<MmioTransport>,
    events: EventManager<Arc<MmioTransport>>,
    interrupts: Arc<AtomicUsize>,
    queues: Vec<Ring>,
}

/// The driver's side of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver that has not touched the device yet.
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        let memory = Arc::new(GuestMemory::with_bytes(MEMORY_LEN).unwrap());
        Self::with_memory(memory, Box::new(device))
    }

    pub(crate) fn with_memory(memory: Arc<GuestMemory>, device: Box<dyn VirtioDevice>) -> Self {
        let view = DeviceView::new(Arc::clone(&memory));
        let interrupts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&interrupts);
        let line = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let transport = MmioTransport::new(device, view.clone(), line).unwrap();
        let transport = Arc::new(transport);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Arc::clone(&transport));
        Self { memory, view, transport, events, interrupts, queues: Vec::new() }
    }

    /// A driver that is through with the negotiation and has set up every queue.
    pub(crate) fn ready(device: impl VirtioDevice + 'static, features: u64) -> Self {
        let mut driver = Self::new(device);
        driver.start(features);
        driver
    }

    /// Initialises the device (virtio 1.2, 3.1.1), after whatever came before.
    pub(crate) fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.set_up_queues();
        self.set(0x70, DRIVER_OK);
        assert_eq!(self.get(0x70), DRIVER_OK, "the device is live");
        self.run();
        self.interrupts();
    }

    pub(crate) fn negotiate(&mut self, features: u64) {
        self.set(0x70, 0);
        assert_eq!(self.get(0x70), 0, "reset is complete");
        self.set(0x70, 1);
        self.set(0x70, 3);
        for (half, value) in [(0, features as u32), (1, ((features | VERSION_1) >> 32) as u32)] {
            self.set(0x24, half);
            self.set(0x20, value);
        }
        self.set(0x70, 11);
        assert_eq!(self.get(0x70), 11, "the device takes the features");
    }

    pub(crate) fn set_up_queues(&mut self) {
        self.set_up_queues_of(u16::MAX);
    }

    /// Sets up every queue with at most `limit` entries.
    pub(crate) fn set_up_queues_of(&mut self, limit: u16) {
        let count = self.transport.notifiers().len();
        self.queues = vec![Ring::default(); count];
        for queue in 0..count {
            self.set(0x30, queue as u32);
            let size = self.get(0x34) as u16;
            self.set_up_queue(queue, size.min(limit));
        }
    }

    /// Sets up one queue with empty rings. `size` is at most 1024.
    pub(crate) fn set_up_queue(&mut self, queue: usize, size: u16) {
        self.queues[queue] = Ring { size, ..Ring::default() };
        let [desc, driver, device] = rings(queue);
        self.write(desc, &vec![0; RING_STRIDE as usize]);
        self.set(0x30, queue as u32);
        self.set(0x38, size.into());
        for (register, address) in [(0x80, desc), (0x90, driver), (0xa0, device)] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    pub(crate) fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.get(0x70)
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.view.write(Gpa(address), bytes).unwrap();
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view.read(Gpa(address), &mut bytes).unwrap();
        bytes
    }

    fn read_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    /// Makes a chain of `buffers` available; its head. Descriptors are taken round and round: the
    /// test must not have more in flight than the queue holds.
    pub(crate) fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = self.queues[queue];
        let head = ring.next_descriptor;
        for (i, &(address, len, write)) in buffers.iter().enumerate() {
            let at = (head + i as u16) % ring.size;
            let more = i + 1 < buffers.len();
            let flags = if write { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.descriptor(queue, at, address, len, flags, (at + 1) % ring.size);
        }
        self.queues[queue].next_descriptor = (head + buffers.len() as u16) % ring.size;
        self.make_available(queue, head);
        head
    }

    pub(crate) fn descriptor(
        &self,
        queue: usize,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let bytes = descriptor(address, len, flags, next);
        self.write(rings(queue)[0] + 16 * u64::from(index), &bytes);
    }

    pub(crate) fn make_available(&mut self, queue: usize, head: u16) {
        let ring = self.queues[queue];
        let driver = rings(queue)[1];
        let slot = u64::from(ring.available % ring.size);
        self.write(driver + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available_index(queue, ring.available.wrapping_add(1));
    }

    pub(crate) fn set_available_index(&mut self, queue: usize, index: u16) {
        self.queues[queue].available = index;
        self.write(rings(queue)[1] + 2, &index.to_le_bytes());
    }

    /// "Interrupt me when the used index passes this" (with EVENT_INDEX).
    pub(crate) fn set_used_event(&self, queue: usize, index: u16) {
        let size = u64::from(self.queues[queue].size);
        self.write(rings(queue)[1] + 4 + 2 * size, &index.to_le_bytes());
    }

    pub(crate) fn set_available_flags(&self, queue: usize, flags: u16) {
        self.write(rings(queue)[1], &flags.to_le_bytes());
    }

    /// Notifies the queue and lets the I/O thread run until it is idle.
    pub(crate) fn notify(&mut self, queue: usize) {
        self.set(0x50, queue as u32);
        self.run();
    }

    /// Lets the I/O thread run until it is idle.
    pub(crate) fn run(&mut self) {
        for turns in 0.. {
            assert!(turns < 10_000, "the device never gets idle");
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
    }

    /// Lets the I/O thread serve what is ready now, once.
    pub(crate) fn run_once(&mut self) -> usize {
        self.events.run_with_timeout(0).unwrap()
    }

    /// What the device has given back since the last call: heads and lengths.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let device = rings(queue)[2];
        let ring = &mut self.queues[queue];
        let (first, size) = (ring.used, ring.size);
        let end = self.read_u16(device + 2);
        self.queues[queue].used = end;
        let entry = |i: u16| {
            let bytes = self.read(device + 4 + 8 * u64::from(i % size), 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            (word(0), word(4))
        };
        (0..end.wrapping_sub(first)).map(|i| entry(first.wrapping_add(i))).collect()
    }

    /// Interrupts since the last call.
    pub(crate) fn interrupts(&self) -> usize {
        self.interrupts.swap(0, Ordering::SeqCst)
    }

    /// Offers, notifies, and expects exactly this chain back; its length.
    pub(crate) fn request(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.offer(queue, buffers);
        self.notify(queue);
        let used = self.used(queue);
        assert_eq!(used.len(), 1, "one request, one answer; status {:#x}", self.status());
        assert_eq!(used[0].0, u32::from(head));
        used[0].1
    }
}

/// Descriptor table, available ring and used ring of a queue.
pub(crate) fn rings(queue: usize) -> [u64; 3] {
    let base = RINGS + RING_STRIDE * queue as u64;
    [base, base + 0x8000, base + 0xa000]
}

pub(crate) fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let parts =
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
    parts.concat()
}
