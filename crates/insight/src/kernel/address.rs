//! The kernel's address space: linear addresses to guest physical ones, and reads by them.

use std::cell::Cell;

use memory::{Gpa, ReadView};

use super::error::AddressError;

/// Where the kernel's image is mapped (`__START_KERNEL_map`; Documentation/arch/x86/x86_64/mm.rst).
pub(super) const IMAGE_START: u64 = 0xffff_ffff_8000_0000;
/// The largest mapping of it (`KERNEL_IMAGE_SIZE`).
pub(super) const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// Leaves of the page tables that are remembered.
const LEAVES: usize = 256;

/// Page-table entries, Intel SDM volume 3, section 5.5.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The linear addresses of one root of page tables.
///
/// The tables are walked as they are in memory, and what a walk found is remembered for as long as this value
/// lives: make a new one for each look.
#[derive(Debug)]
pub struct AddressSpace {
    view: ReadView,
    root: Gpa,
    /// 4 or 5.
    levels: u32,
    leaves: Box<[Cell<Leaf>; LEAVES]>,
}

/// A page that the tables map.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    va: u64,
    gpa: u64,
    /// A power of two; 0: nothing is remembered.
    bytes: u64,
}

impl Leaf {
    const NONE: Self = Self { va: 0, gpa: 0, bytes: 0 };

    /// Where `va` leads, and how many bytes follow in the page.
    fn lookup(self, va: u64) -> Option<(Gpa, u64)> {
        let offset = va.checked_sub(self.va).filter(|&offset| offset < self.bytes)?;
        Some((Gpa(self.gpa + offset), self.bytes - offset))
    }
}

impl AddressSpace {
    /// The same, with nothing remembered.
    pub(super) fn anew(&self) -> Self {
        Self::new(self.view.clone(), self.root, self.levels == 5)
    }

    /// Of its tables.
    pub(super) fn root(&self) -> Gpa {
        self.root
    }

    /// 4 or 5.
    pub(super) fn levels(&self) -> u32 {
        self.levels
    }

    /// The address space of the tables at `root`; with `five_levels` (CR4.LA57) or the usual four.
    pub fn new(view: ReadView, root: Gpa, five_levels: bool) -> Self {
        let leaves = Box::new([const { Cell::new(Leaf::NONE) }; LEAVES]);
        Self { view, root, levels: if five_levels { 5 } else { 4 }, leaves }
    }

    /// The guest physical address of `va`.
    pub fn translate(&self, va: u64) -> Result<Gpa, AddressError> {
        self.lookup(va).map(|(gpa, _)| gpa)
    }

    /// Reads from `va` on. After an error the contents of `into` are of no meaning.
    pub fn read(&self, va: u64, into: &mut [u8]) -> Result<(), AddressError> {
        if va.checked_add(into.len() as u64).is_none() {
            return Err(AddressError::Wraps { va, len: into.len() });
        }
        let (mut va, mut rest) = (va, into);
        while !rest.is_empty() {
            let (gpa, in_page) = self.lookup(va)?;
            let len = rest.len().min(usize::try_from(in_page).unwrap_or(usize::MAX));
            let (part, later) = rest.split_at_mut(len);
            let read = self.view.read(gpa, part);
            read.map_err(|error| AddressError::NotReadable { va, error })?;
            va += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// The eight bytes at `va`.
    pub fn u64(&self, va: u64) -> Result<u64, AddressError> {
        let mut bytes = [0; 8];
        self.read(va, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The four bytes at `va`.
    pub fn u32(&self, va: u64) -> Result<u32, AddressError> {
        let mut bytes = [0; 4];
        self.read(va, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn lookup(&self, va: u64) -> Result<(Gpa, u64), AddressError> {
        // By large page and by page, so that neighbours of either kind do not drive each other out.
        let place = &self.leaves[((va >> 12) ^ (va >> 21)) as usize % LEAVES];
        if let Some(found) = place.get().lookup(va) {
            return Ok(found);
        }
        let leaf = self.walk(va)?;
        place.set(leaf);
        leaf.lookup(va).ok_or(AddressError::NotMapped { va })
    }

    fn walk(&self, va: u64) -> Result<Leaf, AddressError> {
        let not_mapped = AddressError::NotMapped { va };
        // Canonical: the bits above those that are translated are copies of the highest one that is.
        let unused = 64 - (12 + 9 * self.levels);
        if ((va << unused) as i64 >> unused) as u64 != va {
            return Err(not_mapped);
        }
        let mut table = self.root.0 & ADDRESS;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let mut entry = [0; 8];
            let at = Gpa(table + (va >> shift & 0x1ff) * 8);
            let read = self.view.read(at, &mut entry);
            read.map_err(|error| AddressError::NotReadable { va, error })?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                return Err(not_mapped);
            }
            // A large page: 2 MiB, or 1 GiB. Above that the bit is reserved.
            if level == 0 || (entry & LARGE != 0 && level <= 2) {
                let bytes = 1_u64 << shift;
                let gpa = entry & ADDRESS & !(bytes - 1);
                return Ok(Leaf { va: va & !(bytes - 1), gpa, bytes });
            }
            table = entry & ADDRESS;
        }
        Err(not_mapped)
    }
}
