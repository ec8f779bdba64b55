//! Frames of several guests that have the same contents, in one page of the host.
//!
//! ```text
//!              begin            revoked, not touched     the same as the slot, byte for byte
//!  resident ----------> discarding ----------> punching ----------> absent(pool): its address shows the slot, to read
//!     ^                     |                      |                    |
//!     +---------------------+----------------------+                    | the first write of a vCPU, any access of
//!     ^  an access takes it back     it differs                         | a device: copied, its address shows that
//!     +-----------------------------------------------------------------+
//! ```
//! As an eviction (`evict`), whose source is the pool. What differs: a vCPU reads a shared frame where it is, since its address
//! shows the slot. So nobody's translation changes when it is shared no more, and no vCPU is waited for then: the copy
//! is complete before the address shows it, and both have the same contents.
//!
//! While a frame is compared nobody has a translation or a pin of it, and nobody but the pool's owner can write the slot.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::address::{FRAME_SIZE, Frame, FrameRange};
use crate::guest_memory::{GuestMemory, ResolveError};
use crate::ram::Ram;
use crate::revoke::Revocation;
use crate::share_pool::Pool;
use crate::source::{Source, SourceError, SourceId};

/// Frames shared at a time at most. Each may split the mapping of RAM twice, and a process may have 65,530 mappings
/// (vm.max_map_count): a write must never find that there is none left for its copy.
pub const SHARED_MAX: u32 = 28_000;

/// What became of a frame that was to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is shared.
    Shared,
    /// Its contents are others.
    Differs,
    /// It is not resident, a device holds it, or somebody accessed it meanwhile; or there is no such frame or slot.
    Busy,
    /// As many are shared as may be, or the host refused: it stays the guest's own.
    Full,
}

/// Why nothing was shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The guest's own pages are in no file.
    #[error("share frames: the memory is anonymous, or over an image")]
    Anonymous,
    /// Who saves it reads frames by their state.
    #[error("share frames: the memory is being saved")]
    Frozen,
    /// Guests reach memory by themselves, at an address that must stay writable.
    #[error("share frames: this engine's guests reach memory by themselves")]
    Engine,
    /// [`GuestMemory::attach_pool`] comes first.
    #[error("share frames: there is no pool")]
    NoPool,
    /// There is no number left for the pool among the sources.
    #[error("share frames: too many sources of memory")]
    Sources,
    /// A frame of the pool before could not be copied.
    #[error("share frames: {0}")]
    Resolve(#[from] ResolveError),
}

/// The pool that frames of a memory are shared in.
#[derive(Default)]
pub(crate) struct Sharing(RwLock<Option<Arc<Shared>>>);

struct Shared {
    pool: Pool,
    source: SourceId,
    held: Mutex<HeldSlots>,
    count: AtomicU32,
}

/// Which slot each frame has, and whether it has it still.
#[derive(Default)]
struct HeldSlots {
    of: HashMap<Frame, u32>,
    /// Frames that are shared no more, and whose slots the pool's owner has not been told of.
    broken: Vec<Frame>,
    /// Slots to tell of.
    released: Vec<u32>,
}

impl HeldSlots {
    /// Nobody asks for what frames had at the pool that are not `there` any more, not even on their way.
    fn settle(&mut self, there: impl Fn(Frame) -> bool) {
        for frame in self.broken.extract_if(.., |frame| !there(*frame)) {
            self.released.extend(self.of.remove(&frame));
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, HeldSlots> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the pool is to who fetches an absent frame.
struct FromPool(std::sync::Weak<Shared>);

impl Source for FromPool {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        let gone = || SourceError::Unavailable(format!("frame {frame} is shared no more"));
        let shared = self.0.upgrade().ok_or_else(gone)?;
        // Locked while it is copied: a slot that is told of may get other contents.
        let held = shared.held();
        let slot = *held.of.get(&frame).ok_or_else(gone)?;
        shared.pool.copy(slot, into);
        Ok(())
    }
}

impl Sharing {
    fn get(&self) -> RwLockReadGuard<'_, Option<Arc<Shared>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ram {
    /// Shows a slot where a frame is, to read.
    fn show_slot(&self, frame: Frame, pool: &Pool, slot: u32) -> Result<(), Errno> {
        let from = u64::from(slot) * FRAME_SIZE as u64;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        let at = self.page(frame).as_ptr().cast();
        // SAFETY: one page of RAM, in the place of the guest's own, which has the same contents.
        unsafe { rustix::mm::mmap(at, FRAME_SIZE, ProtFlags::READ, flags, &pool.file, from) }
            .map(drop)
    }

    /// Shows the file again where a frame is.
    fn show_own(&self, frame: Frame) -> Result<(), Errno> {
        self.guest.show(&self.file(), frame.index() * FRAME_SIZE, FRAME_SIZE)
    }
}

impl GuestMemory {
    /// From now on frames can be shared in `pool`. What is shared in another one becomes the guest's own first.
    ///
    /// # Errors
    /// See [`ShareError`]; then the pool is what it was before.
    pub fn attach_pool(&self, pool: Pool) -> Result<(), ShareError> {
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        self.may_share()?;
        self.unshare_all()?;
        // A thread that copies a frame has it noted here when it is done: what a memory has once had stays.
        let mut failed = false;
        let shared = Arc::new_cyclic(|weak| {
            let source = self.add_slow_source(Arc::new(FromPool(weak.clone())));
            failed = source.is_none();
            let source = source.unwrap_or(SourceId::BASE);
            Shared { pool, source, held: Mutex::default(), count: AtomicU32::new(0) }
        });
        if failed {
            return Err(ShareError::Sources);
        }
        *self.sharing.0.write().unwrap_or_else(PoisonError::into_inner) = Some(shared);
        Ok(())
    }

    fn may_share(&self) -> Result<(), ShareError> {
        if self.is_anonymous() {
            return Err(ShareError::Anonymous);
        }
        if self.is_frozen() {
            return Err(ShareError::Frozen);
        }
        let unseen = self.observer().is_some_and(|observer| observer.maps_by_itself());
        if unseen || self.ram.others.get().is_some() { Err(ShareError::Engine) } else { Ok(()) }
    }

    /// Shares those of the frames that have the same contents as their slots, and answers what became of each. Their
    /// own pages go back to the host.
    ///
    /// Must not be called by a vCPU.
    ///
    /// # Errors
    /// See [`ShareError`]; nothing is shared then.
    pub fn share(&self, wanted: &[(Frame, u32)]) -> Result<Vec<Switch>, ShareError> {
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        self.may_share()?;
        let shared = self.sharing.get().clone().ok_or(ShareError::NoPool)?;
        self.settle(&shared);
        let mut leaving = Leaving { memory: self, frames: BTreeSet::new() };
        let mut outcome = vec![Switch::Busy; wanted.len()];
        let mut begun = vec![false; wanted.len()];
        for (index, &(frame, slot)) in wanted.iter().enumerate() {
            let exists = frame.0 < self.table.len() && slot < shared.pool.slots();
            // A frame that is named twice is begun once.
            if exists && !leaving.frames.contains(&frame) && self.table.begin_evict(frame) {
                begun[index] = true;
                leaving.frames.insert(frame);
            }
        }
        if leaving.frames.is_empty() {
            return Ok(outcome);
        }
        let sorted: Vec<Frame> = leaving.frames.iter().copied().collect();
        self.revoke(Revocation::Frames(&FrameRange::coalesce(&sorted, u32::MAX)));
        for (index, &(frame, slot)) in wanted.iter().enumerate() {
            if begun[index] && self.table.begin_punch(frame) {
                outcome[index] = self.switch(&shared, frame, slot);
                let source = (outcome[index] == Switch::Shared).then_some(shared.source);
                self.table.evicted(frame, source);
                leaving.frames.remove(&frame);
            }
        }
        Ok(outcome)
    }

    /// Of a frame that is punching.
    fn switch(&self, shared: &Shared, frame: Frame, slot: u32) -> Switch {
        let (mut own, mut other) = ([0; FRAME_SIZE], [0; FRAME_SIZE]);
        self.ram.copy(frame, &mut own);
        shared.pool.copy(slot, &mut other);
        if own != other {
            return Switch::Differs;
        }
        let full = shared.count.load(Ordering::Relaxed) >= SHARED_MAX;
        if full || self.ram.show_slot(frame, &shared.pool, slot).is_err() {
            return Switch::Full;
        }
        if self.ram.punch(FrameRange { first: frame, count: 1 }).is_err() {
            // Nothing is gained then, and nothing lost: the page may be there or not.
            let is_back = self.ram.fill(frame, &own).and_then(|()| self.ram.show_own(frame));
            if is_back.is_ok() {
                return Switch::Full;
            }
        }
        let mut held = shared.held();
        let before = held.of.insert(frame, slot);
        // Broken since this began.
        held.released.extend(before);
        drop(held);
        shared.count.fetch_add(1, Ordering::Relaxed);
        Switch::Shared
    }

    /// Whether `frame`, which is not resident, can be read where it is all the same.
    #[inline]
    pub(crate) fn shows_slot(&self, frame: Frame) -> bool {
        let word = self.table.word(frame);
        word.is_absent_elsewhere()
            && self.sharing.get().as_ref().is_some_and(|shared| shared.source == word.source())
    }

    /// The same, or on its way from there to a page of its own.
    pub(crate) fn is_from_pool(&self, frame: Frame) -> bool {
        let word = self.table.word(frame);
        word.is_elsewhere()
            && self.sharing.get().as_ref().is_some_and(|shared| shared.source == word.source())
    }

    fn settle(&self, shared: &Shared) {
        let there = |frame| {
            let word = self.table.word(frame);
            word.is_elsewhere() && word.source() == shared.source
        };
        shared.held().settle(there);
    }

    /// The contents of `frame`, which came from `source`, are in its own page: it is what its address shows from now on.
    pub(crate) fn show_filled(&self, frame: Frame, source: SourceId) -> Result<(), Errno> {
        let sharing = self.sharing.get();
        let Some(shared) = sharing.as_ref().filter(|shared| shared.source == source) else {
            return Ok(());
        };
        self.ram.show_own(frame)?;
        shared.count.fetch_sub(1, Ordering::Relaxed);
        shared.held().broken.push(frame);
        Ok(())
    }

    /// Copies what is shared: every frame has a page of its own then.
    pub(crate) fn unshare_all(&self) -> Result<(), ResolveError> {
        self.unshare(self.shared_frames())
    }

    /// Of `frames` those that are shared. The rest stay what they are.
    pub(crate) fn unshare(
        &self,
        frames: impl IntoIterator<Item = Frame>,
    ) -> Result<(), ResolveError> {
        if self.sharing.get().is_none() {
            return Ok(());
        }
        let mut frames = frames.into_iter().filter(|frame| frame.0 < self.table.len());
        // One that somebody copies already is waited for.
        frames.try_for_each(|frame| match self.is_from_pool(frame) {
            true => self.make_resident(frame, false),
            false => Ok(()),
        })
    }

    fn shared_frames(&self) -> Vec<Frame> {
        let shared = self.sharing.get().clone();
        shared.map(|shared| shared.held().of.keys().copied().collect()).unwrap_or_default()
    }

    /// How many frames are shared.
    #[must_use]
    pub fn shared(&self) -> u32 {
        self.sharing.get().as_ref().map_or(0, |shared| shared.count.load(Ordering::Relaxed))
    }

    /// Slots that frames had and have no more since this was asked last, each as often as it was had; none while memory is
    /// being saved, since who saves it may want one.
    #[must_use]
    pub fn released_slots(&self) -> Vec<u32> {
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        match self.sharing.get().as_ref() {
            Some(shared) if !self.is_frozen() => {
                self.settle(shared);
                std::mem::take(&mut shared.held().released)
            }
            _ => Vec::new(),
        }
    }

    /// Copies a shared frame without making it the guest's own, even while somebody does that: the slot has its contents until
    /// then. False: it is not shared, or was until just now.
    pub(crate) fn read_shared(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> bool {
        let shared = self.sharing.get().clone();
        shared.is_some_and(|shared| {
            // Locked before it is looked at: what has been copied since is not given to others before this is done.
            let held = shared.held();
            let word = self.table.word(frame);
            let is_there = word.is_elsewhere() && word.source() == shared.source;
            let slot = held.of.get(&frame).filter(|_| is_there);
            slot.inspect(|&&slot| shared.pool.copy(slot, into)).is_some()
        })
    }
}

/// Frames that are discarding. Those that are so still when it is dropped stay with the guest.
struct Leaving<'a> {
    memory: &'a GuestMemory,
    frames: BTreeSet<Frame>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.frames.iter().for_each(|&frame| self.memory.table.cancel_discard(frame));
    }
}

impl From<ShareError> for io::Error {
    fn from(error: ShareError) -> io::Error {
        io::Error::other(error)
    }
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
