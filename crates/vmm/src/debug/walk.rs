//! From a linear address to a guest-physical one, through the guest's page tables (SDM volume 3, 4.3 to
//! 4.5), whatever engine runs it. Only looks: no accessed or dirty bit is set, no permission is checked.

use memory::{DeviceView, Gpa};
use thiserror::Error;
use x86::{VcpuState, cr0, cr4, efer, paging};

/// Why an address cannot be read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(super) enum AddressError {
    #[error("nothing is mapped at {0:#x}")]
    NotMapped(u64),
    #[error("{va:#x} leads to {gpa:#x}, where there is no RAM")]
    NoRam { va: u64, gpa: u64 },
}

/// A paging mode: how many address bits each level takes, and whether its entries may be leaves.
struct Mode {
    root: u64,
    entry_bytes: u64,
    /// Top level first.
    levels: &'static [Level],
    page_bits: u32,
}

struct Level {
    index_bits: u32,
    large: bool,
}

const TABLE: Level = Level { index_bits: 9, large: false };
const DIRECTORY: Level = Level { index_bits: 9, large: true };
const LEGACY_TABLE: Level = Level { index_bits: 10, large: false };
const LEGACY_DIRECTORY: Level = Level { index_bits: 10, large: true };
const PAE_ROOT: Level = Level { index_bits: 2, large: false };

/// 4-level paging: PML4, PDPT, page directory, page table.
const LONG: [Level; 4] = [TABLE, DIRECTORY, DIRECTORY, TABLE];
const PAE: [Level; 3] = [PAE_ROOT, DIRECTORY, TABLE];
const LEGACY: [Level; 2] = [LEGACY_DIRECTORY, LEGACY_TABLE];
/// Without CR4.PSE there are no large pages.
const LEGACY_SMALL: [Level; 2] = [LEGACY_TABLE, LEGACY_TABLE];

/// Where `va` leads for a vCPU in `state`. What is there may not be RAM.
pub(super) fn translate(
    state: &VcpuState,
    view: &DeviceView,
    va: u64,
) -> Result<u64, AddressError> {
    let long = state.efer & efer::LMA != 0;
    if long && !paging::is_canonical(va) || !long && va >> 32 != 0 {
        return Err(AddressError::NotMapped(va));
    }
    if state.cr0 & cr0::PG == 0 {
        return Ok(va);
    }
    walk(&Mode::of(state, long), view, va)
}

impl Mode {
    fn of(state: &VcpuState, long: bool) -> Self {
        let (levels, entry_bytes): (&'static [Level], u64) = if long {
            (&LONG, 8)
        } else if state.cr4 & cr4::PAE != 0 {
            (&PAE, 8)
        } else if state.cr4 & cr4::PSE != 0 {
            (&LEGACY, 4)
        } else {
            (&LEGACY_SMALL, 4)
        };
        // The table of four entries is aligned to its size.
        let aligned = if !long && entry_bytes == 8 { 0xffff_ffe0 } else { paging::ADDRESS };
        Self { root: state.cr3 & aligned, entry_bytes, levels, page_bits: 12 }
    }
}

fn walk(mode: &Mode, view: &DeviceView, va: u64) -> Result<u64, AddressError> {
    let mut shift = mode.page_bits + mode.levels.iter().map(|level| level.index_bits).sum::<u32>();
    let mut table = mode.root;
    for level in mode.levels {
        shift -= level.index_bits;
        let index = va >> shift & ((1 << level.index_bits) - 1);
        let entry = entry(view, table + index * mode.entry_bytes, mode.entry_bytes);
        let entry = entry.filter(|entry| entry & paging::PRESENT != 0);
        let entry = entry.ok_or(AddressError::NotMapped(va))?;
        if shift == mode.page_bits || level.large && entry & paging::LARGE != 0 {
            let inside = (1u64 << shift) - 1;
            return Ok(frame(mode, entry, shift) & !inside | va & inside);
        }
        table = entry & paging::ADDRESS;
    }
    unreachable!("the last level has leaves only")
}

/// The address in a leaf. Bits 13 to 20 of a 4 MiB page's entry are bits 32 to 39 of its address.
fn frame(mode: &Mode, entry: u64, shift: u32) -> u64 {
    let address = entry & paging::ADDRESS;
    if mode.entry_bytes == 4 && shift == 22 {
        return address & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
    }
    address
}

/// `None` outside RAM.
fn entry(view: &DeviceView, gpa: u64, bytes: u64) -> Option<u64> {
    let mut entry = [0; 8];
    view.read(Gpa(gpa), &mut entry[..bytes as usize]).ok()?;
    Some(u64::from_le_bytes(entry))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memory::GuestMemory;

    use super::*;

    fn view(words: &[(u64, u64)]) -> DeviceView {
        let view = DeviceView::new(Arc::new(GuestMemory::with_bytes(16 << 20).expect("memory")));
        for &(gpa, word) in words {
            view.write(Gpa(gpa), &word.to_le_bytes()).expect("inside RAM");
        }
        view
    }

    #[test]
    fn four_levels_with_pages_of_each_size() {
        let state = VcpuState { cr3: 0x1000 | 0xabc, ..VcpuState::long_mode() };
        let view = view(&[
            (0x1000 + 8 * 511, 0x2001),
            (0x2000, 0x4000_0000 | 0x81),
            (0x2000 + 8, 0x3001),
            (0x3000, 0x20_0000 | 0x81 | 1 << 63),
            (0x3000 + 8, 0x4001),
            (0x4000 + 8 * 3, 0x7000 | 1),
            (0x2000 + 16, 0xffff_f000 | 1),
        ]);
        let base = 0xffff_ff80_0000_0000;
        for (offset, gpa) in [(0x123, 0x4000_0123), (0x4012_3456, 0x32_3456), (0x4020_3fff, 0x7fff)]
        {
            assert_eq!(translate(&state, &view, base + offset), Ok(gpa), "{offset:#x}");
        }
        // Not present; a table outside RAM; not canonical; another entry of the root.
        for va in [base + 0x4020_4000, base + 0x8000_0000, 1 << 47, 0] {
            assert_eq!(translate(&state, &view, va), Err(AddressError::NotMapped(va)), "{va:#x}");
        }
    }

    #[test]
    fn legacy_modes() {
        let state = VcpuState { cr0: cr0::PE | cr0::PG, cr3: 0x1000, ..VcpuState::reset() };
        let view = view(&[(0x1000 + 4, 0x2001 | 0x60_0083 << 32), (0x2000 + 4 * 5, 0x9001)]);
        assert_eq!(translate(&state, &view, 0x40_5678), Ok(0x9678));
        let large = VcpuState { cr4: cr4::PSE, ..state.clone() };
        // Bits 13 to 20 are 0, bits 21 and 22 of the entry of no use: the address is of 4 MiB.
        assert_eq!(translate(&large, &view, 0x81_2345), Ok(0x41_2345));
        assert!(translate(&state, &view, 1 << 32).is_err());
    }

    #[test]
    fn physical_address_extension() {
        let state =
            VcpuState { cr0: cr0::PE | cr0::PG, cr4: cr4::PAE, cr3: 0x1020, ..VcpuState::reset() };
        let view = view(&[
            (0x1020 + 8 * 3, 0x2001),
            (0x2000 + 8, 0x1_0020_0083),
            (0x2000, 0x3001),
            (0x3000, 0x5001),
        ]);
        assert_eq!(translate(&state, &view, 0xc020_0123), Ok(0x1_0020_0123));
        assert_eq!(translate(&state, &view, 0xc000_0123), Ok(0x5123));
        assert!(translate(&state, &view, 0).is_err());
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let view = view(&[]);
        assert_eq!(translate(&VcpuState::reset(), &view, 0xffff_fff0), Ok(0xffff_fff0));
    }
}
