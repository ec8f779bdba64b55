//! The state in which the kernel is entered: identity-mapping page tables and a GDT; and the one piece of
//! firmware that it may go back to.
//!
//! The 64-bit boot protocol (Documentation/arch/x86/boot.rst) asks for paging with the kernel, the zero
//! page and the command line mapped to themselves, `__BOOT_CS` (0x10) a flat 64-bit code segment,
//! `__BOOT_DS` (0x18) a flat data segment, interrupts off, and the zero page's address in RSI. The
//! unpacked kernel's own `startup_64` asks for the same of whoever enters it.

use x86::Segment;
use x86::paging::{LARGE, PAGE_SIZE, PRESENT, WRITABLE};

use super::layout::{GDT_START, PAGE_TABLES, RESET_PORT, RESET_VALUE, TSS_LIMIT, TSS_START};

const ENTRIES: u64 = 512;
const LARGE_PAGE: u64 = 2 << 20;
/// All that can be asked for in the first instructions lies below 4 GiB.
const DIRECTORIES: u64 = 4;
/// Bytes of the page tables: PML4, PDPT and the directories.
const TABLES_SIZE: usize = ((2 + DIRECTORIES) * PAGE_SIZE) as usize;

/// Selector of the flat 64-bit code segment, `__BOOT_CS`.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the flat data segment, `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task-state segment.
pub const TASK_SELECTOR: u16 = 0x20;

/// Page tables for [`PAGE_TABLES`] that map the lowest 4 GiB to themselves with 2 MiB pages.
///
/// 1 GiB pages would do with a third of the memory, but not every guest's CPUID has them.
pub(super) fn page_tables() -> Vec<u8> {
    let mut tables = Vec::with_capacity(TABLES_SIZE);
    let mut push_table = |entries: &mut dyn Iterator<Item = u64>| {
        let bytes = entries.chain(std::iter::repeat(0)).take(ENTRIES as usize);
        tables.extend(bytes.flat_map(u64::to_le_bytes));
    };
    let table = |index: u64| (PAGE_TABLES + index * PAGE_SIZE) | PRESENT | WRITABLE;
    push_table(&mut std::iter::once(table(1)));
    push_table(&mut (0..DIRECTORIES).map(|index| table(2 + index)));
    for directory in 0..DIRECTORIES {
        let pages = directory * ENTRIES..(directory + 1) * ENTRIES;
        push_table(&mut pages.map(|page| (page * LARGE_PAGE) | PRESENT | WRITABLE | LARGE));
    }
    tables
}

/// The GDT for [`GDT_START`], with entries for the three selectors above (SDM volume 3, 3.4.5 and 8.2.3).
pub(super) fn gdt() -> Vec<u8> {
    // Base 0, limit 4 GiB, present, accessed; 0xaf..9b is 64-bit code, 0xcf..93 is data.
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    // An available or busy 64-bit TSS takes two entries; loaded in TR it is busy (type 11).
    let task = u64::from(TSS_LIMIT) | (TSS_START & 0xff_ffff) << 16 | 0x8b << 40;
    [0, 0, CODE, DATA, task, TSS_START >> 32].into_iter().flat_map(u64::to_le_bytes).collect()
}

/// TR with what its descriptor in [`gdt`] says.
pub(super) fn task_segment() -> Segment {
    let attributes = Segment::PRESENT | 0xb; // a busy 64-bit TSS
    Segment { selector: TASK_SELECTOR, base: TSS_START, limit: TSS_LIMIT, attributes }
}

/// Real-mode code for [`super::layout::RESET_VECTOR`] that writes the ACPI reset register.
///
/// On a hardware-reduced machine Linux prefers EFI to the reset register for a restart (6.1:
/// arch/x86/platform/efi/quirks.c, `efi_reboot_required`), and without EFI goes back to real mode and
/// jumps to the firmware, unless the command line says otherwise; with `reboot=a` it writes the register
/// itself.
pub(super) fn reset_code() -> [u8; 16] {
    let [low, high] = RESET_PORT.to_le_bytes();
    let mut code = [0xf4; 16]; // hlt
    code[..6].copy_from_slice(&[
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xba,
        low,
        high, // mov dx, RESET_PORT
        0xee, // out dx, al
    ]);
    code[14..].copy_from_slice(&[0xeb, 0xfd]); // jmp to the hlt before
    code
}

/// The highest valid offset into [`gdt`].
pub(super) const GDT_LIMIT: u16 = 6 * 8 - 1;

const _: () = assert!(GDT_START + GDT_LIMIT as u64 <= TSS_START);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::little_endian::u64_at;

    /// Walks the tables as a processor would.
    fn translate(tables: &[u8], va: u64) -> u64 {
        let entry = |table: u64, shift: u32| {
            let index = va >> shift & (ENTRIES - 1);
            let entry = u64_at(tables, (table - PAGE_TABLES + index * 8) as usize).unwrap();
            assert_eq!(entry & 3, PRESENT | WRITABLE, "{va:#x}");
            entry
        };
        let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        let pdpt = address(entry(PAGE_TABLES, 39));
        let leaf = entry(address(entry(pdpt, 30)), 21);
        assert_ne!(leaf & LARGE, 0);
        address(leaf) | va & (LARGE_PAGE - 1)
    }

    #[test]
    fn four_gib_map_to_themselves() {
        let tables = page_tables();
        assert_eq!(tables.len(), TABLES_SIZE);
        for va in (0..4 << 30).step_by(0x12_3457) {
            assert_eq!(translate(&tables, va), va);
        }
        assert_eq!(translate(&tables, 0xffff_ffff), 0xffff_ffff);
    }

    /// A descriptor's bytes taken apart, as a segment load does (SDM volume 3, figure 3-8).
    fn descriptor(gdt: &[u8], selector: u16) -> Segment {
        let raw = u64_at(gdt, selector.into()).unwrap();
        let attributes = (raw >> 40) as u16 & 0xf0ff;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let granular = attributes & 1 << 15 != 0;
        let limit = if granular { limit << 12 | 0xfff } else { limit };
        let base = raw >> 16 & 0xff_ffff | raw >> 56 << 24;
        Segment { selector, base, limit, attributes }
    }

    #[test]
    fn descriptors_agree_with_the_loaded_segments() {
        let gdt = gdt();
        assert_eq!(gdt.len(), usize::from(GDT_LIMIT) + 1);
        assert_eq!(descriptor(&gdt, CODE_SELECTOR), Segment::CODE64);
        assert_eq!(descriptor(&gdt, DATA_SELECTOR), Segment::DATA);
        assert_eq!(descriptor(&gdt, TASK_SELECTOR), task_segment());
    }
}
