//! A cache of a VM's disk blocks in its own process, below the guest's page cache.
//!
//! ```text
//!   guest reads     hit: copied out, and with policy `eviction` the block leaves the cache
//!                   miss: read from the image, and with policy `demand` the block enters the cache
//!   guest evicts    policy `eviction`: the block is read from the image and enters   (HostCache::fill, its own thread)
//!   guest writes,   its blocks leave, or have the same bytes as the image, before the request is done
//!     discards
//! ```
//!
//! `demand` is what any cache does: it holds what the guest holds, too, until it is larger. `eviction` is exclusive: it
//! holds what the guest does not. When a block is evicted is inferred by others, who may be wrong: contents never
//! depend on it. The idea is that of Wong and Wilkes (USENIX ATC 2002, DEMOTE), of Chen, Zhou and Li (USENIX ATC 2003,
//! evictions guessed below an unmodified client) and of Geiger (ASPLOS 2006, section 5), who like us read an evicted block
//! again.
//!
//! # Why contents are right
//!
//! Each disk's storage is behind a lock of readers and one writer. A block enters the cache only with bytes that were
//! read from the storage under the lock that is still held, and the cache is looked at under that lock only. A change of
//! the storage holds it for writing until the blocks that it touches have left the cache, or have the same bytes in both.
//! So whoever holds the lock finds in the cache what a read of the image would answer. See docs/decisions/0008.

mod blocks;
mod cached;
mod candidates;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use memory::{DiskBlock, FRAME_SIZE};
use serde::{Deserialize, Serialize};

use super::storage::Storage;
use blocks::{Blocks, Put};
pub(super) use cached::Cached;
use candidates::Candidates;

/// Bytes of a block.
pub(super) const BLOCK: usize = FRAME_SIZE;

/// So many neighbours are read at once.
const RUN: usize = 64;
/// So many candidates are looked at together, to find neighbours.
const BATCH: usize = 512;

/// When a block enters the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostCachePolicy {
    /// When the guest reads it.
    Demand,
    /// When the guest has evicted it from its own cache.
    #[default]
    Eviction,
}

impl HostCachePolicy {
    /// As the user writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Eviction => "eviction",
        }
    }
}

/// Counts, in blocks, since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostCacheCounts {
    /// Read by the guest, and there.
    pub hits: u64,
    /// Read by the guest, and not there.
    pub misses: u64,
    /// Inserted because the guest had read them.
    pub inserted_by_demand: u64,
    /// Inserted because the guest had evicted them.
    pub inserted_by_eviction: u64,
    /// Left to make room for others.
    pub displaced: u64,
    /// Left because the guest wrote or discarded them.
    pub dropped_by_writes: u64,
    /// Evicted, but back in the guest's memory or changed before they were inserted, or seen to be back just afterwards.
    pub too_late: u64,
    /// Evicted, but too many others waited to be inserted.
    pub crowded_out: u64,
    /// Evicted, but the image could not be read, or there was no memory.
    pub failed: u64,
}

/// A host cache at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostCacheStatus {
    /// When blocks enter.
    pub policy: HostCachePolicy,
    /// What it may take for contents.
    pub size_bytes: u64,
    /// What it has of contents.
    pub cached_bytes: u64,
    /// Evicted blocks that are not read yet.
    pub waiting: u64,
    /// See there.
    pub counts: HostCacheCounts,
}

/// Where a block is, as far as somebody can infer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// The guest has it in memory, or does not want it any more.
    Guest,
    /// The guest had it and has it no more.
    Evicted,
}

/// The storage of a disk, shared with who reads evicted blocks.
type Shared = RwLock<Box<dyn Storage>>;

/// The cache of one VM, for all its disks. See the module.
pub struct HostCache {
    policy: HostCachePolicy,
    size_bytes: u64,
    state: Mutex<State>,
    /// There are candidates, or it is stopped.
    work: Condvar,
    /// By disk. Weak: nobody but a disk keeps its files open.
    sources: Mutex<HashMap<u8, Weak<Shared>>>,
}

struct State {
    blocks: Blocks,
    candidates: Candidates,
    counts: HostCacheCounts,
    stopped: bool,
}

impl HostCache {
    /// An empty cache that takes at most `size_bytes` for contents, rounded down to whole blocks.
    #[must_use]
    pub fn new(size_bytes: u64, policy: HostCachePolicy) -> Self {
        let capacity = u32::try_from(size_bytes / BLOCK as u64).unwrap_or(u32::MAX);
        let state = State {
            blocks: Blocks::new(capacity),
            candidates: Candidates::default(),
            counts: HostCacheCounts::default(),
            stopped: false,
        };
        Self {
            policy,
            size_bytes,
            state: Mutex::new(state),
            work: Condvar::new(),
            sources: Mutex::default(),
        }
    }

    /// When blocks enter.
    #[must_use]
    pub fn policy(&self) -> HostCachePolicy {
        self.policy
    }

    /// See [`HostCacheStatus`].
    #[must_use]
    pub fn status(&self) -> HostCacheStatus {
        let state = self.lock();
        HostCacheStatus {
            policy: self.policy,
            size_bytes: self.size_bytes,
            cached_bytes: (state.blocks.len() * BLOCK) as u64,
            waiting: state.candidates.len() as u64,
            counts: state.counts,
        }
    }

    /// Takes in where blocks are, in the order in which they got there; of disks that it caches. Nothing with policy `demand`. Does not wait for
    /// the image: [`fill`](Self::fill) does, on another thread.
    pub fn tell(&self, moves: impl IntoIterator<Item = (DiskBlock, Whereabouts)>) {
        if self.policy == HostCachePolicy::Demand {
            return;
        }
        let disks: Vec<u8> = self.sources().keys().copied().collect();
        let mut state = self.lock();
        for (block, whereabouts) in moves.into_iter().filter(|(at, _)| disks.contains(&at.disk)) {
            match whereabouts {
                Whereabouts::Guest => state.is_back(block),
                Whereabouts::Evicted if state.blocks.contains(block) => {}
                Whereabouts::Evicted => {
                    if !state.candidates.add(block) {
                        state.counts.crowded_out += 1;
                    }
                }
            }
        }
        if !state.candidates.is_empty() {
            self.work.notify_one();
        }
    }

    /// Reads evicted blocks into the cache, until [`stop`](Self::stop). To be called on a thread of its own. Then it holds
    /// no disk open.
    pub fn fill(&self) {
        loop {
            let mut state = self.lock();
            while state.candidates.is_empty() && !state.stopped {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopped {
                return;
            }
            let batch = state.candidates.take(BATCH);
            drop(state);
            self.read_all(batch);
        }
    }

    /// Ends [`fill`](Self::fill) on whichever thread, soon and for good.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_all();
    }

    fn read_all(&self, mut batch: Vec<DiskBlock>) {
        batch.sort_unstable();
        let is_next = |one: &DiskBlock, next: &DiskBlock| {
            one.disk == next.disk && one.block.checked_add(1) == Some(next.block)
        };
        for run in batch.chunk_by(is_next).flat_map(|run| run.chunks(RUN)) {
            if self.lock().stopped {
                return;
            }
            self.read_run(run);
        }
    }

    /// Blocks of one disk, each behind the other.
    fn read_run(&self, run: &[DiskBlock]) {
        let first = run[0];
        let source = self.sources().get(&first.disk).and_then(Weak::upgrade);
        let offset = first.block.checked_mul(BLOCK as u64);
        let mut bytes = vec![0; run.len() * BLOCK];
        let (Some(source), Some(offset)) = (source, offset) else { return self.failed(run) };
        // Held until the blocks are inserted: nobody changes them in between.
        let storage = source.read().unwrap_or_else(PoisonError::into_inner);
        if storage.read_host(offset, &mut bytes).is_err() {
            return self.failed(run);
        }
        let mut state = self.lock();
        for (&block, bytes) in run.iter().zip(bytes.as_chunks().0) {
            // Otherwise it is back, or was changed.
            if state.candidates.withdraw(block) {
                state.insert_evicted(block, bytes);
            }
        }
    }

    fn failed(&self, run: &[DiskBlock]) {
        let mut state = self.lock();
        for &block in run {
            state.counts.failed += u64::from(state.candidates.withdraw(block));
        }
    }

    /// `blocks` of `disk` are about to change.
    fn drop_range(&self, disk: u8, blocks: Range<u64>) {
        let mut state = self.lock();
        let there = (state.blocks.len() + state.candidates.len()) as u64;
        if blocks.end.saturating_sub(blocks.start) <= there {
            for block in blocks {
                let block = DiskBlock { disk, block };
                let dropped = state.blocks.remove(block);
                let withdrawn = state.candidates.withdraw(block);
                state.counts.dropped_by_writes += u64::from(dropped);
                state.counts.too_late += u64::from(withdrawn);
            }
            return;
        }
        let is_other = |block: DiskBlock| block.disk != disk || !blocks.contains(&block.block);
        let (dropped, withdrawn) =
            (state.blocks.retain(is_other), state.candidates.retain(is_other));
        state.counts.dropped_by_writes += dropped;
        state.counts.too_late += withdrawn;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<u8, Weak<Shared>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `storage` is what `disk` is.
    fn add_source(&self, disk: u8, storage: &Arc<Shared>) {
        self.sources().insert(disk, Arc::downgrade(storage));
    }
}

impl State {
    /// Seen from outside, later than it happened.
    fn is_back(&mut self, block: DiskBlock) {
        let (waited, was_there) = (self.candidates.withdraw(block), self.blocks.remove(block));
        self.counts.too_late += u64::from(waited || was_there);
    }

    fn insert_evicted(&mut self, block: DiskBlock, bytes: &[u8; BLOCK]) {
        match self.blocks.put(block, bytes) {
            Put::Refused => self.counts.failed += 1,
            put => {
                self.counts.inserted_by_eviction += 1;
                self.counts.displaced += u64::from(put == Put::Displaced);
            }
        }
    }

    fn insert_read(&mut self, block: DiskBlock, bytes: &[u8; BLOCK]) {
        let put = self.blocks.put(block, bytes);
        self.counts.inserted_by_demand += u64::from(matches!(put, Put::Added | Put::Displaced));
        self.counts.displaced += u64::from(put == Put::Displaced);
    }
}

impl HostCacheCounts {
    /// These and those of a later machine of the same VM.
    #[must_use]
    pub fn plus(self, later: Self) -> Self {
        Self {
            hits: self.hits + later.hits,
            misses: self.misses + later.misses,
            inserted_by_demand: self.inserted_by_demand + later.inserted_by_demand,
            inserted_by_eviction: self.inserted_by_eviction + later.inserted_by_eviction,
            displaced: self.displaced + later.displaced,
            dropped_by_writes: self.dropped_by_writes + later.dropped_by_writes,
            too_late: self.too_late + later.too_late,
            crowded_out: self.crowded_out + later.crowded_out,
            failed: self.failed + later.failed,
        }
    }
}

impl std::fmt::Debug for HostCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostCache").field("status", &self.status()).finish_non_exhaustive()
    }
}
