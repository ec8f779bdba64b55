//! Blocks: straight-line runs of decoded instructions, kept by physical address.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cpu::Width;
use crate::insn::Insn;
use crate::machine::Machine;
use crate::native::{MALLOC, NativeBlock};
use crate::paths::{Fragment, Known, Path};
use crate::trips::Bound;

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
    /// None where there is code, or is going to be: they are decoded if they are wanted.
    pub insns: Box<[Insn<M>]>,
    /// Physical address of the first byte.
    pub start: u64,
    /// Bytes covered.
    pub len: u32,
    /// Physical page (address / 4096) of the second page, where the block crosses into one.
    pub next_page: Option<u64>,
    /// Where it closes a loop: what tells how often, if that is known.
    pub bound: Option<Box<Bound>>,
    valid: AtomicBool,
    native: Option<Box<NativeBlock>>,
    /// With code: the bytes of the page that it depends on.
    depends: Box<[Fragment]>,
    /// How often the interpreter entered it while it had no code.
    entries: AtomicU32,
}

impl<M: Machine> Block<M> {
    /// A block of `insns` at physical address `start`.
    #[must_use]
    pub fn new(insns: Vec<Insn<M>>, start: u64, next_page: Option<u64>) -> Self {
        let len = insns.iter().map(|insn| u32::from(insn.len)).sum();
        let valid = AtomicBool::new(true);
        let (native, depends, entries) = (None, Box::default(), AtomicU32::new(0));
        let insns = insns.into_boxed_slice();
        Self { insns, start, len, next_page, bound: None, valid, native, depends, entries }
    }

    /// The same without its instructions: it is about to be replaced by a path.
    #[must_use]
    pub fn without_instructions(insns: &[Insn<M>], start: u64) -> Self {
        let len = insns.iter().map(|insn| u32::from(insn.len)).sum();
        Self { len, ..Self::new(Vec::new(), start, None) }
    }

    /// A path of physical page `page` with its code, which depends on the bytes `watched` too; or one instruction that
    /// reaches into `next_page`.
    pub(crate) fn of_path(
        page: u64,
        path: &Path,
        watched: impl Iterator<Item = Fragment>,
        next_page: Option<u64>,
        native: NativeBlock,
    ) -> Self {
        // One that crosses depends on its own bytes.
        let mut depends = Vec::new();
        if next_page.is_none() {
            depends.reserve_exact(path.fragments.len() + watched.size_hint().1.unwrap_or(0));
            depends.extend_from_slice(&path.fragments);
            depends.extend(watched);
        }
        depends.sort_unstable_by_key(|fragment| fragment.offset);
        depends.dedup_by(|next, last| {
            let joined = u32::from(next.offset) <= last.end();
            if joined {
                last.len = (next.end().max(last.end()) - u32::from(last.offset)) as u16;
            }
            joined
        });
        Self {
            insns: Box::default(),
            start: page << 12 | u64::from(path.head()),
            len: path.len(),
            next_page,
            bound: None,
            valid: AtomicBool::new(true),
            native: Some(Box::new(native)),
            depends: depends.into_boxed_slice(),
            entries: AtomicU32::new(0),
        }
    }

    /// Whether no byte has been written since decoding. Checked at each entry.
    #[inline(always)]
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.valid.load(Ordering::Acquire)
    }

    /// Makes it not valid: for a block that may run once only.
    pub fn invalidate(&self) {
        self.valid.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Some(native) = &self.native {
            native.close();
        }
    }

    /// Its code, if it has any.
    #[inline(always)]
    pub(crate) fn native(&self) -> Option<&NativeBlock> {
        self.native.as_deref()
    }

    /// Counts an entry: the first is 1. Not exact where several cores count.
    #[inline(always)]
    #[must_use]
    pub fn entered(&self) -> u32 {
        let entries = self.entries.load(Ordering::Relaxed).saturating_add(1);
        self.entries.store(entries, Ordering::Relaxed);
        entries
    }

    /// Counts `times` entries that are going to be.
    pub fn heat(&self, times: u32) {
        let entries = self.entries.load(Ordering::Relaxed).saturating_add(times);
        self.entries.store(entries, Ordering::Relaxed);
    }

    /// Entries counted so far.
    fn entries(&self) -> u32 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether it has been translated: then there are no instructions to interpret.
    #[must_use]
    pub fn has_code(&self) -> bool {
        self.native.is_some()
    }

    /// Whether it is a path whose bytes are not one run.
    #[must_use]
    pub fn is_in_pieces(&self) -> bool {
        self.depends.len() > 1
    }

    /// If so: its frame's number among those with code.
    #[must_use]
    pub fn code_frame(&self) -> Option<u32> {
        self.native().map(NativeBlock::frame)
    }

    /// That of the page behind it, if it has code and an instruction that reaches into that.
    #[must_use]
    pub fn next_code_frame(&self) -> Option<u32> {
        self.native().and_then(NativeBlock::next_frame)
    }

    fn overlaps(&self, page: u64, from: u32, to: u32) -> bool {
        if !self.depends.is_empty() {
            let hit = |fragment: &Fragment| fragment.overlaps(from, to);
            return self.start >> 12 == page && self.depends.iter().any(hit);
        }
        let first = (self.start & 0xfff) as u32;
        let end = first + self.len;
        // The part in the second page starts at its byte 0. Both pages may be the same frame.
        self.start >> 12 == page && first < to && end > from
            || self.next_page == Some(page) && to > 0 && end.saturating_sub(4096) > from
    }

    /// The physical pages that its bytes lie in, each once.
    fn pages(&self) -> impl Iterator<Item = u64> + use<M> {
        let own = self.start >> 12;
        [Some(own), self.next_page.filter(|&next| next != own)].into_iter().flatten()
    }

    /// Bytes that it takes, by allocation.
    pub(crate) fn bytes(&self) -> usize {
        let allocated = |bytes: usize| if bytes > 0 { bytes + MALLOC } else { 0 };
        let own = allocated(size_of::<Self>() + ARC);
        let parts = allocated(size_of_val(&*self.insns)) + allocated(size_of_val(&*self.depends));
        own + parts + self.native().map_or(0, |_| NativeBlock::BYTES) + ENTRY_BYTES
    }
}

impl<M: Machine> Block<M> {
    /// What [`Block::bytes`] can be for one with code that depends on so many pieces.
    pub(crate) fn path_bytes_at_most(pieces: usize) -> usize {
        let depends = pieces * size_of::<Fragment>() + MALLOC;
        size_of::<Self>() + ARC + MALLOC + depends + NativeBlock::BYTES + ENTRY_BYTES
    }
}

/// The counts of an [`Arc`].
const ARC: usize = 16;

/// What the cache spends on a block besides the block: an entry of a vector that has room for more, and its share of
/// the page's.
const ENTRY_BYTES: usize = 2 * size_of::<(Key, usize)>();

/// Decoded blocks of one VM, shared by its vCPUs, by physical page.
///
/// Bounded: when `limit` bytes are reached everything is dropped and decoded anew. A block in use stays
/// alive through its `Arc`; it is marked invalid, which its users see at the next entry.
#[derive(Debug)]
pub struct BlockCache<M: Machine> {
    inner: Mutex<Inner<M>>,
    limit: usize,
    /// Bytes of blocks without code, about, beyond which they are dropped.
    cold: usize,
}

#[derive(Debug)]
struct Inner<M: Machine> {
    /// Sorted by key: a page of code holds hundreds of blocks, and looking for one must not touch them.
    pages: HashMap<u64, PageBlocks<M>>,
    bytes: usize,
    /// When it grows beyond this, the blocks without code are dropped.
    full: usize,
}

type PageBlocks<M> = Vec<(Key, Arc<Block<M>>)>;

/// Where a block starts and what it was decoded as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key(u64);

impl Key {
    /// The top byte of a physical address is free.
    const fn new(start: u64, mode: Mode) -> Self {
        Self(start << 8 | mode.width as u64)
    }
}

impl<M: Machine> BlockCache<M> {
    /// A cache of at most `limit` bytes. Where hot blocks get code ([`crate::native`]), those without are dropped
    /// for every `cold` bytes that it grows by.
    #[must_use]
    pub fn new(limit: usize, cold: usize) -> Self {
        let inner = Inner { pages: HashMap::new(), bytes: 0, full: cold };
        Self { inner: Mutex::new(inner), limit, cold }
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
        let block = Arc::clone(inner.block(start, mode)?);
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
        } else if inner.bytes > inner.full {
            inner.drop_cold();
            inner.full = inner.bytes + self.cold;
        }
        let key = Key::new(block.start, mode);
        inner.remove_where(block.start >> 12, |old, _| old == key);
        inner.bytes += block.bytes();
        for page in block.pages() {
            let blocks = inner.pages.entry(page).or_default();
            let index = blocks.partition_point(|&(other, _)| other < key);
            blocks.insert(index, (key, Arc::clone(&block)));
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

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Bytes held for blocks with code.
    #[must_use]
    pub fn path_bytes(&self) -> usize {
        let inner = self.lock();
        // One that crosses stands under both of its pages.
        let own = |page: u64, blocks: &PageBlocks<M>| -> usize {
            let here = blocks.iter().filter(|(_, block)| block.start >> 12 == page);
            here.filter(|(_, block)| block.has_code()).map(|(_, block)| block.bytes()).sum()
        };
        inner.pages.iter().map(|(&page, blocks)| own(page, blocks)).sum()
    }

    /// What is known of the code that starts at physical address `start`.
    #[must_use]
    pub fn known(&self, start: u64, mode: Mode) -> Known {
        let inner = self.lock();
        match inner.block(start, mode) {
            Some(block) if block.has_code() => Known::Head,
            Some(block) => Known::Runs(block.entries()),
            None => Known::Runs(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        // No invariant spans a panic: every change below is complete or repeated.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Machine> Inner<M> {
    fn block(&self, start: u64, mode: Mode) -> Option<&Arc<Block<M>>> {
        let page = self.pages.get(&(start >> 12))?;
        let key = Key::new(start, mode);
        let index = page.binary_search_by_key(&key, |&(key, _)| key).ok()?;
        Some(&page[index].1)
    }

    fn remove_where(&mut self, page: u64, doomed: impl Fn(Key, &Block<M>) -> bool) -> usize {
        let Some(blocks) = self.pages.get_mut(&page) else { return 0 };
        let mut removed = Vec::new();
        blocks.retain(|(key, block)| {
            let remove = doomed(*key, block);
            if remove {
                block.invalidate();
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

    fn drop_cold(&mut self) {
        let pages: Vec<u64> = self.pages.keys().copied().collect();
        for page in pages {
            self.remove_where(page, |_, block| !block.has_code());
        }
    }

    /// A block that crosses stands under both of its pages.
    fn forget_other_page(&mut self, block: &Arc<Block<M>>, page: u64) {
        let Some(other) = block.pages().find(|&other| other != page) else { return };
        if let Some(blocks) = self.pages.get_mut(&other) {
            blocks.retain(|(_, kept)| !Arc::ptr_eq(kept, block));
            if blocks.is_empty() {
                self.pages.remove(&other);
            }
        }
    }

    fn clear(&mut self) {
        for (_, block) in self.pages.values().flatten() {
            block.invalidate();
        }
        self.pages.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use x86::Exception;

    use super::*;
    use crate::decode::decode_block;
    use crate::interp::Core;
    use crate::machine::{Stop, SystemOp, VectorKind, Word};
    use crate::native::{CodeCache, Options};
    use crate::paths::{Policy, Source};

    /// A machine that nothing runs on.
    #[derive(Debug)]
    pub(crate) struct Idle;

    impl Machine for Idle {
        fn load<T: Word>(&mut self, _: u64) -> Result<T, Stop> {
            Err(Stop::Fault)
        }
        fn store<T: Word>(&mut self, _: u64, _: T) -> Result<(), Stop> {
            Err(Stop::Fault)
        }
        fn load_for_store<T: Word>(&mut self, _: u64) -> Result<T, Stop> {
            Err(Stop::Fault)
        }
        fn update<T: Word>(&mut self, _: u64, _: impl Fn(T) -> T) -> Result<T, Stop> {
            Err(Stop::Fault)
        }
        fn compare_exchange_16(&mut self, _: u64, _: u128, _: u128) -> Result<u128, Stop> {
            Err(Stop::Fault)
        }
        fn load_bytes(&mut self, _: u64, _: &mut [u8]) -> Result<(), Stop> {
            Err(Stop::Fault)
        }
        fn store_bytes(&mut self, _: u64, _: &[u8]) -> Result<(), Stop> {
            Err(Stop::Fault)
        }
        fn probe_store(&mut self, _: u64, _: usize) -> Result<(), Stop> {
            Err(Stop::Fault)
        }
        fn copy(&mut self, _: u64, _: u64, _: u64) -> Result<u64, Stop> {
            Err(Stop::Fault)
        }
        fn fill(&mut self, _: u64, _: u64, _: usize, _: u64) -> Result<u64, Stop> {
            Err(Stop::Fault)
        }
        fn must_end(&mut self) -> bool {
            false
        }
        fn attention(&self) -> bool {
            false
        }
        fn vector_gate(&self, _: VectorKind) -> Option<Exception> {
            None
        }
        fn raise(&mut self, _: Exception) -> Stop {
            Stop::Fault
        }
        fn system(_: &mut Core<Self>, _: SystemOp, _: &Insn<Self>) -> Result<(), Stop> {
            Err(Stop::Fault)
        }
    }

    const LONG: Mode = Mode { width: Width::Bits64 };
    const LEGACY: Mode = Mode { width: Width::Bits32 };

    /// `len` bytes of NOPs at `start`.
    fn block(start: u64, len: usize, next_page: Option<u64>) -> Arc<Block<Idle>> {
        let decoded = decode_block(&vec![0x90; len], LONG, len);
        Arc::new(Block::new(decoded.insns, start, next_page))
    }

    fn find(cache: &BlockCache<Idle>, start: u64, mode: Mode) -> Option<Arc<Block<Idle>>> {
        cache.find(start, mode, || None)
    }

    #[test]
    fn blocks_are_found_by_start_and_mode() {
        let cache = BlockCache::new(1 << 20, 1 << 20);
        for start in [0x1010, 0x1000, 0x1030, 0x1020] {
            cache.insert(LONG, block(start, 8, None));
        }
        cache.insert(LEGACY, block(0x1010, 4, None));
        assert_eq!(find(&cache, 0x1010, LONG).map(|block| block.len), Some(8));
        assert_eq!(find(&cache, 0x1010, LEGACY).map(|block| block.len), Some(4));
        assert!(find(&cache, 0x1011, LONG).is_none());
        assert!(find(&cache, 0x1020, LEGACY).is_none());
    }

    #[test]
    fn a_write_drops_the_blocks_it_hits() {
        let cache = BlockCache::new(1 << 20, 1 << 20);
        let (first, second) = (block(0x1000, 8, None), block(0x1008, 8, None));
        cache.insert(LONG, Arc::clone(&first));
        cache.insert(LONG, Arc::clone(&second));
        assert_eq!(cache.invalidate(1, 16, 24), (0, true));
        assert_eq!(cache.invalidate(1, 7, 8), (1, true));
        assert!(!first.is_valid() && second.is_valid());
        assert_eq!(cache.invalidate(1, 15, 16), (1, false));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_crossing_block_is_dropped_from_either_page() {
        for page in [1, 7] {
            let cache = BlockCache::new(1 << 20, 1 << 20);
            let crossing = block(0x1ffe, 6, Some(7));
            cache.insert(LONG, Arc::clone(&crossing));
            assert!(cache.find(0x1ffe, LONG, || Some(7)).is_some());
            assert!(cache.find(0x1ffe, LONG, || Some(8)).is_none());
            assert_eq!(cache.invalidate(7, 4, 8).0, 0);
            let (from, to) = if page == 1 { (0xffe, 0xfff) } else { (3, 4) };
            assert_eq!(cache.invalidate(page, from, to), (1, false));
            assert!(!crossing.is_valid());
            assert_eq!((cache.invalidate(8 - page, 0, 4096), cache.bytes()), ((0, false), 0));
        }
    }

    #[test]
    fn a_frame_mapped_twice_in_a_row_holds_a_crossing_block_once() {
        let cache = BlockCache::new(1 << 20, 1 << 20);
        cache.insert(LONG, block(0x1ffe, 6, Some(1)));
        assert_eq!(cache.invalidate(1, 3, 4), (1, false));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_crossing_block_with_code_counts_once() {
        let code = CodeCache::new(1 << 20, Options::default(), Policy::BLOCKS).expect("memory");
        // mov eax, imm32
        let source = Source { bytes: &[0xb8, 1, 0, 0, 0], first: 0xffe };
        let made = code.translate_crossing::<Idle>(&Path::run(0xffe, 5), source, 1, 3, (7, 4));
        let cache = BlockCache::new(1 << 20, 1 << 20);
        cache.insert(LONG, made.expect("code").block);
        assert_eq!(cache.path_bytes(), cache.bytes());
        assert_eq!(cache.invalidate(7, 2, 3).0, 1);
        assert_eq!((cache.path_bytes(), cache.bytes()), (0, 0));
    }

    #[test]
    fn a_replaced_block_is_invalid() {
        let cache = BlockCache::new(1 << 20, 1 << 20);
        let old = block(0x1000, 8, None);
        cache.insert(LONG, Arc::clone(&old));
        cache.insert(LONG, block(0x1000, 4, None));
        assert!(!old.is_valid());
        assert_eq!(find(&cache, 0x1000, LONG).map(|block| block.len), Some(4));
    }

    #[test]
    fn blocks_without_code_are_dropped_as_it_grows() {
        let cache = BlockCache::new(1 << 20, 4096);
        let blocks: Vec<_> = (0..100).map(|n| block(n << 12, 4, None)).collect();
        for block in &blocks {
            cache.insert(LONG, Arc::clone(block));
            assert!(cache.bytes() <= 4096 + block.bytes());
        }
        assert!(!blocks[0].is_valid() && blocks[99].is_valid());
    }

    #[test]
    fn a_full_cache_starts_over() {
        let cache = BlockCache::new(4096, 4096);
        let blocks: Vec<_> = (0..100).map(|n| block(n << 12, 4, None)).collect();
        for block in &blocks {
            cache.insert(LONG, Arc::clone(block));
            assert!(cache.bytes() <= 4096);
        }
        assert!(!blocks[0].is_valid() && blocks[99].is_valid());
    }
}
