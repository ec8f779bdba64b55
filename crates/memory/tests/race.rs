//! Resolve, device access and discard against each other, with an engine that caches translations
//! the way a real one does.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use memory::{
    Access, DeviceView, Discard, Evict, FRAME_SIZE, Frame, FrameState, Gpa, GuestMemory, HostPage,
    MappingObserver, Pool, PoolWriter, ReadView, Revocation, Source, SourceError, Switch,
};

const FRAMES: u32 = 32;
const ROUNDS: u32 = 30_000;
const VCPUS: usize = 2;

/// A vCPU that is outside guest code has seen everything.
const OUTSIDE: u64 = u64::MAX;

/// Quiescent-state revocation: each vCPU publishes the number of the last request that it saw at a
/// safe point, and `revoke` waits until all have seen its own.
struct Engine {
    requests: AtomicU64,
    seen: [AtomicU64; VCPUS],
}

impl Engine {
    fn new() -> Engine {
        Engine { requests: AtomicU64::new(0), seen: [const { AtomicU64::new(OUTSIDE) }; VCPUS] }
    }
}

impl MappingObserver for Engine {
    fn revoke(&self, revoked: Revocation<'_>) {
        let request = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if revoked.is_asynchronous() {
            return;
        }
        for seen in &self.seen {
            while seen.load(Ordering::SeqCst) < request {
                std::thread::yield_now();
            }
        }
    }

    fn code_written(&self, _: Gpa, _: usize) {}
}

/// A vCPU with a soft TLB. Drops all of it at a safe point that finds a request.
struct Vcpu<'a> {
    number: usize,
    engine: &'a Engine,
    memory: &'a GuestMemory,
    tlb: HashMap<Frame, HostPage>,
}

impl Vcpu<'_> {
    fn safe_point(&mut self) {
        let seen = &self.engine.seen[self.number];
        let request = self.engine.requests.load(Ordering::SeqCst);
        if seen.load(Ordering::Relaxed) != request {
            self.tlb.clear();
            seen.store(request, Ordering::SeqCst);
        }
    }

    /// Publishes a state before looking at the requests: a revocation in between waits.
    fn enter(&mut self) {
        self.engine.seen[self.number].store(0, Ordering::SeqCst);
        self.safe_point();
    }

    fn leave(&mut self) {
        self.engine.seen[self.number].store(OUTSIDE, Ordering::SeqCst);
    }

    fn translate(&mut self, frame: Frame) -> HostPage {
        let resolve = || self.memory.resolve(frame, Access::Write).unwrap();
        *self.tlb.entry(frame).or_insert_with(resolve)
    }

    /// Two frames at once, as an operand that crosses pages: no safe point between.
    fn access(&mut self, frames: [Frame; 2], value: u64) {
        for frame in frames {
            let page = self.translate(frame);
            cell(page.as_ptr(), self.number).store(value, Ordering::Relaxed);
        }
        std::thread::yield_now();
        for frame in frames {
            let page = self.tlb[&frame];
            let found = cell(page.as_ptr(), self.number).load(Ordering::Relaxed);
            assert_eq!(found, value, "frame {frame} was punched under a translation");
        }
    }
}

/// A vCPU that failed its test must not keep the others waiting.
impl Drop for Vcpu<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Each accessor has eight bytes of its own in every frame.
fn cell<'a>(page: *mut u8, accessor: usize) -> &'a AtomicU64 {
    // SAFETY: the caller holds a translation or a pin of the page; the cell is aligned and only
    // accessed atomically.
    unsafe { &*page.cast::<AtomicU64>().add(accessor) }
}

/// A small generator: the same accesses in every run, though never the same interleaving.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32 % limit
    }

    fn frames<const N: usize>(&mut self) -> [Frame; N] {
        std::array::from_fn(|_| Frame(self.below(FRAMES)))
    }

    fn why(&mut self) -> Discard {
        if self.below(2) == 0 { Discard::Balloon } else { Discard::Reported }
    }
}

/// Runs guest code, and now and then discards from its exit handler.
fn run_vcpu(mut vcpu: Vcpu<'_>) {
    let mut random = Random(vcpu.number as u64);
    for round in 1..=ROUNDS {
        vcpu.enter();
        for _ in 0..4 {
            vcpu.access(random.frames(), u64::from(round));
            vcpu.safe_point();
        }
        vcpu.leave();
        if random.below(16) == 0 {
            vcpu.memory.discard(random.frames::<6>(), random.why()).unwrap();
        }
    }
}

fn run_device(view: &DeviceView) {
    let mut random = Random(77);
    for round in 1..=ROUNDS {
        let [frame] = random.frames();
        let slice = view.slice(gpa(frame), FRAME_SIZE, Access::Write).unwrap();
        cell(slice.as_ptr(), VCPUS).store(u64::from(round), Ordering::Relaxed);
        std::thread::yield_now();
        let found = cell(slice.as_ptr(), VCPUS).load(Ordering::Relaxed);
        assert_eq!(found, u64::from(round), "frame {frame} was punched under a pin");
    }
}

fn run_balloon(memory: &GuestMemory, source: memory::SourceId) {
    let mut random = Random(99);
    for round in 1..=ROUNDS / 4 {
        memory.discard(random.frames::<10>(), random.why()).unwrap();
        memory.return_from_balloon(random.frames::<4>());
        memory.make_absent(random.frames::<4>(), source).expect("no engine refuses");
        if round % 64 == 0 {
            memory.advance_epoch();
        }
    }
}

fn gpa(frame: Frame) -> Gpa {
    Gpa(u64::from(frame.0) * FRAME_SIZE as u64)
}

/// Counts fetches of each frame; every other attempt fails if it is moody.
struct Counting {
    fetches: Vec<AtomicU32>,
    moody: bool,
}

impl Counting {
    fn new(moody: bool) -> Arc<Counting> {
        let fetches = (0..FRAMES).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Counting { fetches, moody })
    }
}

impl Source for Counting {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        let before = self.fetches[frame.index()].fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
        if self.moody && before.is_multiple_of(2) {
            return Err(SourceError::Unavailable("moody".into()));
        }
        into.fill(frame.0 as u8 + 1);
        Ok(())
    }
}

#[test]
fn no_page_goes_under_a_translation_or_a_pin_and_the_table_stays_true() {
    let memory = Arc::new(GuestMemory::with_bytes(gpa(Frame(FRAMES)).0).unwrap());
    let source = memory.add_source(Counting::new(false)).unwrap();
    let engine = Arc::new(Engine::new());
    memory.set_observer(engine.clone());
    let view = DeviceView::new(Arc::clone(&memory));
    std::thread::scope(|scope| {
        for number in 0..VCPUS {
            let (engine, memory) = (&*engine, &*memory);
            scope.spawn(move || {
                run_vcpu(Vcpu { number, engine, memory, tlb: HashMap::new() });
            });
        }
        scope.spawn(|| run_device(&view));
        scope.spawn(|| run_balloon(&memory, source));
    });
    // Everybody wrote every frame that it resolved, so each resident frame has a page; a page
    // beyond those was written through a translation that should have been gone.
    assert_eq!(memory.backed_bytes().unwrap(), memory.resident_bytes());
    let facts = (0..FRAMES).map(|frame| memory.facts(Frame(frame)).unwrap());
    let resident = facts.clone().filter(|facts| facts.state == FrameState::Resident).count();
    assert_eq!(resident as u32, memory.counts().resident);
    let counts = memory.counts();
    let all = counts.untouched + counts.resident + counts.ballooned + counts.absent;
    assert_eq!(all, FRAMES);
    assert!(facts.clone().all(|facts| facts.pins == 0));
}

#[test]
fn many_threads_fetch_an_absent_frame_once() {
    for moody in [false, true] {
        let memory = GuestMemory::with_bytes(gpa(Frame(FRAMES)).0).unwrap();
        let counting = Counting::new(moody);
        let source = memory.add_source(counting.clone()).unwrap();
        memory.make_absent((0..FRAMES).map(Frame), source).expect("no engine refuses");
        let together = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| want_all(&memory, &together));
            }
        });
        let expected = if moody { 2 } else { 1 };
        for fetches in &counting.fetches {
            assert_eq!(fetches.load(Ordering::Relaxed), expected);
        }
    }
}

/// Wants every frame at the same time as the others do, and tries again when told no.
fn want_all(memory: &GuestMemory, together: &Barrier) {
    for frame in (0..FRAMES).map(Frame) {
        together.wait();
        let page = loop {
            if let Ok(page) = memory.resolve(frame, Access::Read) {
                break page;
            }
        };
        let bytes = u64::from_ne_bytes([frame.0 as u8 + 1; 8]);
        assert_eq!(cell(page.as_ptr(), 511).load(Ordering::Relaxed), bytes, "half a frame");
    }
}

/// What was evicted last of each frame.
struct Swap(Vec<Mutex<[u8; FRAME_SIZE]>>);

impl Source for Swap {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        std::thread::yield_now();
        *into = *self.0[frame.index()].lock().unwrap();
        Ok(())
    }
}

/// Keeps most, and is slow.
struct Keeper<'a>(&'a Swap, Random);

impl Evict for Keeper<'_> {
    fn keep(&mut self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> bool {
        if self.1.below(8) == 0 {
            return false;
        }
        let mut kept = self.0.0[frame.index()].lock().unwrap();
        kept.copy_from_slice(contents);
        std::thread::yield_now();
        true
    }
}

/// Counts up in its own cells: whatever is evicted meanwhile, no write of it is ever lost.
fn count_up(accessor: usize, over: &AtomicU32, mut add: impl FnMut(&mut Random, u64, &mut [u64])) {
    let mut random = Random(accessor as u64);
    let mut counts = [0; FRAMES as usize];
    let mut round = 0;
    while over.load(Ordering::SeqCst) == 0 {
        round += 1;
        add(&mut random, round, &mut counts);
    }
}

#[test]
fn no_write_is_lost_while_frames_are_evicted_and_come_back() {
    let memory = Arc::new(GuestMemory::with_bytes(gpa(Frame(FRAMES)).0).unwrap());
    let swap = Arc::new(Swap((0..FRAMES).map(|_| Mutex::new([0; FRAME_SIZE])).collect()));
    let source = memory.add_source(swap.clone()).unwrap();
    let engine = Arc::new(Engine::new());
    memory.set_observer(engine.clone());
    let view = DeviceView::new(Arc::clone(&memory));
    let over = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for number in 0..VCPUS {
            let (engine, memory, over) = (&*engine, &*memory, &over);
            scope.spawn(move || {
                let mut vcpu = Vcpu { number, engine, memory, tlb: HashMap::new() };
                count_up(number, over, |random, round, counts| {
                    if round % 8 == 1 {
                        vcpu.leave();
                        vcpu.enter();
                    }
                    let [frame] = random.frames();
                    let page = vcpu.translate(frame);
                    let found = cell(page.as_ptr(), number).load(Ordering::Relaxed);
                    assert_eq!(found, counts[frame.index()], "a write to frame {frame} is lost");
                    counts[frame.index()] = round;
                    cell(page.as_ptr(), number).store(round, Ordering::Relaxed);
                    vcpu.safe_point();
                });
            });
        }
        let (view, over, memory) = (&view, &over, &*memory);
        scope.spawn(move || {
            count_up(VCPUS, over, |random, round, counts| {
                let [frame] = random.frames();
                let slice = view.slice(gpa(frame), FRAME_SIZE, Access::Write).unwrap();
                let cell = cell(slice.as_ptr(), VCPUS);
                assert_eq!(cell.load(Ordering::Relaxed), counts[frame.index()], "{frame}");
                counts[frame.index()] = round;
                cell.store(round, Ordering::Relaxed);
            });
        });
        let mut keeper = Keeper(&swap, Random(5));
        let (mut random, mut evicted) = (Random(3), 0);
        let mut rounds = 0;
        // On a crowded machine, all rounds may be over before anybody has touched a frame.
        while rounds < ROUNDS / 60 || evicted == 0 {
            let frames = random.frames::<12>();
            evicted += memory.evict(frames, source, &mut keeper).unwrap().evicted;
            rounds += 1;
        }
        over.store(1, Ordering::SeqCst);
    });
    let counts = memory.counts();
    assert_eq!(counts.resident + counts.absent, FRAMES);
}

/// A vCPU that counts up in every frame, and sees that no count of anybody's goes back: it reads by translations that may
/// have been made while the frame was shared, and writes only by those that it resolved for that.
fn count_and_look(vcpu: &mut Vcpu<'_>, over: &AtomicU32) {
    let mut writable: HashMap<Frame, HostPage> = HashMap::new();
    let mut seen = [[0; VCPUS + 1]; FRAMES as usize];
    let mut random = Random(vcpu.number as u64);
    let mut round = 0u64;
    while over.load(Ordering::SeqCst) == 0 {
        round += 1;
        if round.is_multiple_of(8) {
            vcpu.leave();
            // Frames are left alone for a while, so that some are found as they were.
            std::thread::sleep(std::time::Duration::from_micros(50));
            vcpu.enter();
        }
        if vcpu.tlb.is_empty() {
            writable.clear();
        }
        let [frame] = random.frames();
        let resolve = |access| vcpu.memory.resolve(frame, access).unwrap();
        let page = *vcpu.tlb.entry(frame).or_insert_with(|| resolve(Access::Read));
        let before = &mut seen[frame.index()];
        for (accessor, before) in before.iter_mut().enumerate() {
            let found = cell(page.as_ptr(), accessor).load(Ordering::Relaxed);
            assert!(found >= *before, "{found} after {before} of {accessor} in frame {frame}");
            *before = found;
        }
        if random.below(8) == 0 {
            let page = *writable.entry(frame).or_insert_with(|| resolve(Access::Write));
            before[vcpu.number] += 1;
            cell(page.as_ptr(), vcpu.number).store(before[vcpu.number], Ordering::Relaxed);
            let by_read = cell(vcpu.tlb[&frame].as_ptr(), vcpu.number).load(Ordering::Relaxed);
            assert_eq!(by_read, before[vcpu.number], "the old translation shows another page");
        }
        vcpu.safe_point();
    }
}

#[test]
fn no_write_is_lost_while_frames_are_shared_and_copied() {
    let memory = Arc::new(GuestMemory::with_bytes(gpa(Frame(FRAMES)).0).unwrap());
    let mut pool = PoolWriter::new(2 * FRAMES).unwrap();
    memory.attach_pool(Pool::open(pool.descriptor().unwrap()).unwrap()).unwrap();
    let engine = Arc::new(Engine::new());
    memory.set_observer(engine.clone());
    let view = DeviceView::new(Arc::clone(&memory));
    let over = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for number in 0..VCPUS {
            let (engine, memory, over) = (&*engine, &*memory, &over);
            scope.spawn(move || {
                let mut vcpu = Vcpu { number, engine, memory, tlb: HashMap::new() };
                vcpu.enter();
                count_and_look(&mut vcpu, over);
            });
        }
        let (view, over, memory) = (&view, &over, &memory);
        scope.spawn(move || {
            count_up(VCPUS, over, |random, round, counts| {
                let [frame] = random.frames();
                let slice = view.slice(gpa(frame), FRAME_SIZE, Access::Write).unwrap();
                let cell = cell(slice.as_ptr(), VCPUS);
                assert_eq!(cell.load(Ordering::Relaxed), counts[frame.index()], "{frame}");
                counts[frame.index()] = round;
                cell.store(round, Ordering::Relaxed);
                drop(slice);
                std::thread::sleep(std::time::Duration::from_micros(50));
            });
        });
        // Stops them if it fails, too.
        struct Stop<'a>(&'a AtomicU32);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(1, Ordering::SeqCst);
            }
        }
        let _stop = Stop(over);
        let looked = ReadView::new(Arc::clone(memory));
        let mut free: Vec<u32> = (1..2 * FRAMES).collect();
        let (mut random, mut shared, mut differed) = (Random(3), 0, 0);
        while shared < 2000 || differed == 0 {
            free.extend(memory.released_slots());
            let (frames, mut wanted) = (random.frames::<12>(), Vec::new());
            for frame in frames.iter().filter(|_| memory.shared() < FRAMES - 12) {
                let Some(slot) = free.pop() else { break };
                let mut contents = [0; FRAME_SIZE];
                looked.read(gpa(*frame), &mut contents).unwrap();
                pool.put(slot, &contents);
                wanted.push((*frame, slot));
            }
            let outcome = memory.share(&wanted).unwrap();
            for ((_, slot), outcome) in wanted.into_iter().zip(outcome) {
                match outcome {
                    Switch::Shared => shared += 1,
                    outcome => {
                        differed += u32::from(outcome == Switch::Differs);
                        free.push(slot);
                    }
                }
            }
        }
    });
    let counts = memory.counts();
    let other = counts.untouched;
    assert_eq!(counts.resident + counts.absent + other, FRAMES);
    assert_eq!(counts.absent, memory.shared());
}
