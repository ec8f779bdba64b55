//! The page cache as the observer follows it.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use devices::virtio::block::HostCache;
use insight::kernel::KernelError;
use insight::picture::{CacheFigures, Rates};
use insight::{
    CacheChange, CacheCounts, CacheEvent, CacheTracker, FrameClass, Ghosts, MissRatioCurve,
};
use memory::{Event, Frame, GuestMemory, Inbox, ReadView};

use crate::board::FirstBlock;
use crate::host_cache;

use super::classes::{ClassCheck, Classes};
use super::frames_to_bytes;
use super::kernel::GuestKernel;
use super::log::CacheLog;

/// Evicted blocks that are remembered at most: some 8 MiB when there are so many.
const GHOSTS: u64 = 1 << 17;
/// Sizes of memory that are told apart.
const STEPS: usize = 256;
/// Events taken at a time, so that questions are answered while a disk is at full speed.
const BATCH: usize = 1 << 16;

/// Tracker, ghosts and log.
#[derive(Debug)]
pub(super) struct Cache {
    inbox: Inbox,
    tracker: CacheTracker,
    kernel: GuestKernel,
    classes: Classes,
    ghosts: Ghosts,
    log: Option<CacheLog>,
    host_cache: Option<Arc<HostCache>>,
    /// Inserts, evictions, bytes read, blocks read again.
    rates: Rates<4>,
    read: u64,
    ghost_hits: u64,
    lost: u64,
}

impl Cache {
    pub(super) fn new(
        memory: &Arc<GuestMemory>,
        log: Option<Arc<File>>,
        host_cache: Option<Arc<HostCache>>,
        tells_accesses: bool,
        first_blocks: &[FirstBlock],
    ) -> Self {
        let view = ReadView::new(Arc::clone(memory));
        let frames = memory.layout().frames();
        // Memory twice as large again is as far as anybody wants to see.
        let ghosts = (u64::from(frames) * 2).min(GHOSTS);
        let mut tracker = CacheTracker::new(frames, Box::new(view.clone()));
        first_blocks.iter().for_each(|(block, bytes)| tracker.look(*block, bytes));
        Self {
            inbox: Inbox::default(),
            tracker,
            kernel: GuestKernel::new(view),
            classes: Classes::new(memory, tells_accesses),
            ghosts: Ghosts::new(ghosts as usize, STEPS),
            log: log.map(CacheLog::new),
            host_cache,
            rates: Rates::default(),
            read: 0,
            ghost_hits: 0,
            lost: 0,
        }
    }

    /// Takes in what has happened up to `at`, in time since the machine's start. Answers whether anything has.
    pub(super) fn take_in(&mut self, memory: &GuestMemory, at: Duration) -> bool {
        let Some(events) = memory.events() else { return false };
        let mut taken = 0;
        while taken < BATCH
            && let Some(stamped) = self.inbox.take(events)
        {
            taken += 1;
            self.read += u64::from(matches!(stamped.event, Event::Read { .. }));
            self.classes.tell(&stamped);
            self.tracker.tell(stamped);
        }
        let known = self.kernel.is_known();
        self.tracker.tell_free(events.now(), self.kernel.look());
        if !known && self.kernel.is_known() {
            self.tracker.tell_users(|frame| self.kernel.user(frame));
        }
        let user = |frame| self.kernel.user(frame);
        // A look at each block that comes: for those who want to know at once when it goes.
        let followed = self.is_followed();
        memory.watch(self.tracker.take_watch(|frame| followed.then(|| user(frame)).flatten()));
        let changes = self.tracker.take_events(user);
        changes.iter().for_each(|change| self.changed(*change));
        if let Some(host_cache) = &self.host_cache {
            host_cache::tell(host_cache, &changes);
        }
        if let Some(log) = &mut self.log {
            log.write(&changes);
        }
        let counts = self.tracker.counts();
        let read = frames_to_bytes(self.read);
        self.rates.note(at, [counts.inserted, counts.evicted, read, self.ghost_hits]);
        let lost = events.lost();
        if lost != self.lost {
            // Once: what follows is in the picture.
            if self.lost == 0 {
                tracing::warn!("{lost} events of memory came too fast and are lost");
            }
            self.lost = lost;
        }
        taken > 0
    }

    fn changed(&mut self, CacheEvent { change, block, .. }: CacheEvent) {
        match change {
            CacheChange::Insert => {
                if self.ghosts.inserted(block).is_some() {
                    self.ghost_hits += self.ghosts.one_in();
                }
            }
            CacheChange::Evict => self.ghosts.evicted(block),
            CacheChange::Drop => self.ghosts.dropped(block),
            CacheChange::Move => {}
        }
    }

    /// Writes out what the log has.
    pub(super) fn finish(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Whether somebody wants to know at once.
    pub(super) fn is_followed(&self) -> bool {
        self.log.is_some() || self.host_cache.is_some()
    }

    /// At the end of an epoch. See [`Classes::sweep`].
    pub(super) fn sweep(&mut self) {
        self.classes.sweep(&self.tracker);
    }

    /// Whether it is known what frames are for that hold no block.
    pub(super) fn is_classified(&self) -> bool {
        self.classes.are_known()
    }

    pub(super) fn part(&self, frame: Frame) -> FrameClass {
        match self.tracker.location(frame) {
            _ if self.is_classified() => self.classes.part(frame, &self.tracker),
            Some(_) => FrameClass::FileCache,
            None => FrameClass::Unknown,
        }
    }

    /// Bytes that could be had again inside the VM, by part, where frames were looked into.
    pub(super) fn shareable(&self) -> impl Iterator<Item = (FrameClass, u64)> {
        let known = self.is_classified().then(|| self.classes.shareable(&self.tracker));
        known.into_iter().flatten().map(|(part, frames)| (part, frames_to_bytes(frames)))
    }

    /// What frames are for against what the guest's kernel says.
    pub(super) fn check(&self, memory: &Arc<GuestMemory>) -> Result<ClassCheck, KernelError> {
        self.classes.check(memory, &self.tracker)
    }

    pub(super) fn counts(&self) -> CacheCounts {
        self.tracker.counts()
    }

    pub(super) fn figures(&self) -> CacheFigures {
        let counts = self.tracker.counts();
        let [inserts_per_second, evictions_per_second, ..] = self.rates.per_second();
        let [_, _, disk_read_peak_bytes_per_second, _] = self.rates.peaks();
        CacheFigures {
            cached_bytes: frames_to_bytes(counts.cached.into()),
            inserted: counts.inserted,
            evicted: counts.evicted,
            dropped: counts.dropped,
            inserts_per_second,
            evictions_per_second,
            disk_read_peak_bytes_per_second,
            ghost_hits: self.ghost_hits,
            has_swap: self.tracker.has_swap(),
        }
    }

    /// What would be left of today's misses with more memory.
    pub(super) fn curve(&self) -> Option<MissRatioCurve> {
        self.ghosts.curve()
    }

    /// Blocks that came in a second, and of these the ones that had been evicted.
    pub(super) fn misses_per_second(&self) -> (f64, f64) {
        let [inserts, _, _, again] = self.rates.per_second();
        (inserts, again)
    }
}
