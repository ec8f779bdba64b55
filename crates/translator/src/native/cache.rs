//! The generated code of a VM, shared by its vCPUs.

use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::asm::Asm;
use super::lane::Came;
use super::listing::Emitted;
use super::memory::{Lease, SIZE};
use super::options::Options;
use super::stats::CodeStats;
use super::tables::CODE_FRAMES;
use super::thunks::Thunks;
use super::translate::{self, Code, FAR_SITE, Places};
use crate::block::Block;
use crate::machine::Machine;
use crate::vector::ArenaError;

/// Code starts at multiples of this.
const ALIGN: u32 = 16;

/// See the module.
///
/// Bounded: when it is full nothing is translated any more until [`CodeCache::reset`], for which all cores
/// must have come out.
pub struct CodeCache {
    options: Options,
    /// Bytes that may be used.
    size: usize,
    memory: Arc<Lease>,
    thunks: Thunks,
    inner: Mutex<Inner>,
    /// Counts resets: what a core knows of places is of one epoch.
    epoch: AtomicU32,
}

struct Inner {
    used: u32,
    full: bool,
    stats: CodeStats,
    /// In order of their places.
    blocks: Vec<Translated>,
}

/// A block that has code.
struct Translated {
    start: u32,
    /// Physical page.
    page: u64,
    /// Its instructions are named in the code: it lives as long as that, valid or not.
    _block: Arc<dyn Any + Send + Sync>,
}

/// A block's code. Belongs to the [`Block`].
#[derive(Debug)]
pub(crate) struct NativeBlock {
    memory: Arc<Lease>,
    pub(super) places: Places,
    /// Its frame's number among those with code.
    frame: u32,
    offset: u32,
    /// Place of its guard, once there is one.
    guard: AtomicU32,
}

impl NativeBlock {
    pub(crate) fn frame(&self) -> u32 {
        self.frame
    }

    /// Whoever enters leaves at once.
    pub(crate) fn close(&self) {
        self.memory.make_jump(self.places.inner, self.places.dead);
    }
}

/// Why there is no code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotTranslated {
    /// No memory left: see [`CodeCache::reset`].
    Full,
    /// The block cannot be translated: it is always interpreted.
    Never,
}

impl CodeCache {
    /// For at most `size` bytes of code, or 64 MiB.
    ///
    /// # Errors
    /// The host gives no memory that can be executed.
    pub fn new(size: usize, options: Options) -> Result<Self, ArenaError> {
        const { assert!(SIZE < FAR_SITE as usize) };
        let memory = Arc::new(Lease::new()?);
        let size = size.min(SIZE);
        // A link is never at place 0.
        let mut asm = Asm::new(ALIGN);
        let thunks = Thunks::emit(&mut asm);
        memory.write(ALIGN, &asm.finish());
        let inner = Inner {
            used: first_place(&thunks),
            full: false,
            blocks: Vec::new(),
            stats: CodeStats::default(),
        };
        Ok(Self {
            options,
            size,
            memory,
            thunks,
            inner: Mutex::new(inner),
            epoch: AtomicU32::new(0),
        })
    }

    /// Bytes of code, thunks included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().used as usize
    }

    /// Whether nothing can be translated before a reset.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Forgets all code. No core is inside, and no block with code is valid any more.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.used = first_place(&self.thunks);
        inner.full = false;
        inner.blocks.clear();
        inner.stats.bookkeeping_bytes = 0;
        inner.stats.evictions += 1;
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Translates `block`, all of whose bytes are `source` and lie in one page: the one whose frame has number
    /// `frame` among those with code. `None`: it had been already.
    ///
    /// # Errors
    /// See [`NotTranslated`].
    pub fn translate<M: Machine + 'static>(
        &self,
        block: &Arc<Block<M>>,
        source: &[u8],
        frame: u32,
    ) -> Result<Option<Emitted>, NotTranslated> {
        if block.native().is_some() {
            return Ok(None);
        }
        if block.next_page.is_some() || frame >= CODE_FRAMES {
            return Err(NotTranslated::Never);
        }
        let mut inner = self.lock();
        if inner.full {
            return Err(NotTranslated::Full);
        }
        let start = inner.used;
        let code = translate::translate(block, source, start, &self.thunks, self.options)
            .ok_or(NotTranslated::Never)?;
        if !self.append(&mut inner, &code.bytes) {
            return Err(NotTranslated::Full);
        }
        let kept = Arc::clone(block) as Arc<dyn Any + Send + Sync>;
        inner.count(block, &code, start);
        inner.blocks.push(Translated { start, page: block.start >> 12, _block: kept });
        let memory = Arc::clone(&self.memory);
        block.set_native(NativeBlock {
            memory,
            places: code.places,
            frame,
            offset: (block.start & 0xfff) as u32,
            guard: AtomicU32::new(0),
        });
        let memory = Arc::clone(&self.memory);
        let range = start..start + code.bytes.len() as u32;
        let (stubs, thunks) = (code.places.stubs, self.thunks);
        Ok(Some(Emitted { memory, range, marks: code.marks, stubs, thunks }))
    }

    /// Adds code behind the last. Whether there was room.
    fn append(&self, inner: &mut Inner, code: &[u8]) -> bool {
        let (start, end) = (inner.used, inner.used as usize + code.len());
        if end + ALIGN as usize > self.size {
            inner.full = true;
            return false;
        }
        self.memory.write(start, code);
        inner.used = (end as u32).next_multiple_of(ALIGN);
        true
    }

    /// Place of the block's guard, made now if need be. `None`: there is no room.
    pub(super) fn guard(&self, native: &NativeBlock) -> Option<u32> {
        let known = native.guard.load(Ordering::Acquire);
        if known != 0 {
            return Some(known);
        }
        self.make_guard(&mut self.lock(), native)
    }

    fn make_guard(&self, inner: &mut Inner, native: &NativeBlock) -> Option<u32> {
        let (place, to) = (inner.used, native.places.inner);
        let code = translate::guard(native.offset, native.frame, to, place, &self.thunks);
        if inner.full || !self.append(inner, &code) {
            return None;
        }
        inner.stats.stub_bytes += code.len() as u64;
        // Where two cores make one, both are good.
        native.guard.store(place, Ordering::Release);
        Some(place)
    }

    /// Lets the branch that `came` lead to `block`, which is where it led, from now on.
    pub(super) fn link<M: Machine>(&self, came: Came, block: &Block<M>) {
        let Some(native) = block.native() else { return };
        let (at, far) = (came.site & !FAR_SITE, came.site & FAR_SITE != 0);
        if !self.options.link || far && !self.options.link_far {
            return;
        }
        let mut inner = self.lock();
        // Other code stands there now if there was a reset since, which another core may have made.
        if came.epoch != self.epoch() {
            return;
        }
        if far {
            let known = native.guard.load(Ordering::Acquire);
            let guard = if known == 0 { self.make_guard(&mut inner, native) } else { Some(known) };
            if let Some(guard) = guard {
                inner.stats.links += 1;
                self.memory.redirect(at, guard);
            }
            return;
        }
        // The page may have come to lead elsewhere since the branch was taken.
        let index = inner.blocks.partition_point(|known| known.start <= at);
        if index > 0 && inner.blocks[index - 1].page == block.start >> 12 {
            inner.stats.links += 1;
            self.memory.redirect(at, native.places.inner);
        }
    }

    /// What was made so far.
    #[must_use]
    pub fn stats(&self) -> CodeStats {
        self.lock().stats
    }

    /// What is beside the blocks: names, and host addresses.
    pub fn thunk_names(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> {
        let addresses = |range: Range<u32>| self.address(range.start)..self.address(range.end);
        self.thunks.names().into_iter().map(move |(name, range)| (name, addresses(range)))
    }

    pub(super) fn options(&self) -> Options {
        self.options
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(super) fn address(&self, place: u32) -> usize {
        self.memory.address(place)
    }

    pub(super) fn thunks(&self) -> &Thunks {
        &self.thunks
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic leaves at worst bytes that nothing leads to.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count<M: Machine>(&mut self, block: &Block<M>, code: &Code, start: u32) {
        let in_line = u64::from(code.places.stubs - start);
        let kept = block.bytes() + size_of::<Translated>();
        let stats = &mut self.stats;
        stats.blocks += 1;
        stats.instructions += block.insns.len() as u64;
        stats.guest_bytes += u64::from(block.len);
        stats.code_bytes += in_line;
        stats.stub_bytes += code.bytes.len() as u64 - in_line;
        stats.bookkeeping_bytes += kept as u64;
    }
}

fn first_place(thunks: &Thunks) -> u32 {
    thunks.end.next_multiple_of(ALIGN)
}
