//! A disk larger than memory: written in whole and in part, through the page cache and past it, zeroed, and every sector
//! checked when it is read. What is read wrong is the machine's fault.
//!
//! A sector has its number, how often it was written, and bytes that follow from both.

use crate::random::Random;
use crate::report::emit;
use crate::sys::Mapping;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const SECTOR: usize = 512;
const MIB: u64 = 1 << 20;
/// The longest transfer.
const LONGEST: usize = 64 << 10;
/// `BLKZEROOUT` of linux/fs.h.
const ZERO_OUT: libc::Ioctl = 0x127f;

/// `[MIB, OPERATIONS]`: of the disk, and how many there are.
pub(super) fn run(disk: &Path, numbers: &[u64]) -> bool {
    let mib = numbers.first().copied().unwrap_or(64).max(1);
    let operations = numbers.get(1).copied().unwrap_or(20_000);
    let done = Disk::open(disk, mib).and_then(|mut disk| disk.work(operations));
    let error = done.as_ref().err().map(Error::to_string).unwrap_or_default();
    emit("verify", &[("operations", operations.into()), ("error", error.as_str().into())]);
    done.is_ok()
}

struct Disk {
    cached: File,
    direct: File,
    buffer: Mapping,
    /// How often each sector was written; 0 is zeros.
    versions: Vec<u32>,
    random: Random,
}

impl Disk {
    fn open(path: &Path, mib: u64) -> Result<Self> {
        super::program::wait_for(path);
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let buffer = Mapping::new(LONGEST, libc::PROT_READ | libc::PROT_WRITE)?;
        buffer.touch_every_page(0);
        let sectors = (mib * MIB) as usize / SECTOR;
        let (cached, direct) = (open(0)?, open(libc::O_DIRECT)?);
        Ok(Self { cached, direct, buffer, versions: vec![0; sectors], random: Random::new() })
    }

    /// All of it is written, then whatever comes, then all of it is read.
    fn work(&mut self, operations: u64) -> Result<()> {
        let step = LONGEST / SECTOR;
        for first in (0..self.versions.len()).step_by(step) {
            self.write(false, first, step)?;
        }
        for _ in 0..operations {
            self.operate()?;
        }
        self.cached.sync_all()?;
        for direct in [false, true] {
            for first in (0..self.versions.len()).step_by(step) {
                self.read(direct, first, step)?;
            }
        }
        Ok(())
    }

    fn operate(&mut self) -> Result<()> {
        let mut below = |limit: usize| self.random.below(limit);
        let (kind, direct) = (below(100), below(4) == 0);
        // Pages mostly, and a few sectors.
        let unit = if below(3) == 0 { 1 } else { 8 };
        let first = below(self.versions.len() / unit) * unit;
        let count = (1 + below(4)) * unit;
        let count = count.min(self.versions.len() - first);
        match kind {
            0..65 => self.read(direct, first, count),
            65..97 => self.write(direct, first, count),
            97 => self.zero(first, count),
            98 => self.cached.sync_data(),
            _ => std::fs::write("/proc/sys/vm/drop_caches", "1"),
        }
    }

    fn read(&mut self, direct: bool, first: usize, count: usize) -> Result<()> {
        let file = if direct { &self.direct } else { &self.cached };
        let bytes = bytes(&mut self.buffer, count);
        file.read_exact_at(bytes, (first * SECTOR) as u64)?;
        for (sector, found) in (first..).zip(bytes.chunks(SECTOR)) {
            let version = self.versions[sector];
            if found != content(sector, version) {
                let how = if direct { "past the cache" } else { "cached" };
                let starts = &found[..16];
                return Err(Error::other(format!(
                    "sector {sector}, written {version} times, {how}: {starts:?}"
                )));
            }
        }
        Ok(())
    }

    fn write(&mut self, direct: bool, first: usize, count: usize) -> Result<()> {
        let file = if direct { &self.direct } else { &self.cached };
        let bytes = bytes(&mut self.buffer, count);
        for (sector, bytes) in (first..).zip(bytes.chunks_mut(SECTOR)) {
            self.versions[sector] += 1;
            bytes.copy_from_slice(&content(sector, self.versions[sector]));
        }
        file.write_all_at(bytes, (first * SECTOR) as u64)
    }

    fn zero(&mut self, first: usize, count: usize) -> Result<()> {
        let range = [(first * SECTOR) as u64, (count * SECTOR) as u64];
        // SAFETY: the kernel reads two numbers of 64 bits at the pointer.
        if unsafe { libc::ioctl(self.cached.as_raw_fd(), ZERO_OUT, range.as_ptr()) } != 0 {
            return Err(Error::last_os_error());
        }
        self.versions[first..first + count].fill(0);
        Ok(())
    }
}

fn content(sector: usize, version: u32) -> [u8; SECTOR] {
    if version == 0 {
        return [0; SECTOR];
    }
    let mut bytes = [(sector as u8) ^ (version as u8).wrapping_mul(31); SECTOR];
    bytes[..8].copy_from_slice(&(sector as u64).to_le_bytes());
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes
}

fn bytes(memory: &mut Mapping, sectors: usize) -> &mut [u8] {
    let length = (sectors * SECTOR).min(LONGEST);
    // SAFETY: a readable and writable mapping of at least that length, borrowed for as long.
    unsafe { std::slice::from_raw_parts_mut(memory.pointer(), length) }
}
