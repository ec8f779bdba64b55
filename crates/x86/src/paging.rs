//! Page-table entries of 4-level paging (SDM volume 3, 4.5).

/// The entry maps something.
pub const PRESENT: u64 = 1 << 0;
/// Writes are allowed.
pub const WRITABLE: u64 = 1 << 1;
/// User-mode accesses are allowed.
pub const USER: u64 = 1 << 2;
/// Write-through.
pub const WRITE_THROUGH: u64 = 1 << 3;
/// Cache disabled.
pub const CACHE_DISABLE: u64 = 1 << 4;
/// Set by the processor at the first use of the entry.
pub const ACCESSED: u64 = 1 << 5;
/// Set by the processor at the first write through a leaf.
pub const DIRTY: u64 = 1 << 6;
/// In a PDPTE or PDE: the entry is a leaf (1 GiB, 2 MiB).
pub const LARGE: u64 = 1 << 7;
/// Survives a CR3 write while CR4.PGE is set.
pub const GLOBAL: u64 = 1 << 8;
/// No instruction may be fetched (with EFER.NXE).
pub const NO_EXECUTE: u64 = 1 << 63;
/// The physical address of a 4 KiB entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes of the smallest page.
pub const PAGE_SIZE: u64 = 4096;

/// Whether bits 63..47 are all equal, as 4-level paging demands of a linear address.
#[must_use]
pub const fn is_canonical(va: u64) -> bool {
    ((va as i64) << 16 >> 16) as u64 == va
}
