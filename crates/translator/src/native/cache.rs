//! The generated code of a VM, shared by its vCPUs.

use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::asm::Asm;
use super::lane::Came;
use super::listing::Emitted;
use super::memory::{Lease, SIZE};
use super::options::Options;
use super::proactive::Proactive;
use super::stats::CodeStats;
use super::stub::LEAVE;
use super::tables::CODE_FRAMES;
use super::thunks::Thunks;
use super::translate::{self, Code, FAR_SITE, Scratch};
use crate::block::Block;
use crate::executable::LARGE;
use crate::machine::Machine;
use crate::paths::{Links, Path, Policy, Source};
use crate::vector::ArenaError;

/// What the allocator takes for each piece of memory.
pub(crate) const MALLOC: usize = 16;

/// Code starts at multiples of this.
const ALIGN: u32 = 16;

/// See the module.
///
/// Bounded: when it is full nothing is translated any more until [`CodeCache::reset`], for which all cores
/// must have come out.
pub struct CodeCache {
    options: Options,
    policy: Policy,
    /// Bytes of code, stubs and bookkeeping, at most.
    size: usize,
    /// Bytes that those take who choose paths.
    choosing: AtomicUsize,
    memory: Arc<Lease>,
    thunks: Thunks,
    inner: Mutex<Inner>,
    /// Counts resets: what a core knows of places is of one epoch.
    epoch: AtomicU32,
}

struct Inner {
    used: u32,
    /// The most of them at a time.
    most_used: u32,
    /// Bytes of the paths' blocks since there was none.
    kept: usize,
    /// Bytes for which large pages were asked for.
    large: usize,
    /// Bytes that the last of them takes it to.
    held: usize,
    full: bool,
    stats: CodeStats,
    /// In order of their places.
    paths: Vec<Translated>,
    links: Proactive,
    scratch: Scratch,
}

/// A path that has code.
#[derive(Clone, Copy, Debug)]
struct Translated {
    start: u32,
    /// Its frame's number among those with code.
    frame: u32,
    /// Offset of its head in the page.
    head: u16,
}

/// What became of a path.
#[derive(Debug)]
pub struct Made<M: Machine> {
    /// The path, which nobody finds yet.
    pub block: Arc<Block<M>>,
    /// Its code.
    pub emitted: Emitted,
}

/// A block's code. Belongs to the [`Block`].
#[derive(Debug)]
pub(crate) struct NativeBlock {
    memory: Arc<Lease>,
    pub(super) inner: u32,
    /// Where `inner` is to lead when the path is invalid.
    pub(super) dead: u32,
    /// As in [`translate::Places`].
    pub(super) landing: u32,
    /// Its frame's number among those with code.
    frame: u32,
    /// That of the page behind it, where its one instruction reaches into that.
    next_frame: Option<u32>,
    offset: u16,
    /// Somebody may look at flags that it is entered with.
    needs_flags: bool,
    /// Place of its guard, once there is one.
    guard: AtomicU32,
    /// Where that leads on.
    guard_site: AtomicU32,
}

impl NativeBlock {
    pub(crate) fn frame(&self) -> u32 {
        self.frame
    }

    pub(crate) fn next_frame(&self) -> Option<u32> {
        self.next_frame
    }

    /// Bytes that it takes.
    pub(crate) const BYTES: usize = size_of::<Self>() + MALLOC;

    /// Whoever enters leaves at once, with flags, and so does whoever comes back to where they are thought to be of no
    /// interest.
    pub(crate) fn close(&self) {
        self.memory.make_jump(self.inner, self.dead);
        if self.landing != 0 {
            self.memory.make_jump(self.landing, self.dead + LEAVE);
        }
        let site = self.guard_site.load(Ordering::SeqCst);
        if site != 0 {
            // See `translate::guard`.
            self.memory.redirect(site, site + 4);
        }
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
    /// For at most `size` bytes of code, stubs and bookkeeping, of which code and stubs take no more than 64 MiB.
    ///
    /// # Errors
    /// The host gives no memory that can be executed.
    pub fn new(size: usize, options: Options, policy: Policy) -> Result<Self, ArenaError> {
        const { assert!(SIZE < FAR_SITE as usize) };
        let memory = Arc::new(Lease::new()?);
        // A link is never at place 0.
        let mut asm = Asm::new(ALIGN);
        let thunks = Thunks::emit(&mut asm);
        memory.write(ALIGN, &asm.finish());
        let inner = Inner {
            used: first_place(&thunks),
            most_used: first_place(&thunks),
            kept: 0,
            large: 0,
            held: 0,
            full: false,
            paths: Vec::new(),
            links: Proactive::default(),
            stats: CodeStats::default(),
            scratch: Scratch::new(),
        };
        Ok(Self {
            options,
            policy,
            size,
            choosing: AtomicUsize::new(0),
            memory,
            thunks,
            inner: Mutex::new(inner),
            epoch: AtomicU32::new(0),
        })
    }

    /// Bytes of code, stubs and bookkeeping, thunks included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let inner = self.lock();
        inner.used as usize + inner.bookkeeping() + self.choosing.load(Ordering::Relaxed)
    }

    /// Whether nothing can be translated before a reset.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Counts bytes that somebody takes from now on to choose paths; all are given back when the epoch changes.
    pub fn count_choosing(&self, bytes: usize) {
        self.choosing.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Forgets all code. No core is inside, and no block with code is valid any more.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.used = first_place(&self.thunks);
        inner.kept = 0;
        inner.full = false;
        self.choosing.store(0, Ordering::Relaxed);
        inner.paths = Vec::new();
        inner.links = Proactive::default();
        inner.stats.evictions += 1;
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Translates `path`, whose bytes are in `source`, of physical page `page`, whose frame has number `frame` among
    /// those with code.
    ///
    /// # Errors
    /// See [`NotTranslated`].
    pub fn translate<M: Machine>(
        &self,
        path: &Path,
        source: Source<'_>,
        page: u64,
        frame: u32,
    ) -> Result<Made<M>, NotTranslated> {
        self.translate_in(path, source, page, frame, None)
    }

    /// The same for a path of one instruction, which ends in another page: `next` is its number, and that of its
    /// frame.
    ///
    /// # Errors
    /// See [`NotTranslated`].
    pub fn translate_crossing<M: Machine>(
        &self,
        path: &Path,
        source: Source<'_>,
        page: u64,
        frame: u32,
        next: (u64, u32),
    ) -> Result<Made<M>, NotTranslated> {
        if next.1 >= CODE_FRAMES {
            return Err(NotTranslated::Never);
        }
        self.translate_in(path, source, page, frame, Some(next))
    }

    fn translate_in<M: Machine>(
        &self,
        path: &Path,
        source: Source<'_>,
        page: u64,
        frame: u32,
        next: Option<(u64, u32)>,
    ) -> Result<Made<M>, NotTranslated> {
        if frame >= CODE_FRAMES {
            return Err(NotTranslated::Never);
        }
        let mut inner = self.lock();
        if inner.full {
            return Err(NotTranslated::Full);
        }
        let start = inner.used;
        let (options, policy) = (self.options, &self.policy);
        let how = (options, policy);
        let next_frame = next.map(|(_, frame)| frame);
        let (thunks, scratch) = (&self.thunks, &mut inner.scratch);
        let mut code = translate::translate(path, source, start, thunks, how, next_frame, scratch)
            .ok_or(NotTranslated::Never)?;
        let depends = path.fragments.len() + code.watched().count();
        let more = inner.growth(code.links.len()) + Block::<M>::path_bytes_at_most(depends);
        if !self.append(&mut inner, code.bytes(), more) {
            return Err(NotTranslated::Full);
        }
        let memory = Arc::clone(&self.memory);
        let native = NativeBlock {
            memory,
            inner: code.places.inner,
            dead: code.places.dead,
            landing: code.places.landing,
            frame,
            next_frame,
            offset: path.head() as u16,
            needs_flags: code.needs_flags,
            guard: AtomicU32::new(0),
            guard_site: AtomicU32::new(0),
        };
        let next_page = next.map(|(page, _)| page);
        let block = Arc::new(Block::of_path(page, path, code.watched(), next_page, native));
        inner.kept += block.bytes();
        inner.count(path, &code, start);
        let more = inner.more_paths();
        inner.paths.reserve_exact(more);
        inner.paths.push(Translated { start, frame, head: path.head() as u16 });
        if policy.links == Links::Proactive && options.link {
            let place = |offset: u32| u64::from(frame) << 12 | u64::from(offset);
            let exits = code.links.iter().map(|&(site, to)| (site, place(to.into())));
            let led = inner.links.add(place(path.head()), code.places.inner, exits);
            inner.stats.links += led.len() as u64;
            led.into_iter().for_each(|(site, to)| self.memory.redirect(site, to));
        }
        self.note_peak(&mut inner);
        let memory = Arc::clone(&self.memory);
        let range = start..start + code.bytes().len() as u32;
        let (stubs, thunks) = (code.places.stubs, self.thunks);
        let marks = mem::take(&mut code.marks);
        inner.scratch.take_back(code);
        Ok(Made { block, emitted: Emitted { memory, range, marks, stubs, thunks } })
    }

    /// Adds code behind the last, for which `more` bytes of bookkeeping are about to be taken. Whether there was room.
    fn append(&self, inner: &mut Inner, code: &[u8], more: usize) -> bool {
        let (start, end) = (inner.used, inner.used as usize + code.len());
        let beside = inner.bookkeeping() + self.choosing.load(Ordering::Relaxed) + more;
        let room = SIZE.min(self.size.saturating_sub(beside));
        if end + ALIGN as usize > room {
            inner.full = true;
            return false;
        }
        self.memory.write(start, code);
        // A large page may be more than is left.
        while inner.large < end && inner.large + LARGE <= room {
            // Only where something is already.
            if self.memory.make_large(inner.large as u32) {
                inner.held = inner.large + LARGE;
            }
            inner.large += LARGE;
        }
        inner.used = (end as u32).next_multiple_of(ALIGN);
        inner.most_used = inner.most_used.max(inner.used);
        true
    }

    fn note_peak(&self, inner: &mut Inner) {
        let beside = inner.bookkeeping() + self.choosing.load(Ordering::Relaxed);
        let taken = inner.held.max(inner.used as usize) + beside;
        inner.stats.peak_bytes = inner.stats.peak_bytes.max(taken as u64);
    }

    /// Place of the guard of `block`, made now if need be. `None`: there is no room, or no code.
    pub(super) fn guard<M: Machine>(&self, block: &Block<M>) -> Option<u32> {
        let known = block.native()?.guard.load(Ordering::Acquire);
        if known != 0 {
            return Some(known);
        }
        self.guard_in(&mut self.lock(), block)
    }

    fn guard_in<M: Machine>(&self, inner: &mut Inner, block: &Block<M>) -> Option<u32> {
        let native = block.native()?;
        let known = native.guard.load(Ordering::Acquire);
        if known != 0 {
            return Some(known);
        }
        let (place, offset) = (inner.used, native.offset.into());
        let NativeBlock { frame, inner: to, needs_flags, .. } = *native;
        let guard = translate::guard(offset, frame, to, needs_flags, place, &self.thunks);
        if inner.full || !self.append(inner, &guard.bytes, 0) {
            return None;
        }
        inner.stats.stub_bytes += guard.bytes.len() as u64;
        debug_assert_eq!(guard.with_flags, guard.site + 4);
        native.guard_site.store(guard.site, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Whoever has closed it meanwhile may not have seen the guard.
        if !block.is_valid() {
            native.close();
        }
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
            if let Some(guard) = self.guard_in(&mut inner, block) {
                inner.stats.links += 1;
                self.memory.redirect(at, guard);
            }
            return;
        }
        // The page may have come to lead elsewhere since the branch was taken.
        if inner.path_at(at).is_some_and(|from| from.frame == native.frame) {
            inner.stats.links += 1;
            self.memory.redirect(at, native.inner);
        }
    }

    /// Offset in its page of the head of the path that `came` out of.
    pub(super) fn head_of(&self, came: Came) -> Option<u32> {
        self.lock().path_at(came.site & !FAR_SITE).map(|path| path.head.into())
    }

    /// What was made so far.
    #[must_use]
    pub fn stats(&self) -> CodeStats {
        let inner = self.lock();
        let kept = inner.bookkeeping() - inner.kept;
        // What was taken once is not given back.
        let held = inner.held.max(inner.most_used as usize);
        CodeStats { bookkeeping_bytes: kept as u64, held_bytes: held as u64, ..inner.stats }
    }

    /// What is beside the blocks: names, and host addresses.
    pub fn thunk_names(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> {
        let addresses = |range: Range<u32>| self.address(range.start)..self.address(range.end);
        self.thunks.names().into_iter().map(move |(name, range)| (name, addresses(range)))
    }

    pub(super) fn options(&self) -> Options {
        self.options
    }

    /// Counts how often all code has gone.
    #[must_use]
    pub fn epoch(&self) -> u32 {
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
    /// Bytes beside code and stubs.
    fn bookkeeping(&self) -> usize {
        self.kept + self.paths.capacity() * size_of::<Translated>() + self.links.bytes()
    }

    /// Bytes that tables grow by with one more path, at most, if it has so many links.
    fn growth(&self, links: usize) -> usize {
        self.links.growth(links) + self.more_paths() * size_of::<Translated>()
    }

    /// So many paths more are made room for when the next one comes: twice as many would be half empty.
    fn more_paths(&self) -> usize {
        let is_full = self.paths.len() == self.paths.capacity();
        if is_full { self.paths.len() / 8 + 16 } else { 0 }
    }

    /// The path whose code `place` is in.
    fn path_at(&self, place: u32) -> Option<Translated> {
        let index = self.paths.partition_point(|known| known.start <= place);
        self.paths[..index].last().copied()
    }

    fn count(&mut self, path: &Path, code: &Code, start: u32) {
        let in_line = u64::from(code.places.stubs - start);
        let stats = &mut self.stats;
        stats.blocks += 1;
        stats.fragments += path.fragments.len() as u64;
        stats.instructions += code.marks.len() as u64;
        stats.guest_bytes += u64::from(path.len());
        stats.code_bytes += in_line;
        stats.stub_bytes += code.bytes().len() as u64 - in_line;
    }
}

fn first_place(thunks: &Thunks) -> u32 {
    thunks.end.next_multiple_of(ALIGN)
}
