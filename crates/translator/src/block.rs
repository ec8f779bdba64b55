//! Blocks: straight-line runs of decoded instructions, kept by physical address.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cpu::Width;
use crate::insn::Insn;
use crate::machine::Machine;

/// What a block's decoding depends on besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mode {
    /// Width of the code segment.
    pub width: Width,
}

/// Instructions that follow each other; only the last may branch, fault points are anywhere.
///
/// All bytes lie in one page, or the last instruction (then the block's only one) reaches into
/// `next_page`.
#[derive(Debug)]
pub struct Block<M: Machine> {
    /// At least one.
    pub insns: Box<[Insn<M>]>,
    /// Physical address of the first byte.
    pub start: u64,
    /// Bytes covered.
    pub len: u32,
    /// Physical page (address / 4096) of the second page, where the block crosses into one.
    pub next_page: Option<u64>,
    valid: AtomicBool,
}

impl<M: Machine> Block<M> {
    /// A block of `insns` at physical address `start`.
    #[must_use]
    pub fn new(insns: Vec<Insn<M>>, start: u64, next_page: Option<u64>) -> Self {
        let len = insns.iter().map(|insn| u32::from(insn.len)).sum();
        let valid = AtomicBool::new(true);
        Self { insns: insns.into_boxed_slice(), start, len, next_page, valid }
    }

    /// Whether no byte has been written since decoding. Checked at each entry.
    #[inline(always)]
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.valid.load(Ordering::Acquire)
    }

    fn overlaps(&self, page: u64, from: u32, to: u32) -> bool {
        let first = (self.start & 0xfff) as u32;
        if self.start >> 12 == page {
            return first < to && first + self.len > from;
        }
        // The part in the second page starts at its byte 0.
        self.next_page == Some(page) && first + self.len - 4096 > from
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.insns) + ENTRY_BYTES
    }
}

/// What the cache spends on a block besides the block, about.
const ENTRY_BYTES: usize = 64;

/// Decoded blocks of one VM, shared by its vCPUs, by physical page.
///
/// Bounded: when `limit` bytes are reached everything is dropped and decoded anew. A block in use stays
/// alive through its `Arc`; it is marked invalid, which its users see at the next entry.
#[derive(Debug)]
pub struct BlockCache<M: Machine> {
    inner: Mutex<Inner<M>>,
    limit: usize,
}

#[derive(Debug)]
struct Inner<M: Machine> {
    pages: HashMap<u64, Vec<(Mode, Arc<Block<M>>)>>,
    bytes: usize,
}

impl<M: Machine> BlockCache<M> {
    /// A cache of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { inner: Mutex::new(Inner { pages: HashMap::new(), bytes: 0 }), limit }
    }

    /// The block that starts at physical address `start`, if it is here. `next_page` is the physical
    /// page that follows in the address space of the asker, consulted only for a block that needs it.
    pub fn find(
        &self,
        start: u64,
        mode: Mode,
        next_page: impl FnOnce() -> Option<u64>,
    ) -> Option<Arc<Block<M>>> {
        let inner = self.lock();
        let page = inner.pages.get(&(start >> 12))?;
        let (_, block) = page.iter().find(|(m, block)| block.start == start && *m == mode)?;
        let block = Arc::clone(block);
        drop(inner);
        (block.next_page.is_none() || block.next_page == next_page()).then_some(block)
    }

    /// Adds a block, replacing one at the same place.
    ///
    /// The caller has made sure, before it read the bytes, that a write to them calls
    /// [`BlockCache::invalidate`].
    pub fn insert(&self, mode: Mode, block: Arc<Block<M>>) {
        let mut inner = self.lock();
        if inner.bytes + block.bytes() > self.limit {
            inner.clear();
        }
        inner.remove_where(block.start >> 12, |m, old| m == mode && old.start == block.start);
        inner.bytes += block.bytes();
        for page in [Some(block.start >> 12), block.next_page].into_iter().flatten() {
            inner.pages.entry(page).or_default().push((mode, Arc::clone(&block)));
        }
    }

    /// Drops every block that has a byte in `[from, to)` of physical page `page`. Returns how many, and
    /// whether the page still holds blocks.
    pub fn invalidate(&self, page: u64, from: u32, to: u32) -> (usize, bool) {
        let mut inner = self.lock();
        let dropped = inner.remove_where(page, |_, block| block.overlaps(page, from, to));
        (dropped, inner.pages.contains_key(&page))
    }

    /// Drops everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Bytes held, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        // No invariant spans a panic: every change below is complete or repeated.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Machine> Inner<M> {
    fn remove_where(&mut self, page: u64, doomed: impl Fn(Mode, &Block<M>) -> bool) -> usize {
        let Some(blocks) = self.pages.get_mut(&page) else { return 0 };
        let mut removed = Vec::new();
        blocks.retain(|(mode, block)| {
            let remove = doomed(*mode, block);
            if remove {
                block.valid.store(false, Ordering::Release);
                removed.push(Arc::clone(block));
            }
            !remove
        });
        if blocks.is_empty() {
            self.pages.remove(&page);
        }
        for block in &removed {
            self.bytes -= block.bytes();
            self.forget_other_page(block, page);
        }
        removed.len()
    }

    /// A block that crosses stands under both of its pages.
    fn forget_other_page(&mut self, block: &Arc<Block<M>>, page: u64) {
        let Some(next) = block.next_page else { return };
        let other = if page == next { block.start >> 12 } else { next };
        if let Some(blocks) = self.pages.get_mut(&other) {
            blocks.retain(|(_, kept)| !Arc::ptr_eq(kept, block));
            if blocks.is_empty() {
                self.pages.remove(&other);
            }
        }
    }

    fn clear(&mut self) {
        for (_, block) in self.pages.values().flatten() {
            block.valid.store(false, Ordering::Release);
        }
        self.pages.clear();
        self.bytes = 0;
    }
}
