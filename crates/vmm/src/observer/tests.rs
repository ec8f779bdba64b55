use std::sync::mpsc::{Sender, channel};

use memory::{Access, DiskBlock, Event, Frame, Gpa, MappingObserver, Revocation};

use super::*;

fn task(always: bool) -> Task {
    Task {
        zero: Instant::now(),
        always,
        log: None,
        first_blocks: Vec::new(),
        host_cache: None,
        prepare: Box::new(|| true),
        tells_accesses: true,
        epoch: EPOCH,
    }
}

/// An engine that takes its time to end an epoch, and tells when it began to and when it was done.
struct Slow {
    took: Duration,
    tell: Sender<(Instant, Instant)>,
}

impl MappingObserver for Slow {
    fn revoke(&self, _: Revocation<'_>) {}

    fn code_written(&self, _: Gpa, _: usize) {}

    fn end_epoch(&self) {
        let begun = Instant::now();
        thread::sleep(self.took);
        // The test may have seen enough.
        let _ = self.tell.send((begun, Instant::now()));
    }
}

#[test]
fn a_guest_has_most_of_its_time_between_ticks_that_take_long() {
    let memory = Arc::new(GuestMemory::with_bytes(4 << 20).unwrap());
    let (tell, told) = channel();
    // Twenty of them are longer than an epoch by far.
    memory.set_observer(Arc::new(Slow { took: EPOCH / 10, tell }));
    let observer = Observer::start(memory, task(true)).unwrap();
    // The first one only begins to measure.
    let (_, [first, second]) = (told.recv().unwrap(), [told.recv().unwrap(), told.recv().unwrap()]);
    drop(observer);
    let took = first.1 - first.0;
    assert!(second.0 - first.0 >= took * EPOCH_PER_TICK, "{first:?} {second:?}");
}

#[test]
fn short_ticks_leave_the_epochs_as_they_are() {
    assert_eq!(epoch_after(Duration::ZERO, EPOCH), EPOCH);
    assert_eq!(epoch_after(EPOCH / EPOCH_PER_TICK, EPOCH), EPOCH);
    assert_eq!(epoch_after(EPOCH, EPOCH), EPOCH * EPOCH_PER_TICK);
}

#[test]
fn a_picture_has_all_that_was_told_before_it_was_asked_for() {
    let memory = Arc::new(GuestMemory::with_bytes(4 << 20).unwrap());
    let events = memory.listen(CAPACITY);
    let observer = Observer::start(Arc::clone(&memory), task(false)).unwrap();
    let read = |frame, block| {
        let from = DiskBlock { disk: 0, block };
        Event::Read { frame: Frame(frame), from, changed: false }
    };
    for frame in 0..100 {
        memory.resolve(Frame(frame), Access::Write).unwrap();
        events.tell(read(frame, frame.into()));
    }
    // Another block into the same frame: the first is evicted, then read again elsewhere.
    events.tell(read(0, 1000));
    events.tell(read(1, 0));
    let picture = observer.picture();
    let cache = picture.cache.expect("disks are listened to");
    assert_eq!((cache.inserted, cache.evicted, cache.ghost_hits), (102, 2, 1));
    assert_eq!(picture.part(FrameClass::FileCache).bytes, 100 * 4096);
    assert_eq!(picture.part(FrameClass::Untouched).bytes, (1024 - 100) * 4096);
    assert_eq!((picture.watched_seconds, picture.lost_events), (None, 0));
    assert!(picture.curve.points.last().expect("misses").miss_ratio < 1.0);
    observer.end();
    assert_eq!(observer.counts().map(|counts| counts.inserted), Some(102));
    assert_eq!(observer.picture().part(FrameClass::FileCache).bytes, 100 * 4096);
}

#[test]
fn who_watches_learns_of_idle_memory_and_gets_a_history() {
    let memory = Arc::new(GuestMemory::with_bytes(4 << 20).unwrap());
    for frame in 0..50 {
        memory.resolve(Frame(frame), Access::Write).unwrap();
    }
    let observer = Observer::start(Arc::clone(&memory), task(false)).unwrap();
    assert_eq!(observer.picture().cache, None, "nobody listens");
    observer.watch();
    while observer.picture().watched_seconds.is_none() {
        thread::yield_now();
    }
    for frame in 0..20 {
        memory.resolve(Frame(frame), Access::Read).unwrap();
    }
    let mut picture = observer.picture();
    while picture.working_set.is_none() || picture.history.len() < 3 {
        thread::sleep(TICK);
        picture = observer.picture();
    }
    assert_eq!(picture.by_idle_age().iter().sum::<u64>(), 20 * 4096);
    assert_eq!(picture.age_unknown_bytes(), 30 * 4096);
    assert_eq!(picture.working_set.expect("measured").window_60s_bytes, 20 * 4096);
    assert!(picture.history.is_sorted_by(|a, b| a.at_seconds < b.at_seconds));
}
