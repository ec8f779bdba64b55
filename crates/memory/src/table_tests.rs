//! The table alone: no mapping, no system calls.

use super::*;

const F: Frame = Frame(3);

fn table() -> FrameTable {
    FrameTable::new(8)
}

fn state(table: &FrameTable) -> FrameState {
    table.facts(F).unwrap().state
}

fn enter(table: &FrameTable) {
    assert!(matches!(table.enter(F, false), Entered::Resident { .. }));
}

#[test]
fn a_new_table_is_untouched() {
    let table = table();
    let facts = table.facts(Frame(7)).unwrap();
    assert_eq!(facts.state, FrameState::Untouched);
    assert_eq!((facts.accessed, facts.written), (Epoch::NEVER, Epoch::NEVER));
    assert_eq!(table.facts(Frame(8)), None);
    assert_eq!(table.is_resident(Frame(8)), None);
    assert_eq!(table.counts(), FrameCounts { untouched: 8, ..FrameCounts::default() });
}

#[test]
fn an_access_takes_a_frame_back_from_a_discard() {
    let table = table();
    enter(&table);
    assert_eq!(table.begin_discard(F, Tag::Ballooned, false), Begun::Leaving);
    assert_eq!(table.is_resident(F), Some(false));
    enter(&table);
    assert!(!table.begin_punch(F));
    assert_eq!(state(&table), FrameState::Resident);
}

#[test]
fn a_pinned_frame_is_kept() {
    let table = table();
    assert!(matches!(table.enter(F, true), Entered::Resident { .. }));
    assert_eq!(table.begin_discard(F, Tag::Ballooned, false), Begun::Kept);
    table.unpin(F);
    assert_eq!(table.begin_discard(F, Tag::Ballooned, false), Begun::Leaving);
    // A pin during the revocation takes it back too.
    assert!(matches!(table.enter(F, true), Entered::Resident { .. }));
    assert!(!table.begin_punch(F));
    assert_eq!(table.facts(F).unwrap().pins, 1);
}

#[test]
fn a_discard_forgets_accesses_and_counts_as_a_change() {
    let table = table();
    enter(&table);
    table.note_access(F, Access::Write);
    table.mark_code(F);
    let second = table.advance_epoch();
    assert_eq!(table.begin_discard(F, Tag::Untouched, false), Begun::Leaving);
    assert!(table.begin_punch(F));
    table.punched(F, Some(Tag::Untouched));
    let facts = table.facts(F).unwrap();
    assert_eq!(facts.state, FrameState::Untouched);
    assert_eq!((facts.accessed, facts.written), (Epoch::NEVER, second));
    assert!(!facts.code);
}

#[test]
fn a_refused_punch_leaves_the_frame_resident() {
    let table = table();
    enter(&table);
    table.note_access(F, Access::Read);
    assert_eq!(table.begin_discard(F, Tag::Ballooned, false), Begun::Leaving);
    assert!(table.begin_punch(F));
    table.punched(F, None);
    let facts = table.facts(F).unwrap();
    assert_eq!((facts.state, facts.accessed), (FrameState::Resident, Epoch::FIRST));
}

#[test]
fn a_slow_access_does_not_lower_a_fact() {
    let fact = AtomicU32::new(5);
    raise(&fact, 4);
    assert_eq!(fact.load(Ordering::Relaxed), 5);
    raise(&fact, 6);
    assert_eq!(fact.load(Ordering::Relaxed), 6);
}

#[test]
fn the_last_epoch_does_not_wrap() {
    let table = table();
    table.epoch.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(table.advance_epoch(), Epoch(u32::MAX));
    assert_eq!(table.epoch(), Epoch(u32::MAX));
}

/// Returns when some thread waits for the frame; fails if the frame is not waited for.
fn until_waited(table: &FrameTable) {
    loop {
        let word = Word(table.entry(F).word.load(Ordering::Relaxed));
        assert!(word.is_busy(), "an access did not wait: {:?}", word.tag());
        if word.is_waited() {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn accesses_wait_for_the_end_of_a_fill() {
    let table = table();
    table.make_absent(F, SourceId(9));
    let Entered::Fill(source) = table.enter(F, false) else { panic!("absent frame entered") };
    assert_eq!(source, SourceId(9));
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| enter(&table))).collect();
        until_waited(&table);
        table.filled(F, true, false);
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
    assert_eq!(state(&table), FrameState::Resident);
}

#[test]
fn accesses_wait_for_the_end_of_a_punch() {
    let table = table();
    enter(&table);
    assert_eq!(table.begin_discard(F, Tag::Ballooned, false), Begun::Leaving);
    assert!(table.begin_punch(F));
    std::thread::scope(|scope| {
        let plain = scope.spawn(|| enter(&table));
        let pinning =
            scope.spawn(|| assert!(matches!(table.enter(F, true), Entered::Resident { .. })));
        until_waited(&table);
        table.punched(F, Some(Tag::Ballooned));
        plain.join().unwrap();
        pinning.join().unwrap();
    });
    let facts = table.facts(F).unwrap();
    assert_eq!((facts.state, facts.pins), (FrameState::Resident, 1));
}

#[test]
fn a_failed_fill_lets_a_waiter_try() {
    let table = table();
    table.make_absent(F, SourceId(2));
    assert!(matches!(table.enter(F, false), Entered::Fill(_)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| matches!(table.enter(F, true), Entered::Fill(SourceId(2))));
        until_waited(&table);
        table.filled(F, false, false);
        assert!(waiter.join().unwrap());
    });
    table.filled(F, true, true);
    assert_eq!(table.facts(F).unwrap().pins, 1);
}
