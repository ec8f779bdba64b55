//! What the guest says about its memory (5.5.6.3).

use serde::{Deserialize, Serialize};

/// Bytes of one statistic: a 16-bit tag, a 64-bit value, packed.
const ENTRY_LEN: usize = 10;
/// Most statistics looked at in one request; there are 16 tags.
const ENTRIES_LIMIT: usize = 64;
/// Most bytes of a request looked at.
pub(super) const BYTES_LIMIT: usize = ENTRIES_LIMIT * ENTRY_LEN;

/// The guest's own figures, as of its last answer. It may leave any of them out, and may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatistics {
    /// Bytes swapped in.
    pub swap_in_bytes: Option<u64>,
    /// Bytes swapped out.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that read a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes that nobody uses.
    pub free_bytes: Option<u64>,
    /// Bytes the guest has.
    pub total_bytes: Option<u64>,
    /// Bytes that can be had without swapping.
    pub available_bytes: Option<u64>,
    /// Bytes of the page cache that can be dropped.
    pub disk_cache_bytes: Option<u64>,
    /// Huge pages allocated.
    pub huge_page_allocations: Option<u64>,
    /// Huge pages that could not be allocated.
    pub huge_page_failures: Option<u64>,
}

impl GuestStatistics {
    /// Reads the entries in `bytes`. Unknown tags are skipped, as is a part of an entry at the end.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for entry in bytes.as_chunks::<ENTRY_LEN>().0.iter().take(ENTRIES_LIMIT) {
            let [t0, t1, value @ ..] = *entry;
            if let Some(field) = statistics.field(u16::from_le_bytes([t0, t1])) {
                *field = Some(u64::from_le_bytes(value));
            }
        }
        statistics
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in_bytes,
            1 => &mut self.swap_out_bytes,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_bytes,
            5 => &mut self.total_bytes,
            6 => &mut self.available_bytes,
            7 => &mut self.disk_cache_bytes,
            8 => &mut self.huge_page_allocations,
            9 => &mut self.huge_page_failures,
            _ => return None,
        })
    }
}
