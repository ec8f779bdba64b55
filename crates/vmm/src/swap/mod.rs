//! Memory that the host takes from a guest that does not give it: the coldest frames, which come back when they are
//! touched (docs/decisions/0015).
//!
//! ```text
//!   insight::coldest --> GuestMemory::evict --keep--> Swap: zeros            nothing is written
//!                                                           same as a block of an image that nobody writes: the block
//!                                                           same as what the store has of it: that
//!                                                           else: the store, compressed
//!   a touch --> GuestMemory::resolve --fetch--> Swap, with the frame's neighbours
//! ```
//! A frame that comes back keeps its place: if it is unchanged when it is taken again, nothing is written. Places of frames
//! that are back go when the store has no room.

mod reclaim;
mod slots;
mod store;

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use memory::{
    DiskBlock, Evict, FRAME_SIZE, Frame, FrameState, GuestMemory, Source, SourceError, SourceId,
    is_zero,
};
use snapshot::DiskBlocks;

use crate::saved::Images;
pub(crate) use reclaim::{Reclaim, ask as ask_to_reclaim};
use store::{Kept, PutError, Store, checksum};

/// Frames that come back together: those of a block of so many, as far as they are here, too.
const NEIGHBOURS: u32 = 8;
/// A store with less room than this gives up what frames that are back have there.
const ROOM: u64 = 4 << 20;

/// What the host is to take of a VM's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReclaimRequest {
    /// Bytes, from now on; what was asked before is forgotten. 0 ends it.
    pub bytes: u64,
    /// At most so much in a second.
    pub bytes_per_second: Option<u64>,
    /// The store may have so many bytes in all.
    pub store_limit_bytes: Option<u64>,
}

/// What was taken of a VM's memory since it was started or rebooted, and what became of it. All but the number of slots are bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ReclaimStatus {
    /// Asked for, and not taken yet.
    pub wanted_bytes: u64,
    pub taken_bytes: u64,
    /// Of these: written to the store; zeros; what an image has; what the store had already.
    pub written_bytes: u64,
    pub zero_bytes: u64,
    pub disk_bytes: u64,
    pub unchanged_bytes: u64,
    /// Came back since somebody wanted it.
    pub returned_bytes: u64,
    /// Came along with these.
    pub prefetched_bytes: u64,
    /// In use in the store.
    pub slots: u64,
    pub store_bytes: u64,
    /// `None`: no store was given, so that nothing can be written.
    pub store_limit_bytes: Option<u64>,
    /// Why not all was taken that was asked for.
    pub problem: Option<String>,
}

/// Where contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Zero,
    Disk { block: DiskBlock, checksum: u64 },
    Store(Kept),
}

#[derive(Debug, Default)]
struct Places {
    of: HashMap<Frame, Place>,
    store: Option<Store>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    zero: AtomicU64,
    disk: AtomicU64,
    unchanged: AtomicU64,
    returned: AtomicU64,
    prefetched: AtomicU64,
    slots: AtomicU64,
    store_bytes: AtomicU64,
    /// 0: there is no store.
    store_limit: AtomicU64,
}

/// What was taken of one memory, as the source of it.
pub(crate) struct Swap {
    /// Whose frames these are; it holds this.
    memory: Weak<GuestMemory>,
    id: OnceLock<SourceId>,
    images: Arc<Images>,
    /// Held to read from the look for a place until its contents are in memory, so that they are not of a time before.
    places: RwLock<Places>,
    counts: Counts,
    problem: Mutex<Option<String>>,
}

impl Swap {
    /// Registers it as a source of `memory`. `None`: that has too many.
    pub(crate) fn register(
        memory: &Arc<GuestMemory>,
        images: Arc<Images>,
        store: Option<File>,
    ) -> Option<Arc<Self>> {
        let swap = Arc::new(Self {
            memory: Arc::downgrade(memory),
            id: OnceLock::new(),
            images,
            places: RwLock::default(),
            counts: Counts::default(),
            problem: Mutex::default(),
        });
        let id = memory.add_slow_source(Arc::clone(&swap) as Arc<dyn Source>)?;
        let _ = swap.id.set(id);
        if let Some(file) = store {
            swap.give_store(file);
        }
        Some(swap)
    }

    /// Has it write there what is nowhere else. It has none yet.
    pub(crate) fn give_store(&self, file: File) {
        let mut places = self.write();
        places.store = Some(Store::new(file));
        self.count_store(&places);
    }

    pub(crate) fn set_store_limit(&self, bytes: u64) {
        let mut places = self.write();
        if let Some(store) = &mut places.store {
            store.set_limit(bytes);
        }
        self.count_store(&places);
    }

    /// # Panics
    /// Never: `register` has set it before anybody could ask.
    pub(crate) fn source(&self) -> SourceId {
        *self.id.get().expect("registered")
    }

    /// Waits for nobody.
    fn status(&self) -> ReclaimStatus {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let bytes = |count: &AtomicU64| of(count) * FRAME_SIZE as u64;
        let counts = &self.counts;
        let [written, zero, disk, unchanged] =
            [&counts.written, &counts.zero, &counts.disk, &counts.unchanged].map(bytes);
        ReclaimStatus {
            wanted_bytes: 0,
            taken_bytes: written + zero + disk + unchanged,
            written_bytes: written,
            zero_bytes: zero,
            disk_bytes: disk,
            unchanged_bytes: unchanged,
            returned_bytes: bytes(&counts.returned),
            prefetched_bytes: bytes(&counts.prefetched),
            slots: of(&counts.slots),
            store_bytes: of(&counts.store_bytes),
            store_limit_bytes: Some(of(&counts.store_limit)).filter(|limit| *limit > 0),
            problem: self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn tell(&self, problem: Option<String>) {
        let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if problem.is_some() && *told != problem {
            tracing::warn!("reclaim: {}", problem.as_deref().unwrap_or_default());
        }
        *told = problem;
    }

    fn read(&self) -> RwLockReadGuard<'_, Places> {
        // A panic of who changes places leaves at worst a slot that is nobody's.
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_store(&self, places: &Places) {
        let Some(store) = &places.store else { return };
        self.counts.slots.store(store.slots(), Ordering::Relaxed);
        self.counts.store_bytes.store(store.bytes(), Ordering::Relaxed);
        self.counts.store_limit.store(store.limit().max(1), Ordering::Relaxed);
    }

    /// The contents of a frame that has a place.
    fn contents(
        &self,
        places: &Places,
        frame: Frame,
        into: &mut [u8; FRAME_SIZE],
    ) -> Result<(), SourceError> {
        let named = |error| match error {
            SourceError::Corrupt(what) => SourceError::Corrupt(format!("swap store: {what}")),
            SourceError::Io(error) => SourceError::Unavailable(format!("swap store: {error}")),
            other => other,
        };
        match (places.of.get(&frame), &places.store) {
            (Some(Place::Zero), _) => into.fill(0),
            (Some(&Place::Disk { block, checksum: was }), _) => {
                self.images.read(block, into)?;
                if checksum(into) != was {
                    let what = format!("disk {}: its image was written", block.disk);
                    return Err(SourceError::Corrupt(what));
                }
            }
            (Some(&Place::Store(kept)), Some(store)) => store.get(kept, into).map_err(named)?,
            _ => return Err(SourceError::Corrupt("it was never put into the store".to_owned())),
        }
        Ok(())
    }

    /// Brings back what is near `frame`, which somebody wants: it will be wanted, too.
    fn prefetch(&self, places: &Places, frame: Frame) {
        let Some(memory) = self.memory.upgrade() else { return };
        let id = self.source();
        let first = frame.0 - frame.0 % NEIGHBOURS;
        let is_here = |other: &Frame| {
            let state = memory.facts(*other).map(|facts| facts.state);
            *other != frame && state == Some(FrameState::Absent(id))
        };
        let mut all = Vec::with_capacity(NEIGHBOURS as usize);
        for other in (first..first + NEIGHBOURS).map(Frame).filter(is_here) {
            let mut contents = [0; FRAME_SIZE];
            if self.contents(places, other, &mut contents).is_ok() {
                all.push((other, contents));
            }
        }
        let pages: Vec<_> = all.iter().map(|(frame, contents)| (*frame, contents)).collect();
        // What comes of these is nothing to the one who waits.
        let supplied = memory.supply(id, &pages).unwrap_or(0);
        self.counts.prefetched.fetch_add(u64::from(supplied), Ordering::Relaxed);
    }
}

impl Source for Swap {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        let places = self.read();
        self.contents(&places, frame, into)?;
        self.counts.returned.fetch_add(1, Ordering::Relaxed);
        self.prefetch(&places, frame);
        Ok(())
    }
}

/// One eviction into a [`Swap`].
struct Keeper<'a> {
    swap: &'a Swap,
    memory: &'a GuestMemory,
    /// Why nothing more is written.
    failed: Option<String>,
}

impl Keeper<'_> {
    fn place(
        &mut self,
        places: &mut Places,
        frame: Frame,
        contents: &[u8; FRAME_SIZE],
    ) -> Option<Place> {
        let counts = &self.swap.counts;
        let one_more = |count: &AtomicU64| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        if is_zero(contents) {
            one_more(&counts.zero);
            return Some(Place::Zero);
        }
        let sum = checksum(contents);
        let mut there = [0; FRAME_SIZE];
        if let Some(block) = self.memory.origin(frame)
            && self.swap.images.read(block, &mut there).is_ok()
            && there == *contents
        {
            one_more(&counts.disk);
            return Some(Place::Disk { block, checksum: sum });
        }
        let store = places.store.as_mut()?;
        if let Some(&Place::Store(kept)) = places.of.get(&frame) {
            let is_same =
                kept.checksum == sum && store.get(kept, &mut there).is_ok() && there == *contents;
            if is_same {
                one_more(&counts.unchanged);
                return Some(Place::Store(kept));
            }
            // The guest has the frame, and this is not what is in it.
            places.of.remove(&frame);
            store.forget(kept);
        }
        if self.failed.is_some() {
            return None;
        }
        match store.put(contents, sum) {
            Ok(kept) => {
                one_more(&counts.written);
                Some(Place::Store(kept))
            }
            Err(PutError::Full) => {
                self.failed = Some(format!("the swap store is full: {} bytes", store.limit()));
                None
            }
            Err(PutError::Io(error)) => {
                self.failed = Some(format!("write the swap store: {error}"));
                None
            }
        }
    }
}

impl Evict for Keeper<'_> {
    /// Makes room in a store that has little.
    fn begin(&mut self) {
        let mut places = self.swap.write();
        let Places { of, store: Some(store) } = &mut *places else { return };
        if store.limit().saturating_sub(store.bytes()) >= ROOM && !self.swap.has_problem() {
            return;
        }
        let absent = FrameState::Absent(self.swap.source());
        of.retain(|frame, place| {
            let is_needed = self.memory.facts(*frame).is_some_and(|facts| facts.state == absent);
            if let (false, Place::Store(kept)) = (is_needed, *place) {
                store.forget(kept);
            }
            is_needed
        });
        self.swap.count_store(&places);
    }

    fn keep(&mut self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> bool {
        let mut places = self.swap.write();
        let place = self.place(&mut places, frame, contents);
        if let Some(place) = place {
            let before = places.of.insert(frame, place);
            if let (Some(Place::Store(kept)), Some(store)) = (before, &mut places.store)
                && before != Some(place)
            {
                store.forget(kept);
            }
        }
        self.swap.count_store(&places);
        place.is_some()
    }
}

impl Swap {
    fn has_problem(&self) -> bool {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes those of `frames` that can be taken; answers how many. No vCPU runs where guests reach memory by themselves.
    fn take(
        &self,
        memory: &GuestMemory,
        frames: impl IntoIterator<Item = Frame>,
    ) -> Result<u32, memory::EvictError> {
        let mut keeper = Keeper { swap: self, memory, failed: None };
        let done = memory.evict(frames, self.source(), &mut keeper);
        match (&done, keeper.failed) {
            (Ok(evicted), None) if evicted.evicted > 0 => self.tell(None),
            (_, failed @ Some(_)) => self.tell(failed),
            _ => {}
        }
        done.map(|evicted| evicted.evicted)
    }
}

#[cfg(test)]
mod tests;
