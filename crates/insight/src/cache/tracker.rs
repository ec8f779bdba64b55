//! The rules.

use std::time::Duration;

use std::collections::HashMap;
use std::fmt::Debug;

use memory::{DiskBlock, Event, FRAME_SIZE, Frame, ReadView, Stamped};
use serde::Serialize;

use super::blocks::Blocks;
use super::ext4::{self, Ext4};
use super::journal::{JBD2, Journals};

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheChange {
    /// It is in memory now.
    Insert,
    /// It no longer is, and may be wanted again.
    Evict,
    /// It no longer is, and nobody wants it: the guest discarded it.
    Drop,
}

/// A block that came into the guest's memory, or left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheEvent {
    /// When it showed.
    pub at: Duration,
    /// Which way.
    pub change: CacheChange,
    /// Where.
    pub frame: Frame,
    /// What.
    pub block: DiskBlock,
}

/// How often, from the beginning on, and how many blocks are there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// Blocks that came.
    pub inserted: u64,
    /// Blocks that left and may be wanted again.
    pub evicted: u64,
    /// Blocks that left for good.
    pub dropped: u64,
    /// Blocks whose frame still has them, as far as can be seen.
    pub cached: u32,
}

/// What has happened to a frame since it was last like its block.
mod since {
    /// The kernel has changed it.
    pub(super) const CHANGED: u8 = 1;
    /// A user has changed it in its mapping of a file.
    pub(super) const SHARED: u8 = 2;
    /// It was a program's memory when a disk last had to do with it.
    pub(super) const PAST_CACHE: u8 = 4;
}

/// What frames hold, for looking only.
pub trait Contents: Debug + Send {
    /// What `frame` holds now, if that can be told.
    fn of(&self, frame: Frame) -> Option<[u8; FRAME_SIZE]>;
}

impl Contents for ReadView {
    fn of(&self, frame: Frame) -> Option<[u8; FRAME_SIZE]> {
        let mut bytes = [0; FRAME_SIZE];
        self.read(self.layout().gpa_of(frame)?, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// What a disk is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Volume {
    Ext4(Ext4),
    Swap,
}

/// Follows the guest's page cache. See the module.
#[derive(Debug)]
pub struct CacheTracker {
    contents: Box<dyn Contents>,
    blocks: Blocks,
    journals: Journals,
    /// By disk, where it is understood.
    volumes: HashMap<u8, Volume>,
    /// By frame: of [`since`].
    since: Box<[u8]>,
    counts: CacheCounts,
    events: Vec<CacheEvent>,
    /// Frames of which more should be told.
    watch: Vec<Frame>,
}

impl CacheTracker {
    /// Of a guest with so many frames, about whose cache nothing is known yet.
    #[must_use]
    pub fn new(frames: u32, contents: Box<dyn Contents>) -> Self {
        Self {
            contents,
            volumes: HashMap::new(),
            blocks: Blocks::new(frames),
            journals: Journals::default(),
            since: vec![0; frames as usize].into(),
            counts: CacheCounts::default(),
            events: Vec::new(),
            watch: Vec::new(),
        }
    }

    /// Takes in what happened next. Frames that there are not are nobody's.
    pub fn tell(&mut self, Stamped { at, event }: Stamped) {
        match event {
            Event::Read { frame, from } => self.come(at, frame, from),
            Event::Written { frame, to, starts } => self.written(at, frame, to, starts),
            Event::Overwritten { frame } | Event::PageTable { frame } | Event::Freed { frame } => {
                self.go(at, frame, CacheChange::Evict);
            }
            Event::Discarded { first, count } => self.discarded(at, first, count),
            Event::Changed { frame, user } => self.changed(at, frame, user),
            Event::Mapped { frame, writable: true } => self.mapped(at, frame),
            Event::Mapped { .. } | Event::AddressSpace { .. } | Event::Ring { .. } => {}
        }
    }

    fn changed(&mut self, at: Duration, frame: Frame, user: bool) {
        let swapped = |block: DiskBlock| self.volumes.get(&block.disk) == Some(&Volume::Swap);
        if user && self.blocks.location(frame).is_some_and(swapped) {
            // The copy in the swap area is of no use any more.
            self.go(at, frame, CacheChange::Drop);
        }
        if let Some(since) = self.since.get_mut(frame.index()) {
            *since = match user {
                true => *since | since::SHARED,
                false => *since & !since::PAST_CACHE | since::CHANGED,
            };
        }
    }

    /// A user has it, and may write.
    fn mapped(&mut self, at: Duration, frame: Frame) {
        let Some(block) = self.blocks.location(frame) else { return };
        match self.since[frame.index()] {
            // Cleared or copied by the kernel, and then a user's own. Who writes to a file's mapping does it the other
            // way round.
            since::CHANGED => self.go(at, frame, CacheChange::Evict),
            // A file's page may be written after a first write only.
            0 if self.volumes.get(&block.disk) != Some(&Volume::Swap) => {
                self.go(at, frame, CacheChange::Drop);
                self.since[frame.index()] = since::PAST_CACHE;
            }
            _ => {}
        }
    }

    /// Blocks that came and left since this was last asked.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }

    /// Frames to be watched: what becomes of them cannot be told otherwise ([`memory::GuestMemory::watch`]).
    pub fn take_watch(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.watch)
    }

    /// The block that `frame` has.
    #[must_use]
    pub fn location(&self, frame: Frame) -> Option<DiskBlock> {
        self.blocks.location(frame)
    }

    /// Whether the disk is a swap area.
    #[must_use]
    pub fn is_swap(&self, disk: u8) -> bool {
        self.volumes.get(&disk) == Some(&Volume::Swap)
    }

    /// See [`CacheCounts`].
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    fn written(&mut self, at: Duration, frame: Frame, to: DiskBlock, starts: [u8; 4]) {
        if starts == JBD2 {
            self.journals.learn(to);
            // A buffer of the journal's own.
            return self.go(at, frame, CacheChange::Evict);
        }
        if self.journals.contains(to) {
            // A copy on its way to its place.
            return;
        }
        if self.blocks.location(frame) == Some(to) {
            self.settle(frame);
        } else {
            self.come(at, frame, to);
        }
    }

    /// `frame` has the contents of `block` from now on.
    fn come(&mut self, at: Duration, frame: Frame, block: DiskBlock) {
        self.go(at, frame, CacheChange::Evict);
        if !self.blocks.can_have(frame, block) {
            return;
        }
        if self.since[frame.index()] & since::PAST_CACHE != 0 {
            return;
        }
        if let Some(other) = self.blocks.frame(block) {
            self.go(at, other, CacheChange::Evict);
        }
        self.blocks.put(frame, block);
        self.counts.cached += 1;
        self.note(at, CacheChange::Insert, frame, block);
        self.settle(frame);
        if block.block == 0 {
            self.look_at(block.disk, frame);
        }
    }

    /// `frame` has the disk's first block.
    fn look_at(&mut self, disk: u8, frame: Frame) {
        let Some(first) = self.contents.of(frame) else { return };
        let volume = match Ext4::of(&first) {
            Some(ext4) => Some(Volume::Ext4(ext4)),
            None => ext4::is_swap(&first).then_some(Volume::Swap),
        };
        if let Some(volume) = volume {
            self.volumes.insert(disk, volume);
        }
    }

    /// Whether the guest may want the block again.
    fn is_live(&self, block: DiskBlock) -> bool {
        let Some(Volume::Ext4(ext4)) = self.volumes.get(&block.disk) else { return true };
        let read = |block| self.contents.of(self.blocks.frame(block)?);
        ext4.is_used(block, read).unwrap_or(true)
    }

    /// Frame and block are alike.
    fn settle(&mut self, frame: Frame) {
        if let Some(since) = self.since.get_mut(frame.index()) {
            *since = 0;
            self.watch.push(frame);
        }
    }

    /// `frame` no longer has its block, if it had one.
    fn go(&mut self, at: Duration, frame: Frame, why: CacheChange) {
        let Some(block) = self.blocks.remove(frame) else { return };
        self.counts.cached -= 1;
        let dead = why == CacheChange::Evict && !self.is_live(block);
        self.note(at, if dead { CacheChange::Drop } else { why }, frame, block);
    }

    fn discarded(&mut self, at: Duration, first: DiskBlock, count: u64) {
        let frames = self.since.len() as u64;
        if count <= frames {
            for block in first.block..first.block.saturating_add(count) {
                if let Some(frame) = self.blocks.frame(DiskBlock { block, ..first }) {
                    self.go(at, frame, CacheChange::Drop);
                }
            }
            return;
        }
        // More blocks than frames.
        for frame in (0..frames as u32).map(Frame) {
            let inside = |block: DiskBlock| {
                block.disk == first.disk && block.block.wrapping_sub(first.block) < count
            };
            if self.blocks.location(frame).is_some_and(inside) {
                self.go(at, frame, CacheChange::Drop);
            }
        }
    }

    fn note(&mut self, at: Duration, change: CacheChange, frame: Frame, block: DiskBlock) {
        match change {
            CacheChange::Insert => self.counts.inserted += 1,
            CacheChange::Evict => self.counts.evicted += 1,
            CacheChange::Drop => self.counts.dropped += 1,
        }
        self.events.push(CacheEvent { at, change, frame, block });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::CacheChange::{Drop, Evict, Insert};
    use super::*;

    /// What a guest can make the machine tell.
    fn any_event() -> impl Strategy<Value = Event> {
        let frame = prop_oneof![0u32..20, any::<u32>()].prop_map(Frame);
        let block = || {
            (0u8..3, prop_oneof![0u64..30, any::<u64>()])
                .prop_map(|(disk, block)| DiskBlock { disk, block })
        };
        let starts = prop_oneof![Just([0; 4]), Just(JBD2)];
        let count = prop_oneof![0u64..40, any::<u64>()];
        (0..8, frame, block(), starts, count, any::<bool>()).prop_map(
            |(kind, frame, block, starts, count, bit)| match kind {
                0 => Event::Read { frame, from: block },
                1 => Event::Written { frame, to: block, starts },
                2 => Event::Overwritten { frame },
                3 => Event::Discarded { first: block, count },
                4 => Event::Changed { frame, user: bit },
                5 => Event::Mapped { frame, writable: bit },
                6 => Event::PageTable { frame },
                _ => Event::Freed { frame },
            },
        )
    }

    proptest! {
        /// Whatever a guest does, what is told of each block is in order and the sums are right.
        #[test]
        fn each_block_comes_before_it_goes(events in proptest::collection::vec(any_event(), 0..400)) {
            let mut tracker = CacheTracker::new(16, Box::new(Nothing));
            let mut cached = std::collections::HashMap::new();
            for event in events {
                tracker.tell(Stamped { at: Duration::ZERO, event });
                for CacheEvent { change, frame, block, .. } in tracker.take_events() {
                    let before = match change {
                        Insert => cached.insert(block, frame),
                        Evict | Drop => cached.remove(&block),
                    };
                    prop_assert_eq!(before, (change != Insert).then_some(frame));
                }
                let frames = (0..16).filter_map(|n| tracker.location(Frame(n)));
                prop_assert_eq!(frames.count(), cached.len());
                prop_assert_eq!(tracker.counts().cached as usize, cached.len());
            }
        }
    }

    /// Nothing can be told.
    #[derive(Debug)]
    struct Nothing;

    impl Contents for Nothing {
        fn of(&self, _: Frame) -> Option<[u8; FRAME_SIZE]> {
            None
        }
    }

    const A: DiskBlock = DiskBlock { disk: 0, block: 10 };
    const B: DiskBlock = DiskBlock { disk: 0, block: 70_000 };
    const FRAME: Frame = Frame(5);

    /// What the events come to, for `FRAME` and those after it.
    fn follow(events: &[Event]) -> Vec<(CacheChange, Frame, DiskBlock)> {
        let mut tracker = CacheTracker::new(16, Box::new(Nothing));
        for (n, &event) in events.iter().enumerate() {
            tracker.tell(Stamped { at: Duration::from_millis(n as u64), event });
        }
        let events = tracker.take_events();
        let came = events.iter().filter(|event| event.change == Insert).count();
        assert_eq!(tracker.counts().cached as usize, 2 * came - events.len());
        events.iter().map(|event| (event.change, event.frame, event.block)).collect()
    }

    fn read(frame: Frame, from: DiskBlock) -> Event {
        Event::Read { frame, from }
    }

    fn written(frame: Frame, to: DiskBlock) -> Event {
        Event::Written { frame, to, starts: [0; 4] }
    }

    const BY_KERNEL: Event = Event::Changed { frame: FRAME, user: false };
    const MAPPED: Event = Event::Mapped { frame: FRAME, writable: true };
    const IN: (CacheChange, Frame, DiskBlock) = (Insert, FRAME, A);
    const OUT: (CacheChange, Frame, DiskBlock) = (Evict, FRAME, A);

    #[test]
    fn a_frame_that_is_read_into_again_had_been_given_up() {
        assert_eq!(follow(&[read(FRAME, A), read(FRAME, B)]), [IN, OUT, (Insert, FRAME, B)]);
        // Also for the same block: why else should it be read?
        assert_eq!(follow(&[read(FRAME, A), read(FRAME, A)]), [IN, OUT, IN]);
    }

    #[test]
    fn a_block_that_is_read_elsewhere_had_been_given_up() {
        let other = Frame(6);
        assert_eq!(follow(&[read(FRAME, A), read(other, A)]), [IN, OUT, (Insert, other, A)]);
    }

    #[test]
    fn a_file_is_changed_and_written_in_place() {
        assert_eq!(follow(&[read(FRAME, A), BY_KERNEL, written(FRAME, A)]), [IN]);
        assert_eq!(follow(&[BY_KERNEL, written(FRAME, A), BY_KERNEL, written(FRAME, A)]), [IN]);
        let elsewhere = [read(FRAME, A), BY_KERNEL, written(FRAME, B)];
        assert_eq!(follow(&elsewhere), [IN, OUT, (Insert, FRAME, B)]);
    }

    #[test]
    fn what_the_kernel_clears_and_a_user_gets_is_anonymous() {
        assert_eq!(follow(&[read(FRAME, A), BY_KERNEL, MAPPED]), [IN, OUT]);
        let after_writing = [read(FRAME, A), BY_KERNEL, written(FRAME, A), BY_KERNEL, MAPPED];
        assert_eq!(follow(&after_writing), [IN, OUT]);
    }

    #[test]
    fn a_file_that_is_mapped_stays() {
        let by_user = Event::Changed { frame: FRAME, user: true };
        let to_read = Event::Mapped { frame: FRAME, writable: false };
        let later = [read(FRAME, A), to_read, by_user, MAPPED, BY_KERNEL];
        assert_eq!(follow(&later), [IN]);
        assert_eq!(follow(&[read(FRAME, A), to_read, to_read]), [IN]);
        assert_eq!(follow(&[read(FRAME, A), by_user, MAPPED, written(FRAME, A)]), [IN]);
        assert_eq!(follow(&[read(FRAME, A), BY_KERNEL, to_read]), [IN]);
    }

    #[test]
    fn what_is_read_past_the_cache_is_none() {
        let again = [read(FRAME, A), MAPPED, read(FRAME, B), MAPPED, read(FRAME, A)];
        assert_eq!(follow(&again), [IN, (Drop, FRAME, A)]);
        let then_cached = [read(FRAME, A), MAPPED, BY_KERNEL, read(FRAME, B)];
        assert_eq!(follow(&then_cached), [IN, (Drop, FRAME, A), (Insert, FRAME, B)]);
    }

    #[test]
    fn a_place_in_a_swap_area_is_given_up_with_the_first_change() {
        #[derive(Debug)]
        struct Signature;
        impl Contents for Signature {
            fn of(&self, _: Frame) -> Option<[u8; FRAME_SIZE]> {
                let mut bytes = [0; FRAME_SIZE];
                bytes[4086..].copy_from_slice(b"SWAPSPACE2");
                Some(bytes)
            }
        }
        let mut tracker = CacheTracker::new(16, Box::new(Signature));
        let by_user = Event::Changed { frame: FRAME, user: true };
        let first = DiskBlock { block: 0, ..A };
        for event in [read(Frame(1), first), read(FRAME, A), MAPPED, by_user, read(FRAME, B)] {
            tracker.tell(Stamped { at: Duration::ZERO, event });
        }
        let events = tracker.take_events();
        let changes: Vec<_> = events.iter().map(|event| event.change).collect();
        assert_eq!(changes, [Insert, Insert, Drop, Insert]);
    }

    #[test]
    fn the_journal_has_it_for_a_while_only() {
        let descriptor = Event::Written { frame: Frame(9), to: B, starts: JBD2 };
        let copy = written(FRAME, DiskBlock { block: B.block + 1, ..B });
        assert_eq!(follow(&[read(FRAME, A), descriptor, copy, written(FRAME, A)]), [IN]);
    }

    #[test]
    fn page_tables_and_free_memory_are_no_cache() {
        for event in [Event::PageTable { frame: FRAME }, Event::Freed { frame: FRAME }] {
            assert_eq!(follow(&[read(FRAME, A), event, event]), [IN, OUT]);
        }
    }

    #[test]
    fn what_is_discarded_is_dropped() {
        for count in [1, 3, 1 << 40, u64::MAX] {
            let first = DiskBlock { block: 9, ..A };
            let (first, count) = if count == 1 { (A, 1) } else { (first, count) };
            let events = [read(FRAME, A), Event::Discarded { first, count }];
            assert_eq!(follow(&events), [IN, (Drop, FRAME, A)]);
        }
        let others = Event::Discarded { first: DiskBlock { disk: 1, ..A }, count: 1 << 40 };
        assert_eq!(follow(&[read(FRAME, A), others]), [IN]);
    }

    #[test]
    fn frames_that_there_are_not_are_nobodys() {
        let nowhere = Frame(u32::MAX);
        let events = [read(nowhere, A), written(nowhere, A), Event::Freed { frame: nowhere }];
        assert_eq!(follow(&events), []);
    }

    #[test]
    fn what_is_like_its_block_is_to_be_watched() {
        let mut tracker = CacheTracker::new(16, Box::new(Nothing));
        let mut tell = |event| {
            tracker.tell(Stamped { at: Duration::ZERO, event });
            tracker.take_watch()
        };
        assert_eq!(tell(read(FRAME, A)), [FRAME]);
        assert_eq!(tell(BY_KERNEL), []);
        assert_eq!(tell(written(FRAME, A)), [FRAME]);
    }
}
