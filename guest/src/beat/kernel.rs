//! No load but the kernel's own: what it says of itself.

use super::{Load, checksum};
use crate::random::Random;
use std::fs;
use std::hint::black_box;
use std::io::Result;

/// A beat: so many times a file of /proc, and numbers.
const FILES: usize = 12;
const NUMBERS: usize = 1_000_000;

pub(super) struct Kernel(Random);

impl Kernel {
    pub(super) fn new() -> Self {
        Self(Random::new())
    }
}

impl Load for Kernel {
    fn beat(&mut self) -> Result<()> {
        for _ in 0..FILES {
            for file in ["/proc/meminfo", "/proc/vmstat"] {
                black_box(checksum(&fs::read(file)?));
            }
        }
        for _ in 0..NUMBERS {
            black_box(self.0.next());
        }
        Ok(())
    }

    fn proof(&mut self) -> Result<u64> {
        // A text of the kernel's that is the same as long as it runs.
        Ok(checksum(&fs::read("/proc/sys/kernel/random/boot_id")?))
    }
}
