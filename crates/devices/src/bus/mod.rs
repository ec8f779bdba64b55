//! Port and memory-mapped I/O address spaces.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

#[cfg(test)]
mod tests;

/// A device as an address space sees it: registers at offsets from its base.
///
/// Called from any vCPU thread, several at once; the device does its own locking. `data` is 1 to 8
/// bytes, little endian, and `offset + data.len()` stays inside the registered range.
pub trait BusDevice: Send + Sync {
    /// The guest reads: fill `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Which address space a [`Bus`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The 64 Ki I/O ports.
    Port,
    /// Guest-physical addresses outside RAM.
    Mmio,
}

/// Registering a device failed: a mistake in the machine's layout.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// Two devices claim the same address.
    #[error("{space} range {base:#x}+{len:#x} overlaps the device at {other:#x}: move one of them")]
    Overlap {
        /// The address space.
        space: Space,
        /// First address asked for.
        base: u64,
        /// Length asked for.
        len: u64,
        /// First address of the device that is there already.
        other: u64,
    },
    /// An empty range, or one that leaves the address space.
    #[error("{space} range {base:#x}+{len:#x} is empty or leaves the address space")]
    OutOfSpace {
        /// The address space.
        space: Space,
        /// First address asked for.
        base: u64,
        /// Length asked for.
        len: u64,
    },
}

/// One address space: who answers at which address.
///
/// Filled before the guest runs, then shared between vCPU threads without a lock.
pub struct Bus {
    space: Space,
    /// Sorted by base; ranges never overlap.
    ranges: Vec<Range>,
}

struct Range {
    base: u64,
    /// base + len <= end of the space
    len: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// An empty port space.
    pub fn port() -> Self {
        Self { space: Space::Port, ranges: Vec::new() }
    }

    /// An empty memory-mapped space.
    pub fn mmio() -> Self {
        Self { space: Space::Mmio, ranges: Vec::new() }
    }

    /// Gives `device` the addresses `base .. base + len`.
    ///
    /// # Errors
    /// The range is empty, leaves the space or overlaps another device; nothing changes.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let space = self.space;
        let end = base.checked_add(len).filter(|&end| len > 0 && end <= space.end());
        let end = end.ok_or(BusError::OutOfSpace { space, base, len })?;
        if let Some(range) = self.ranges.iter().find(|r| r.base < end && base < r.base + r.len) {
            return Err(BusError::Overlap { space, base, len, other: range.base });
        }
        let at = self.ranges.partition_point(|range| range.base < base);
        self.ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`. Addresses that nobody claims read as all ones, as on
    /// a bus that floats high. An access over the end of a range is split there.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let mut done = 0;
        while done < data.len() {
            let rest = &mut data[done..];
            let len = match self.find(address.wrapping_add(done as u64), rest.len()) {
                Part::Device { device, offset, len } => {
                    device.read(offset, &mut rest[..len]);
                    len
                }
                Part::Nobody { len } => {
                    rest[..len].fill(0xff);
                    len
                }
            };
            done += len;
        }
    }

    /// Writes `data` at `address`. Bytes that nobody claims are dropped.
    pub fn write(&self, address: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let len = match self.find(address.wrapping_add(done as u64), rest.len()) {
                Part::Device { device, offset, len } => {
                    device.write(offset, &rest[..len]);
                    len
                }
                Part::Nobody { len } => len,
            };
            done += len;
        }
    }

    /// Who answers first for `len` bytes at `address`, and for how many of them (at least one).
    fn find(&self, address: u64, len: usize) -> Part<'_> {
        let next = self.ranges.partition_point(|range| range.base <= address);
        if let Some(range) = next.checked_sub(1).map(|i| &self.ranges[i]) {
            let offset = address - range.base;
            if offset < range.len {
                let len = (range.len - offset).min(len as u64) as usize;
                return Part::Device { device: &*range.device, offset, len };
            }
        }
        let gap = self.ranges.get(next).map_or(u64::MAX, |range| range.base - address);
        Part::Nobody { len: gap.min(len as u64) as usize }
    }
}

enum Part<'a> {
    Device { device: &'a dyn BusDevice, offset: u64, len: usize },
    Nobody { len: usize },
}

impl Space {
    fn end(self) -> u64 {
        match self {
            Self::Port => 1 << 16,
            // The most physical address bits an x86-64 processor has (Intel SDM 3A, 4.1.4).
            Self::Mmio => 1 << 52,
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Mmio => "mmio",
        })
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.iter().map(|r| format!("{:#x}+{:#x}", r.base, r.len));
        f.debug_struct("Bus")
            .field("space", &self.space)
            .field("ranges", &ranges.collect::<Vec<_>>())
            .finish()
    }
}
