use proptest::prelude::*;

use std::time::Duration;

use memory::{DiskBlock, Event, FRAME_SIZE, Frame, Stamped};

use super::CacheChange::{Drop, Evict, Insert, Move};
use super::journal::JBD2;
use super::{CacheChange, CacheEvent, CacheTracker, Contents};

/// What a guest can make the machine tell.
fn any_event() -> impl Strategy<Value = Event> {
    let frame = prop_oneof![0u32..20, any::<u32>()].prop_map(Frame);
    let block = || {
        (0u8..3, prop_oneof![0u64..30, any::<u64>()])
            .prop_map(|(disk, block)| DiskBlock { disk, block })
    };
    let starts = prop_oneof![Just([0; 4]), Just(JBD2)];
    let count = prop_oneof![0u64..40, any::<u64>()];
    (0..9, frame, block(), starts, count, any::<bool>()).prop_map(
        |(kind, frame, block, starts, count, bit)| match kind {
            0 => Event::Read { frame, from: block, changed: bit },
            1 => Event::Written { frame, to: block, starts },
            2 => Event::Overwritten { frame },
            3 => Event::Discarded { first: block, count },
            4 => Event::Changed { frame, user: bit },
            5 => Event::Mapped { frame, writable: bit },
            6 => Event::PageTable { frame },
            7 => Event::Copied { from: frame, to: Frame(count as u32) },
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
            for CacheEvent { change, frame, block, .. } in tracker.take_events(|_| None) {
                let before = match change {
                    Insert | Move => cached.insert(block, frame),
                    Evict | Drop => cached.remove(&block),
                };
                match change {
                    Insert => prop_assert_eq!(before, None),
                    Move => prop_assert!(before.is_some_and(|before| before != frame)),
                    Evict | Drop => prop_assert_eq!(before, Some(frame)),
                }
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
    let events = tracker.take_events(|_| None);
    let count = |change| events.iter().filter(|event| event.change == change).count();
    let left = count(Evict) + count(Drop);
    assert_eq!(tracker.counts().cached as usize, count(Insert) - left);
    events.iter().map(|event| (event.change, event.frame, event.block)).collect()
}

fn read(frame: Frame, from: DiskBlock) -> Event {
    Event::Read { frame, from, changed: false }
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

const TO: Frame = Frame(7);
const COPIED: Event = Event::Copied { from: FRAME, to: TO };
const MOVED: (CacheChange, Frame, DiskBlock) = (Move, TO, A);

#[test]
fn a_page_that_moves_leaves_from_where_it_went() {
    // The old frame is free, and then a program's.
    let moved = [read(FRAME, A), COPIED, BY_KERNEL, MAPPED];
    assert_eq!(follow(&moved), [IN, MOVED]);
    let used = [read(FRAME, A), COPIED, read(FRAME, B)];
    assert_eq!(follow(&used), [IN, MOVED, (Insert, FRAME, B)]);
    for event in [Event::PageTable { frame: TO }, read(TO, B), Event::Freed { frame: TO }] {
        let gone = [moved.as_slice(), &[event]].concat();
        assert_eq!(follow(&gone)[..3], [IN, MOVED, (Evict, TO, A)]);
    }
    // The new frame is taken for something else before the old one is.
    let changed = Event::Changed { frame: TO, user: false };
    let by_program = [changed, Event::Mapped { frame: TO, writable: true }];
    let by_kernel = [changed, Event::PageTable { frame: TO }];
    for events in [by_program, by_kernel, [changed, read(TO, B)]] {
        let gone = [[read(FRAME, A), COPIED].as_slice(), &events].concat();
        assert_eq!(follow(&gone)[..3], [IN, MOVED, (Evict, TO, A)]);
    }
    // It is written to its place from there.
    let dirty = [read(FRAME, A), BY_KERNEL, COPIED, written(TO, A), BY_KERNEL, MAPPED];
    assert_eq!(follow(&dirty), [IN, MOVED]);
    // Twice.
    let again = Event::Copied { from: TO, to: Frame(9) };
    let twice =
        [read(FRAME, A), COPIED, again, read(FRAME, B), read(TO, DiskBlock { block: 5, ..A })];
    assert_eq!(
        follow(&twice),
        [
            IN,
            MOVED,
            (Insert, FRAME, B),
            (Move, Frame(9), A),
            (Insert, TO, DiskBlock { block: 5, ..A })
        ]
    );
}

#[test]
fn a_page_that_is_written_later_has_not_moved() {
    let by_disk = [read(FRAME, A), COPIED, written(FRAME, A), read(TO, B)];
    assert_eq!(follow(&by_disk), [IN, (Insert, TO, B)]);
}

#[test]
fn a_programs_copy_is_its_own() {
    let by_user = Event::Changed { frame: TO, user: true };
    let own = Event::Mapped { frame: TO, writable: true };
    let evicted = [read(FRAME, A), COPIED, by_user, own, BY_KERNEL, MAPPED];
    assert_eq!(follow(&evicted), [IN, OUT]);
    // It is taken for something else first.
    let other = [read(FRAME, A), COPIED, written(TO, B), BY_KERNEL, MAPPED];
    assert_eq!(follow(&other), [IN, (Insert, TO, B), OUT]);
    // What all see and may change is not copied for one.
    let by_all = Event::Changed { frame: FRAME, user: true };
    let shared = [read(FRAME, A), by_all, COPIED, by_user, own, read(FRAME, B)];
    assert_eq!(follow(&shared), [IN, MOVED, (Insert, FRAME, B)]);
}

#[test]
fn what_a_page_is_copied_over_had_been_given_up() {
    let other = (Insert, TO, B);
    assert_eq!(follow(&[read(FRAME, A), read(TO, B), COPIED]), [IN, other, (Evict, TO, B)]);
    assert_eq!(follow(&[read(TO, B), COPIED]), [other, (Evict, TO, B)]);
}

#[test]
fn a_block_that_comes_again_had_left_with_its_copy() {
    let again = (Insert, Frame(9), A);
    assert_eq!(
        follow(&[read(FRAME, A), COPIED, read(Frame(9), A)]),
        [IN, MOVED, (Evict, TO, A), again]
    );
    assert_eq!(follow(&[read(FRAME, A), COPIED, read(FRAME, A)]), [IN, MOVED, (Evict, TO, A), IN]);
    let first = DiskBlock { block: A.block, ..A };
    let discarded = [read(FRAME, A), COPIED, Event::Discarded { first, count: 1 }, read(FRAME, B)];
    assert_eq!(follow(&discarded), [IN, (Drop, FRAME, A), (Insert, FRAME, B)]);
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
    let events = tracker.take_events(|_| None);
    let changes: Vec<_> = events.iter().map(|event| event.change).collect();
    assert_eq!(changes, [Insert, Insert, Drop, Insert]);
    // Swapped out to another place, which was another page's: both had given up what they had.
    for event in [written(Frame(6), A), written(FRAME, A), read(Frame(6), A)] {
        tracker.tell(Stamped { at: Duration::ZERO, event });
    }
    let events = tracker.take_events(|_| None);
    let changes: Vec<_> = events.iter().map(|event| (event.change, event.frame)).collect();
    let expected = [
        (Insert, Frame(6)),
        (Drop, Frame(6)),
        (Drop, FRAME),
        (Insert, FRAME),
        (Evict, FRAME),
        (Insert, Frame(6)),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn the_journal_has_it_for_a_while_only() {
    let descriptor = Event::Written { frame: Frame(9), to: B, starts: JBD2 };
    let copy = written(FRAME, DiskBlock { block: B.block + 1, ..B });
    let own = (Insert, Frame(9), B);
    assert_eq!(follow(&[read(FRAME, A), descriptor, copy, written(FRAME, A)]), [IN, own]);
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
        tracker.take_watch(|_| None)
    };
    assert_eq!(tell(read(FRAME, A)), [FRAME]);
    assert_eq!(tell(BY_KERNEL), []);
    assert_eq!(tell(written(FRAME, A)), [FRAME]);
}

#[test]
fn frames_that_take_other_blocks_at_once_are_buffers() {
    let mut tracker = CacheTracker::new(4096, Box::new(Nothing));
    let mut tell = |event| {
        tracker.tell(Stamped { at: Duration::ZERO, event });
        let events = tracker.take_events(|_| None);
        events.iter().map(|event| (event.change, event.frame)).collect::<Vec<_>>()
    };
    let block = |block| DiskBlock { block, ..A };
    assert_eq!(tell(read(Frame(1), block(7))), [(Insert, Frame(1))]);
    assert_eq!(tell(read(FRAME, A)), [(Insert, FRAME)]);
    assert_eq!(tell(read(FRAME, block(11))), [(Drop, FRAME)]);
    assert_eq!(tell(read(FRAME, A)), []);
    // What is read past the cache stays in it, what is written leaves it.
    assert_eq!(tell(read(FRAME, block(7))), []);
    assert_eq!(tell(written(FRAME, block(7))), [(Evict, Frame(1))]);
    // 64 transfers later it is a frame like others.
    for frame in 100..164 {
        assert_eq!(tell(read(Frame(frame), block(frame.into()))), [(Insert, Frame(frame))]);
    }
    assert_eq!(tell(read(FRAME, A)), [(Insert, FRAME)]);
}

#[test]
fn what_the_kernel_fills_with_its_pointers_is_its_own() {
    #[derive(Debug)]
    struct Slab;
    impl Contents for Slab {
        fn of(&self, frame: Frame) -> Option<[u8; FRAME_SIZE]> {
            let mut bytes = [0; FRAME_SIZE];
            for (at, word) in bytes.chunks_mut(8).enumerate().filter(|_| frame == FRAME) {
                word.copy_from_slice(&(0xffff_8881_0000_0000 + at as u64 * 64).to_le_bytes());
            }
            Some(bytes)
        }
    }
    let mut tracker = CacheTracker::new(16, Box::new(Slab));
    let file = Frame(6);
    let of_file = Event::Changed { frame: file, user: false };
    for (ms, event) in [(0, read(FRAME, A)), (0, read(file, B)), (1, BY_KERNEL), (1, of_file)] {
        tracker.tell(Stamped { at: Duration::from_millis(ms), event });
    }
    assert_eq!(tracker.take_events(|_| None).len(), 2);
    tracker
        .tell(Stamped { at: Duration::from_millis(20), event: Event::Freed { frame: Frame(9) } });
    let events = tracker.take_events(|_| None);
    let changes: Vec<_> = events.iter().map(|event| (event.change, event.frame)).collect();
    assert_eq!(changes, [(Evict, FRAME)]);
}
