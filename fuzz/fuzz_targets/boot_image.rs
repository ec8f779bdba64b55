//! Any bytes as a kernel file: recognised, unpacked, checked and loaded without a panic, a hang or a
//! write outside guest RAM.
#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use vmm::boot::{self, BootError, BootMemory, KernelImage, Platform, layout};

const RAM: u64 = 32 << 20;
const PLATFORM: Platform = Platform { vcpus: 1, virtio_devices: 1, serial: true, pvpanic: true };

/// RAM that checks addresses and keeps nothing.
struct Bounds;

impl BootMemory for Bounds {
    fn ram_ranges(&self) -> Vec<Range<u64>> {
        layout::ram_ranges(RAM)
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
        let end = gpa.checked_add(bytes.len() as u64).expect("an end below 2^64");
        assert!(end <= RAM, "{gpa:#x} to {end:#x}");
        Ok(())
    }
}

fuzz_target!(|file: &[u8]| {
    if let Ok(kernel) = KernelImage::parse(file.to_vec(), RAM) {
        let initrd = boot::Initrd { bytes: 6, content: &mut &b"initrd"[..] };
        let _ = boot::load(&kernel, Some(initrd), "quiet", &PLATFORM, &mut Bounds);
    }
});
