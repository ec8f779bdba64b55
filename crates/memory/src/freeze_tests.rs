use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard};

use proptest::prelude::*;

use super::*;
use crate::{
    Access, DeviceView, Discard, Gpa, MappingObserver, PinnedSlice, ReadView, Revocation, Source,
};

const FRAMES: u32 = 256;

type Contents = [u8; FRAME_SIZE];

/// Remembers what it keeps, and panics over what it keeps twice.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<u32, Box<Contents>>>>);

impl Shelf {
    fn frames(&self) -> MutexGuard<'_, BTreeMap<u32, Box<Contents>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keep for Shelf {
    fn keep(&self, frame: Frame, contents: &Contents) {
        assert!(contents.iter().any(|&byte| byte != 0), "frame {frame}: zeros are kept");
        let before = self.frames().insert(frame.0, Box::new(*contents));
        assert!(before.is_none(), "frame {frame} is kept twice");
    }
}

fn memory() -> (Arc<GuestMemory>, DeviceView) {
    let memory = GuestMemory::with_bytes(u64::from(FRAMES) * FRAME_SIZE as u64).expect("1 MiB");
    let memory = Arc::new(memory);
    let view = DeviceView::new(Arc::clone(&memory));
    (memory, view)
}

fn gpa(frame: u32) -> Gpa {
    Gpa(u64::from(frame) * FRAME_SIZE as u64)
}

/// All of memory, without a trace.
fn contents(memory: &Arc<GuestMemory>) -> Vec<Contents> {
    let view = ReadView::new(Arc::clone(memory));
    let read = |frame| {
        let mut contents = [0; FRAME_SIZE];
        view.read(gpa(frame), &mut contents).expect("not absent");
        contents
    };
    (0..FRAMES).map(read).collect()
}

/// What `frame` had at the moment of the freeze.
fn taken(frozen: &Frozen, shelf: &Shelf, frame: u32) -> Contents {
    let mut into = [0xee; FRAME_SIZE];
    match frozen.take(Frame(frame), &mut into).expect("once") {
        Taken::Contents => into,
        Taken::Zero => [0; FRAME_SIZE],
        Taken::Kept => *shelf.frames().remove(&frame).expect("kept before"),
        Taken::Absent(source) => {
            frozen.fetch(Frame(frame), source, &mut into).expect("fetched");
            into
        }
    }
}

/// A source that has the frame's number all over.
struct Numbers;

impl Source for Numbers {
    fn fetch(&self, frame: Frame, into: &mut Contents) -> Result<(), SourceError> {
        *into = number(frame.0);
        Ok(())
    }
}

fn number(frame: u32) -> Contents {
    let mut contents = [0; FRAME_SIZE];
    contents.as_chunks_mut::<4>().0.fill((frame | 1 << 31).to_le_bytes());
    contents
}

#[test]
fn each_way_to_write_keeps_what_was_there_and_reads_keep_nothing() {
    let (memory, view) = memory();
    for frame in 0..8 {
        view.write(gpa(frame), &[frame as u8 + 1; FRAME_SIZE]).expect("written");
    }
    let shelf = Shelf::default();
    let frozen = memory.freeze(Box::new(shelf.clone())).expect("frozen");
    let kept = || shelf.frames().keys().copied().collect::<Vec<_>>();

    view.read(gpa(0), &mut [0; FRAME_SIZE]).expect("read");
    drop(view.slice(gpa(0), 1, Access::Read).expect("a pin"));
    memory.resolve(Frame(0), Access::Read).expect("resident");
    contents(&memory);
    assert_eq!((kept(), frozen.kept()), (vec![], 0));

    view.write(Gpa(gpa(1).0 + 4095), &[9]).expect("written");
    assert_eq!(kept(), [1]);
    // Before anything is written, and all frames of it.
    let pin = view.slice(Gpa(gpa(2).0 + 4095), 2, Access::Write).expect("a pin");
    assert_eq!(kept(), [1, 2, 3]);
    drop(pin);
    memory.resolve(Frame(4), Access::Write).expect("resident");
    memory.discard([Frame(5), Frame(u32::MAX)], Discard::Reported).expect("discarded");
    memory.discard([Frame(6)], Discard::Balloon).expect("discarded");
    assert_eq!((kept(), frozen.kept()), (vec![1, 2, 3, 4, 5, 6], 6));
    // Again, after everything.
    view.write(gpa(0), &vec![7; 8 * FRAME_SIZE]).expect("written");
    assert_eq!(kept(), [0, 1, 2, 3, 4, 5, 6, 7]);
    for frame in 0..8 {
        assert_eq!(taken(&frozen, &shelf, frame), [frame as u8 + 1; FRAME_SIZE], "frame {frame}");
    }
}

#[test]
fn what_had_no_contents_is_zero_whatever_becomes_of_it() {
    let (memory, view) = memory();
    view.write(gpa(1), &[0; 9]).expect("touched, not more");
    view.write(gpa(2), &[1; 9]).expect("written");
    memory.discard([Frame(2)], Discard::Balloon).expect("ballooned");
    let shelf = Shelf::default();
    let frozen = memory.freeze(Box::new(shelf.clone())).expect("frozen");
    for round in 0..2 {
        for frame in 0..3 {
            view.write(gpa(frame), &[round + 3; 9]).expect("written");
        }
    }
    memory.return_from_balloon([Frame(2)]);
    let mut into = [0; FRAME_SIZE];
    for frame in 0..4 {
        assert_eq!(frozen.take(Frame(frame), &mut into), Ok(Taken::Zero), "frame {frame}");
    }
    assert!(shelf.frames().is_empty());
}

#[test]
fn an_absent_frame_is_at_its_source_or_kept_once_it_was_fetched() {
    let (memory, view) = memory();
    let _other = memory.add_source(Arc::new(Numbers)).expect("a source");
    let source = memory.add_source(Arc::new(Numbers)).expect("a source");
    memory.make_absent((0..6).map(Frame), source).expect("absent");
    let shelf = Shelf::default();
    let frozen = memory.freeze(Box::new(shelf.clone())).expect("frozen");
    assert!(memory.make_absent([Frame(9)], source).is_err());

    view.read(gpa(1), &mut [0; 4]).expect("fetched");
    view.write(gpa(2), &[1, 2, 3, 4]).expect("fetched, then written");
    memory.discard([Frame(3)], Discard::Reported).expect("forgotten");
    view.write(gpa(3), &[1, 2, 3, 4]).expect("written to zeros");
    view.read(gpa(4), &mut [0; 4]).expect("fetched");
    memory.discard([Frame(4)], Discard::Balloon).expect("given back");
    let mut into = [0; FRAME_SIZE];
    let answers = [
        Taken::Absent(source),
        Taken::Contents,
        Taken::Kept,
        Taken::Absent(source),
        Taken::Kept,
        Taken::Absent(source),
    ];
    for (frame, answer) in (0..).zip(answers) {
        assert_eq!(frozen.take(Frame(frame), &mut into), Ok(answer), "frame {frame}");
        match answer {
            Taken::Kept => into = *shelf.frames()[&frame],
            Taken::Absent(source) => {
                frozen.fetch(Frame(frame), source, &mut into).expect("fetched");
            }
            _ => {}
        }
        assert_eq!(into, number(frame), "frame {frame}");
    }
    // Taken as absent, then fetched and written: nobody wants it.
    view.write(gpa(0), &[1]).expect("written");
    assert_eq!(frozen.kept(), 2);
}

#[test]
fn one_freeze_at_a_time_and_after_it_nothing_is_kept() {
    let (memory, view) = memory();
    view.write(gpa(1), &[1]).expect("written");
    let (first, second) = (Shelf::default(), Shelf::default());
    let frozen = memory.freeze(Box::new(first.clone())).expect("frozen");
    assert!(memory.is_frozen());
    let again = memory.freeze(Box::new(second.clone())).expect_err("frozen already");
    assert!(matches!(again, FreezeError::Already), "{again}");
    let mut into = [0; FRAME_SIZE];
    assert_eq!(frozen.take(Frame(FRAMES), &mut into), Err(TakeError::NoSuchFrame(Frame(FRAMES))));
    assert_eq!(frozen.take(Frame(1), &mut into), Ok(Taken::Contents));
    assert_eq!(frozen.take(Frame(1), &mut into), Err(TakeError::Again(Frame(1))));
    drop(frozen);
    assert!(!memory.is_frozen());
    view.write(gpa(1), &[2]).expect("written");
    assert!(first.frames().is_empty());

    let frozen = memory.freeze(Box::new(second.clone())).expect("frozen again");
    view.write(gpa(1), &[3]).expect("written");
    assert_eq!(taken(&frozen, &second, 1)[0], 2);
}

/// Whose guest writes by itself, if it may.
#[derive(Default)]
struct Kernel {
    refuses: bool,
    unprotected: Mutex<Vec<FrameRange>>,
}

impl MappingObserver for Kernel {
    fn revoke(&self, _: Revocation<'_>) {}

    fn code_written(&self, _: Gpa, _: usize) {}

    fn maps_by_itself(&self) -> bool {
        true
    }

    fn write_protect(&self) -> Result<(), String> {
        if self.refuses { Err("this kernel cannot".into()) } else { Ok(()) }
    }

    fn unprotect(&self, frames: FrameRange) {
        self.unprotected.lock().expect("no panic").push(frames);
    }
}

#[test]
fn an_engine_that_cannot_protect_refuses_and_nothing_stays_frozen() {
    let (memory, view) = memory();
    memory.set_observer(Arc::new(Kernel { refuses: true, ..Kernel::default() }));
    view.write(gpa(1), &[1]).expect("written");
    let shelf = Shelf::default();
    let error = memory.freeze(Box::new(shelf.clone())).expect_err("refused");
    assert!(error.to_string().contains("this kernel cannot"), "{error}");
    assert!(!memory.is_frozen());
    view.write(gpa(1), &[2]).expect("written");
    assert!(shelf.frames().is_empty());
}

#[test]
fn what_a_guest_wrote_unseen_is_found_and_looking_makes_no_pages() {
    let (memory, view) = memory();
    let kernel = Arc::new(Kernel::default());
    memory.set_observer(Arc::clone(&kernel) as Arc<dyn MappingObserver>);
    view.write(gpa(3), &[3; 5]).expect("written");
    for frame in [5, 6] {
        let at = memory.guest_base().as_ptr().wrapping_add(frame * FRAME_SIZE);
        // SAFETY: inside the mapping.
        unsafe { at.write_volatile(frame as u8) };
    }
    let pages = 3 * FRAME_SIZE as u64;
    assert_eq!(memory.backed_bytes().expect("a file"), pages);
    let shelf = Shelf::default();
    let frozen = memory.freeze(Box::new(shelf.clone())).expect("frozen");
    view.write(gpa(6), &[9]).expect("written");
    let first: Vec<u8> = (0..8).map(|frame| taken(&frozen, &shelf, frame)[0]).collect();
    assert_eq!(first, [0, 0, 0, 3, 0, 5, 6, 0]);
    assert_eq!(memory.backed_bytes().expect("a file"), pages);
    assert!(kernel.unprotected.lock().expect("no panic").is_empty());
    drop(frozen);
    let all = FrameRange { first: Frame(0), count: FRAMES };
    assert_eq!(*kernel.unprotected.lock().expect("no panic"), [all]);
}

#[test]
fn a_device_that_works_is_waited_for_and_memory_stays_where_it_is() {
    let memory = Arc::new(GuestMemory::anonymous(8 << 20).expect("memory"));
    let view = DeviceView::new(Arc::clone(&memory));
    let pin = view.slice(Gpa(0), 1, Access::Write).expect("a pin");
    thread::scope(|scope| {
        let freezing = scope.spawn(|| memory.freeze(Box::new(Shelf::default())));
        thread::sleep(Duration::from_millis(20));
        assert!(!memory.is_frozen());
        drop(pin);
        let frozen = freezing.join().expect("no panic").expect("frozen");
        let error = memory.move_to_file().expect_err("frozen");
        assert!(error.to_string().contains("being saved"), "{error}");
        drop(frozen);
    });
    memory.move_to_file().expect("moved");
    let _pin = view.slice(Gpa(0), 1, Access::Write).expect("a pin");
    let error = memory.freeze(Box::new(Shelf::default())).expect_err("pinned");
    assert!(matches!(error, FreezeError::Pinned), "{error}");
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Read(u64, usize),
    /// Takes a pin, lets the oldest go where there are two.
    Pin(u64, usize, bool),
    Resolve(u32, bool),
    Discard(u32, u32, bool),
    Deflate(u32, u32),
    Take(u32),
}

fn step() -> impl Strategy<Value = Step> {
    // Few frames, so that steps meet.
    let frame = || 0..24u32;
    let at = || 0..20 * FRAME_SIZE as u64;
    let len = || prop_oneof![1..16usize, 1..3 * FRAME_SIZE];
    prop_oneof![
        6 => (at(), len(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        2 => (at(), len()).prop_map(|(at, len)| Step::Read(at, len)),
        2 => (at(), len(), any::<bool>()).prop_map(|(at, len, write)| Step::Pin(at, len, write)),
        2 => (frame(), any::<bool>()).prop_map(|(frame, write)| Step::Resolve(frame, write)),
        2 => (frame(), 1..5u32, any::<bool>()).prop_map(|(from, n, balloon)| Step::Discard(from, n, balloon)),
        1 => (frame(), 1..5u32).prop_map(|(from, n)| Step::Deflate(from, n)),
        4 => frame().prop_map(Step::Take),
    ]
}

/// Who does steps, and what it holds.
struct Actor<'m> {
    memory: &'m Arc<GuestMemory>,
    view: &'m DeviceView,
    pins: Vec<PinnedSlice<'m>>,
}

impl Actor<'_> {
    fn take_step(&mut self, step: &Step) {
        match *step {
            Step::Write(at, len, byte) => {
                self.view.write(Gpa(at), &vec![byte; len]).expect("written");
            }
            Step::Read(at, len) => self.view.read(Gpa(at), &mut vec![0; len]).expect("read"),
            Step::Pin(at, len, write) => {
                let access = if write { Access::Write } else { Access::Read };
                let pin = self.view.slice(Gpa(at), len, access).expect("a pin");
                if write {
                    // SAFETY: a pinned range, and nobody else is here.
                    unsafe { pin.as_ptr().write_bytes(0x77, pin.len()) };
                }
                self.pins.push(pin);
                if self.pins.len() > 2 {
                    self.pins.remove(0);
                }
            }
            Step::Resolve(frame, write) => {
                let access = if write { Access::Write } else { Access::Read };
                let page = self.memory.resolve(Frame(frame), access).expect("resident");
                if write {
                    // SAFETY: resolved for writing just now, on the only thread that discards.
                    unsafe { page.as_ptr().add(7).write_volatile(frame as u8) };
                }
            }
            Step::Discard(first, count, balloon) => {
                let why = if balloon { Discard::Balloon } else { Discard::Reported };
                self.memory.discard((first..first + count).map(Frame), why).expect("discarded");
            }
            Step::Deflate(first, count) => {
                self.memory.return_from_balloon((first..first + count).map(Frame));
            }
            Step::Take(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens before the freeze and after it, each frame's contents of that moment are found once.
    #[test]
    fn what_is_taken_is_what_was_there(
        before in prop::collection::vec(step(), 0..30),
        after in prop::collection::vec(step(), 1..80),
        unseen in any::<bool>(),
        absent in prop::collection::btree_set(0..24u32, 0..6),
    ) {
        let (memory, view) = memory();
        if unseen {
            memory.set_observer(Arc::new(Kernel::default()));
        }
        let mut actor = Actor { memory: &memory, view: &view, pins: Vec::new() };
        before.iter().for_each(|step| actor.take_step(step));
        actor.pins.clear();
        let source = memory.add_source(Arc::new(Numbers)).expect("a source");
        let made = |frame: &u32| {
            memory.make_absent([Frame(*frame)], source).expect("no observer refuses") == 1
        };
        let absent: Vec<u32> = absent.into_iter().filter(made).collect();
        let mut expected = Vec::new();
        let looks = ReadView::new(Arc::clone(&memory));
        for frame in 0..FRAMES {
            let mut contents = [0; FRAME_SIZE];
            if absent.contains(&frame) {
                contents = number(frame);
            } else {
                looks.read(gpa(frame), &mut contents).expect("not absent");
            }
            expected.push(contents);
        }

        let shelf = Shelf::default();
        let frozen = memory.freeze(Box::new(shelf.clone())).expect("frozen");
        let mut left: Vec<u32> = (0..FRAMES).collect();
        for step in &after {
            match *step {
                Step::Take(frame) => {
                    if let Some(index) = left.iter().position(|&one| one == frame) {
                        left.remove(index);
                        prop_assert_eq!(taken(&frozen, &shelf, frame), expected[frame as usize]);
                    }
                }
                ref step => actor.take_step(step),
            }
        }
        for frame in left {
            prop_assert_eq!(taken(&frozen, &shelf, frame), expected[frame as usize], "frame {}", frame);
        }
        prop_assert!(shelf.frames().is_empty(), "kept, and not asked for");
    }
}

/// A vCPU of a test: it uses pages only under its lock, for which a revocation waits.
struct Vcpu(Arc<Mutex<()>>);

impl MappingObserver for Vcpu {
    fn revoke(&self, _: Revocation<'_>) {
        drop(self.0.lock());
    }

    fn code_written(&self, _: Gpa, _: usize) {}
}

/// Writers, a balloon and two who take, all at once.
#[test]
fn nothing_is_torn_or_lost_when_all_come_at_once() {
    for round in 0..60u32 {
        let (memory, view) = memory();
        let running = Arc::new(Mutex::new(()));
        memory.set_observer(Arc::new(Vcpu(Arc::clone(&running))));
        for frame in (0..FRAMES).filter(|frame| frame % 7 != 3) {
            let word = (frame << 8 | round | 1 << 31).to_le_bytes();
            view.write(gpa(frame), &word.repeat(FRAME_SIZE / 4)).expect("written");
        }
        let expected = contents(&memory);
        let shelf = Shelf::default();
        let frozen = memory.freeze(Box::new(shelf.clone())).expect("frozen");
        let stop = AtomicBool::new(false);
        // Different orders, which meet.
        let order = |seed: u32| (0..).map(move |step: u32| (step * 37 + seed) % FRAMES);
        let next = AtomicU32::new(0);
        let found = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                for frame in order(round).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    view.write(gpa(frame), &[0x5a; FRAME_SIZE]).expect("written");
                }
            });
            scope.spawn(|| {
                for frame in order(round + 99).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let _inside = running.lock().unwrap_or_else(PoisonError::into_inner);
                    let page = memory.resolve(Frame(frame), Access::Write).expect("resident");
                    // SAFETY: resolved for writing, and no revocation ends before the lock is free.
                    unsafe { page.as_ptr().write_bytes(0xa5, FRAME_SIZE) };
                }
            });
            scope.spawn(|| {
                for frame in order(round + 200).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let frames = (frame..frame + 5).map(Frame);
                    memory.discard(frames, Discard::Reported).expect("discarded");
                }
            });
            let takers = [(), ()].map(|()| {
                scope.spawn(|| {
                    let mut into = [0; FRAME_SIZE];
                    loop {
                        let frame = next.fetch_add(1, Ordering::Relaxed);
                        if frame >= FRAMES {
                            return;
                        }
                        let contents = match frozen.take(Frame(frame), &mut into).expect("once") {
                            Taken::Contents => Some(Box::new(into)),
                            Taken::Zero => Some(Box::new([0; FRAME_SIZE])),
                            Taken::Kept => None,
                            Taken::Absent(_) => panic!("nothing is absent"),
                        };
                        found.lock().expect("no panic").insert(frame, contents);
                    }
                })
            });
            let done = takers.map(|taker| taker.join().is_ok());
            stop.store(true, Ordering::Relaxed);
            assert_eq!(done, [true, true]);
        });
        let found = found.into_inner().expect("no panic");
        let mut shelf = shelf.frames();
        assert_eq!(frozen.kept(), shelf.len() as u32);
        for (frame, contents) in found {
            let contents = contents.or_else(|| shelf.remove(&frame)).expect("kept");
            assert!(*contents == expected[frame as usize], "round {round}, frame {frame}");
        }
        assert!(shelf.is_empty(), "kept, and taken too");
    }
}
