//! What is asked of a balloon.

use serde::{Deserialize, Serialize};

/// Bytes of a balloon page, whatever the guest's own page size (5.5.6).
pub const PAGE_SIZE: u64 = 4096;

pub(super) const INFLATE: usize = 0;
pub(super) const DEFLATE: usize = 1;
/// Queue sizes. A fifth one, for the numbering of the specification: see `Roles`.
pub(super) const QUEUES: &[u16] = &[128, 128, 16, 64, 64];

/// Feature bits (5.5.3).
pub(super) const F_MUST_TELL_HOST: u64 = 1 << 0;
pub(super) const F_STATISTICS: u64 = 1 << 1;
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
pub(super) const F_REPORTING: u64 = 1 << 5;

/// Most page numbers in one request: four times what Linux sends.
pub(super) const PAGES_LIMIT: u64 = 1024;

/// A balloon as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// Pages of guest memory: no target is above it.
    pub guest_pages: u32,
    /// The guest may take pages back when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest reports pages it has freed.
    pub free_page_reporting: bool,
}
