//! The zero page: `struct boot_params`, by which the loader tells the kernel everything.
//!
//! Offsets are those of Documentation/arch/x86/zero-page.rst and boot.rst.

use std::ops::Range;

use super::bzimage::{HEADER_START, SetupHeader};
use super::e820::E820Entry;
use super::little_endian::put;

/// Bytes of the page.
pub(super) const SIZE: usize = 4096;

const ACPI_RSDP_ADDR: usize = 0x70;
const EXT_RAMDISK_IMAGE: usize = 0xc0;
const EXT_RAMDISK_SIZE: usize = 0xc4;
const EXT_CMD_LINE_PTR: usize = 0xc8;
const E820_ENTRIES: usize = 0x1e8;
const VID_MODE: usize = 0x1fa;
const TYPE_OF_LOADER: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `LOADED_HIGH`, and neither `KASLR_FLAG`, which would say that the kernel was moved, nor the rest.
const LOADED_HIGH: u8 = 1;
const VIDEO_NORMAL: u16 = 0xffff;

/// What differs between guests.
pub(super) struct ZeroPage<'a> {
    pub(super) header: &'a SetupHeader,
    /// At most 128 entries.
    pub(super) memory_map: &'a [E820Entry],
    pub(super) cmdline: u64,
    pub(super) initrd: Option<Range<u64>>,
    pub(super) rsdp: u64,
}

impl ZeroPage<'_> {
    /// The page as the kernel reads it.
    pub(super) fn to_bytes(&self) -> [u8; SIZE] {
        let mut page = [0; SIZE];
        let header = self.header.as_bytes();
        page[HEADER_START..HEADER_START + header.len()].copy_from_slice(header);
        put(&mut page, VID_MODE, VIDEO_NORMAL.to_le_bytes());
        put(&mut page, TYPE_OF_LOADER, [LOADER_UNDEFINED]);
        put(&mut page, LOAD_FLAGS, [LOADED_HIGH]);
        put(&mut page, SETUP_DATA, 0u64.to_le_bytes());
        put_split(&mut page, self.cmdline, CMD_LINE_PTR, EXT_CMD_LINE_PTR);
        let initrd = self.initrd.clone().unwrap_or_default();
        put_split(&mut page, initrd.start, RAMDISK_IMAGE, EXT_RAMDISK_IMAGE);
        put_split(&mut page, initrd.end - initrd.start, RAMDISK_SIZE, EXT_RAMDISK_SIZE);
        put(&mut page, ACPI_RSDP_ADDR, self.rsdp.to_le_bytes());
        self.put_memory_map(&mut page);
        page
    }

    fn put_memory_map(&self, page: &mut [u8; SIZE]) {
        page[E820_ENTRIES] = self.memory_map.len() as u8;
        for (index, entry) in self.memory_map.iter().enumerate() {
            let offset = E820_TABLE + index * E820_ENTRY_SIZE;
            put(page, offset, entry.range.start.to_le_bytes());
            put(page, offset + 8, (entry.range.end - entry.range.start).to_le_bytes());
            put(page, offset + 16, (entry.kind as u32).to_le_bytes());
        }
    }
}

/// Puts a 64-bit value whose halves have separate places.
fn put_split(page: &mut [u8], value: u64, low: usize, high: usize) {
    put(page, low, (value as u32).to_le_bytes());
    put(page, high, ((value >> 32) as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::e820::memory_map;
    use crate::boot::layout::ram_ranges;
    use crate::boot::little_endian::{u32_at, u64_at};

    #[test]
    fn fields_are_where_the_kernel_looks() {
        let header = SetupHeader::for_vmlinux();
        let map = memory_map(&ram_ranges(256 << 20)).unwrap();
        let page = ZeroPage {
            header: &header,
            memory_map: &map,
            cmdline: 0x2_0000,
            initrd: Some(0xf00_0000..0xf12_3456),
            rsdp: 0xe_0000,
        }
        .to_bytes();
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!((page[0x210], page[0x211]), (0xff, 1));
        assert_eq!(u32_at(&page, 0x228), Some(0x2_0000));
        assert_eq!(u32_at(&page, 0x218), Some(0xf00_0000));
        assert_eq!(u32_at(&page, 0x21c), Some(0x12_3456));
        assert_eq!(u64_at(&page, 0x70), Some(0xe_0000));
        assert_eq!(page[0x1e8], 3);
        assert_eq!(u64_at(&page, 0x2d0 + 40), Some(0x10_0000));
        assert_eq!(u64_at(&page, 0x2d0 + 48), Some(255 << 20));
        assert_eq!(u32_at(&page, 0x2d0 + 56), Some(1));
        // The sentinel: not zero would make the kernel clear fields that we have set.
        assert_eq!(page[0x1ef], 0);
    }
}
