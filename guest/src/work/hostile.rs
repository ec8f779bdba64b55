//! A driver of the balloon that means harm: what it says of pages is wrong. Whatever comes of it, it comes of it to this
//! guest.
//!
//! It takes the device from the kernel's driver and speaks to it by its registers (virtio 1.2, 4.2.2 and 5.5), from a
//! program.
//!
//! ```text
//! lies   the balloon has 16 TiB; statistics say so, too
//! wrong  pages that there are not, the same page a thousand times, pages given back that were never taken
//! used   this program's own memory is taken, and reported as free, while it is used
//! any    pages of all memory, until the kernel is gone
//! ```

use crate::random::Random;
use crate::report::emit;
use crate::request::Request;
use crate::sys::{Mapping, PAGE};
use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const BALLOON: &str = "0x0005";

/// Registers (4.2.2).
mod register {
    pub(super) const DRIVER_FEATURES: usize = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: usize = 0x24;
    pub(super) const DEVICE_FEATURES: usize = 0x10;
    pub(super) const DEVICE_FEATURES_SEL: usize = 0x14;
    pub(super) const QUEUE_SEL: usize = 0x30;
    pub(super) const QUEUE_SIZE: usize = 0x38;
    pub(super) const QUEUE_READY: usize = 0x44;
    pub(super) const QUEUE_NOTIFY: usize = 0x50;
    pub(super) const STATUS: usize = 0x70;
    pub(super) const QUEUE_DESCRIPTORS: usize = 0x80;
    pub(super) const QUEUE_DRIVER: usize = 0x90;
    pub(super) const QUEUE_DEVICE: usize = 0xa0;
    pub(super) const ACTUAL: usize = 0x104;
}

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTS: usize = 3;
const QUEUES: usize = 4;
/// Chains have one buffer each, and one is there at a time.
const SIZE: u16 = 8;
const DEVICE_WRITES: u16 = 2;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK (2.1); what the device says when it wants no more.
const STATUSES: [u32; 4] = [1, 1 | 2, 1 | 2 | 8, 1 | 2 | 8 | 4];
const NEEDS_RESET: u32 = 64;

/// Pages of this program that the device is told of, after those with queues.
const OWN: usize = 256;
/// Frames below 256 MiB.
const SOME: u32 = 1 << 16;
const ANSWER: Duration = Duration::from_millis(200);

/// What it is asked to do goes on for a phase; the last does not end.
pub(super) fn run(what: &str, request: &Request) -> bool {
    let done = harm(what, request.phase);
    match &done {
        Ok(told) => emit("hostile", &[("what", what.into()), ("requests", (*told).into())]),
        Err(error) => {
            let error = error.to_string();
            emit("hostile", &[("what", what.into()), ("error", error.as_str().into())]);
        }
    }
    done.is_ok()
}

fn harm(what: &str, long: Duration) -> Result<u64> {
    let mut device = Device::take()?;
    let mut random = Random::new();
    let begun = Instant::now();
    let mut requests = 0;
    while begun.elapsed() < long || what == "any" {
        let own = device.own(random.below(OWN));
        match what {
            "lies" => {
                device.set(register::ACTUAL, random.next() as u32 | 0xf000_0000);
                // Tags and values of 10 bytes (5.5.6.3).
                let tags = (0..20u8).flat_map(|tag| [[tag, 0].as_slice(), &[0xff; 8]].concat());
                device.send(STATISTICS, &tags.collect::<Vec<u8>>())?;
            }
            "wrong" => {
                let beyond = (0..256).map(|n| u32::MAX - n * (random.next() as u32 % 4096));
                device.send_pages(INFLATE, beyond)?;
                device.send_pages(INFLATE, std::iter::repeat_n(own, 1000))?;
                device.send_pages(DEFLATE, (0..1000).map(|_| random.next() as u32 % SOME))?;
                device.send(INFLATE, &vec![0xa5; PAGE * 2 + 3])?;
            }
            "used" => {
                device.send_pages(INFLATE, [own, own])?;
                device.write_own();
                device.report(random.below(OWN))?;
                device.write_own();
            }
            "any" => {
                device.send_pages(INFLATE, (0..64).map(|_| random.next() as u32 % SOME))?;
            }
            _ => return Err(Error::other("lies, wrong, used or any")),
        }
        requests += 1;
    }
    Ok(requests)
}

struct Device {
    registers: Mapping,
    /// Where they begin in the mapping.
    at: usize,
    memory: Mapping,
    /// Of `memory`, by page.
    frames: Vec<u64>,
    next: [u16; QUEUES],
}

impl Device {
    /// From the kernel, for good.
    fn take() -> Result<Self> {
        let (name, address) = find()?;
        // One that was taken before has no driver any more.
        let _ = fs::write(format!("{DRIVER}/unbind"), &name);
        let file = File::options().read(true).write(true).open("/dev/mem")?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let start = address & !(PAGE as u64 - 1);
        let registers = Mapping::shared_at(PAGE, access, file.as_raw_fd(), start)?;
        let memory = Mapping::new((QUEUES * 2 + OWN) * PAGE, access)?;
        memory.small_pages_only();
        memory.stay()?;
        let frames = frames(&memory)?;
        let at = (address - start) as usize;
        let mut device = Self { registers, at, memory, frames, next: [0; QUEUES] };
        device.begin();
        Ok(device)
    }

    fn begin(&mut self) {
        use register::*;
        self.set(STATUS, 0);
        for status in &STATUSES[..2] {
            self.set(STATUS, *status);
        }
        for half in [0, 1] {
            self.set(DEVICE_FEATURES_SEL, half);
            let offered = self.get(DEVICE_FEATURES);
            self.set(DRIVER_FEATURES_SEL, half);
            self.set(DRIVER_FEATURES, offered);
        }
        self.set(STATUS, STATUSES[2]);
        for queue in 0..QUEUES {
            self.zero(queue);
            self.set(QUEUE_SEL, queue as u32);
            self.set(QUEUE_SIZE, SIZE.into());
            // Descriptors, what is offered, what was used: each a part of one page.
            let page = self.frames[queue] * PAGE as u64;
            for (register, offset) in
                [(QUEUE_DESCRIPTORS, 0), (QUEUE_DRIVER, 1024), (QUEUE_DEVICE, 2048)]
            {
                self.set(register, (page + offset) as u32);
                self.set(register + 4, ((page + offset) >> 32) as u32);
            }
            self.set(QUEUE_READY, 1);
        }
        self.set(STATUS, STATUSES[3]);
        self.next = [0; QUEUES];
    }

    fn own(&self, page: usize) -> u32 {
        self.frames[QUEUES * 2 + page] as u32
    }

    /// Uses the memory that the device is told of.
    fn write_own(&self) {
        for page in QUEUES * 2..QUEUES * 2 + OWN {
            self.put(page * PAGE, &page.to_le_bytes());
        }
    }

    fn send_pages(&mut self, queue: usize, pages: impl IntoIterator<Item = u32>) -> Result<()> {
        let bytes: Vec<u8> = pages.into_iter().flat_map(u32::to_le_bytes).collect();
        self.send(queue, &bytes)
    }

    /// As far as it fits the queue's page of data; the device is told the whole length.
    fn send(&mut self, queue: usize, bytes: &[u8]) -> Result<()> {
        let page = QUEUES + queue;
        self.put(page * PAGE, &bytes[..bytes.len().min(PAGE)]);
        self.offer(queue, self.frames[page] * PAGE as u64, bytes.len() as u32, 0)
    }

    fn report(&mut self, page: usize) -> Result<()> {
        let address = u64::from(self.own(page)) * PAGE as u64;
        self.offer(REPORTS, address, PAGE as u32, DEVICE_WRITES)
    }

    fn offer(&mut self, queue: usize, address: u64, length: u32, flags: u16) -> Result<()> {
        let at = queue * PAGE;
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&length.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        self.put(at, &descriptor);
        let next = &mut self.next[queue];
        let slot = 1024 + 4 + usize::from(*next % SIZE) * 2;
        *next = next.wrapping_add(1);
        let next = *next;
        self.put(at + slot, &0_u16.to_le_bytes());
        fence(Ordering::SeqCst);
        self.put(at + 1024 + 2, &next.to_le_bytes());
        fence(Ordering::SeqCst);
        self.set(register::QUEUE_NOTIFY, queue as u32);
        let begun = Instant::now();
        // Statistics are kept until they are wanted.
        while queue != STATISTICS && self.used(queue) != next && begun.elapsed() < ANSWER {
            if self.get(register::STATUS) & NEEDS_RESET != 0 {
                self.begin();
                break;
            }
            std::thread::yield_now();
        }
        if queue == STATISTICS && self.get(register::STATUS) & NEEDS_RESET != 0 {
            self.begin();
        }
        Ok(())
    }

    fn used(&self, queue: usize) -> u16 {
        // SAFETY: inside the queue's page, which the device may write at any time.
        unsafe { self.memory.pointer().add(queue * PAGE + 2048 + 2).cast::<u16>().read_volatile() }
    }

    fn zero(&self, page: usize) {
        self.put(page * PAGE, &[0; PAGE]);
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: callers stay inside the mapping, to which there are no references.
            unsafe { self.memory.pointer().add(at + n).write_volatile(*byte) };
        }
    }

    fn get(&self, register: usize) -> u32 {
        // SAFETY: a register of the device, whose 512 bytes do not cross a page.
        unsafe { self.registers.pointer().add(self.at + register).cast::<u32>().read_volatile() }
    }

    fn set(&self, register: usize, value: u32) {
        let at = self.at + register;
        // SAFETY: as above.
        unsafe { self.registers.pointer().add(at).cast::<u32>().write_volatile(value) };
    }
}

/// The platform device that the balloon hangs from, and where its registers are.
fn find() -> Result<(String, u64)> {
    // One whose driver was taken from it is in no list of virtio's any more: it is remembered.
    const FOUND: &str = "/run/hostile";
    let known = fs::read_to_string(FOUND).unwrap_or_default();
    if let Some((name, address)) = known.split_once(' ')
        && let Ok(address) = address.parse()
    {
        return Ok((name.to_owned(), address));
    }
    let none = || Error::other("no balloon");
    let mut name = None;
    for entry in fs::read_dir("/sys/bus/virtio/devices")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("device"))?.trim() == BALLOON {
            let parent = fs::canonicalize(&path)?.parent().map(ToOwned::to_owned);
            name = parent.and_then(|parent| Some(parent.file_name()?.to_str()?.to_owned()));
        }
    }
    let name = name.ok_or_else(none)?;
    let text = fs::read_to_string("/proc/iomem")?;
    let line = text.lines().find(|line| line.contains(&name)).ok_or_else(none)?;
    let start = line.trim().split('-').next().ok_or_else(none)?;
    let address = u64::from_str_radix(start, 16).map_err(Error::other)?;
    fs::create_dir_all("/run")?;
    fs::write(FOUND, format!("{name} {address}"))?;
    Ok((name, address))
}

/// Of each page (Linux, Documentation/admin-guide/mm/pagemap.rst).
fn frames(memory: &Mapping) -> Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = memory.pointer() as u64 / PAGE as u64;
    let frame = |page: u64| {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (first + page) * 8)?;
        Ok(u64::from_le_bytes(entry) & ((1 << 55) - 1))
    };
    (0..(QUEUES * 2 + OWN) as u64).map(frame).collect()
}
