//! The thread that learns what the guest does with its memory, and keeps the [`Picture`] of it.
//!
//! ```text
//!   memory.events() --> CacheTracker --> Ghosts, cache log            always, where the VM is to be understood
//!   epochs          --> EstimatorSet, EpochAges, classes              while somebody asks: they cost the guest
//!   both            --> Picture                                       when somebody asks, and for its history
//! ```
//!
//! Ending an epoch makes every vCPU refill its translations, so it happens only while asked for: always with `--report`,
//! else until [`LINGER`] after the last question. And where it takes long, it happens less often. No vCPU ever waits for
//! this thread; what it is too slow for is lost and counted.

mod accesses;
mod cache;
mod classes;
mod kernel;
mod log;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use confine::Thread;
use devices::virtio::block::HostCache;
use insight::kernel::KernelError;
use insight::picture::{HistoryPoint, MemoryCurve, Picture, WorkingSets, survey};
use insight::{CacheCounts, FrameClass, WorkingSetSample};
use memory::{EventStream, FRAME_SIZE, Frame, GuestMemory};

use crate::board::FirstBlock;

use accesses::Accesses;
use cache::Cache;
pub use classes::ClassCheck;

/// Events that may wait: some ticks of a fast disk.
pub(crate) const CAPACITY: usize = 1 << 15;

/// How often events are taken in where somebody follows them at once: a log, a host cache.
const TICK: Duration = Duration::from_millis(10);
/// The same where nobody does.
const RELAXED_TICK: Duration = Duration::from_millis(25);
/// The same where nothing happens.
const IDLE_TICK: Duration = Duration::from_millis(50);
/// An epoch, unless the tick before it took long.
pub(crate) const EPOCH: Duration = Duration::from_secs(1);
/// Epochs last so many times what the tick before them took, at least. Most of a tick goes into frames that were
/// accessed, and so does what the guest pays for it afterwards, on KVM some six times as much: a page fault or two
/// for each of them. A guest on a slow or crowded host that pays each second does little else.
const EPOCH_PER_TICK: u32 = 20;
/// How long after the last question the epochs go on.
const LINGER: Duration = Duration::from_secs(60);
/// Between two points of the history while nobody watches.
const UNWATCHED_POINT: Duration = Duration::from_secs(10);
/// Points of the history: ten minutes of seconds. Older ones are dropped.
const HISTORY: usize = 600;
/// How long a question waits for an answer that is new. The thread may be in a tick that takes long.
const ANSWER: Duration = Duration::from_secs(2);

/// What it is to do.
pub(crate) struct Task {
    /// What the times of pictures count from.
    pub(crate) zero: Instant,
    /// Whether accesses are watched all the time, and every sample is kept.
    pub(crate) always: bool,
    /// Where it is written which blocks come and go.
    pub(crate) log: Option<Arc<File>>,
    /// Who wants to know the same at once.
    pub(crate) host_cache: Option<Arc<HostCache>>,
    /// What disks are used for.
    pub(crate) first_blocks: Vec<FirstBlock>,
    /// Called before each time that epochs begin to be ended: false where the memory cannot be measured now.
    pub(crate) prepare: Box<dyn Fn() -> bool + Send>,
    /// Whether vCPUs tell of accesses and address spaces one by one.
    pub(crate) tells_accesses: bool,
    /// How long an epoch lasts, unless the tick before it took long.
    pub(crate) epoch: Duration,
}

/// Observes one machine. Dropping it takes in what is left, and ends the thread.
#[derive(Debug)]
pub(crate) struct Observer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    memory: Arc<GuestMemory>,
    cache: Option<Arc<Mutex<Cache>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// For the thread: a question, or the end.
    asked: Condvar,
    /// For those who asked.
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    always: bool,
    wanted_until: Option<Instant>,
    stop: bool,
    /// Pictures asked for, and the last of those that `picture` has seen.
    questions: u64,
    answers: u64,
    picture: Arc<Picture>,
    counts: Option<CacheCounts>,
    latest: Option<WorkingSetSample>,
    /// When each was taken, since `Task::zero`.
    samples: Vec<(Duration, WorkingSetSample)>,
}

impl Observer {
    /// Starts the thread. Where somebody listens to the memory's events, it takes them in.
    pub(crate) fn start(memory: Arc<GuestMemory>, task: Task) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().always = task.always;
        let of_thread = Arc::clone(&shared);
        let watch = Watch::new(Arc::clone(&memory), task, of_thread);
        let cache = watch.cache.clone();
        let builder = thread::Builder::new().name("observer".into());
        let body = move || watch.run();
        let thread = confine::spawn(builder, Thread::WorkingSet, body)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), memory, cache })
    }

    /// Watch accesses for the next minute.
    pub(crate) fn watch(&self) {
        self.shared.lock().wanted_until = Some(Instant::now() + LINGER);
        self.shared.asked.notify_all();
    }

    /// The latest sample; `None` while nobody watches, and until an epoch has ended.
    pub(crate) fn latest(&self) -> Option<WorkingSetSample> {
        self.shared.lock().latest
    }

    /// Every sample, with its time, where it was to watch always.
    pub(crate) fn samples(&self) -> Vec<(Duration, WorkingSetSample)> {
        self.shared.lock().samples.clone()
    }

    /// What frames are for against what the guest's kernel says, while the guest stands; `None` where disks are not
    /// listened to.
    pub(crate) fn check_classes(&self) -> Option<Result<ClassCheck, KernelError>> {
        let cache = self.cache.as_ref()?;
        // An engine whose guests reach frames by themselves tells only then which of those given back are in use again.
        self.memory.catch_up();
        let mut cache = lock(cache);
        while cache.take_in(&self.memory, Duration::ZERO) {}
        Some(cache.check(&self.memory))
    }

    /// Does `act` with what frames are for, as far as that is known. Events wait meanwhile.
    pub(crate) fn with_classes<T>(&self, act: impl FnOnce(&dyn Fn(Frame) -> FrameClass) -> T) -> T {
        match &self.cache {
            Some(cache) => {
                let cache = lock(cache);
                act(&|frame| cache.part(frame))
            }
            None => act(&|_| FrameClass::Unknown),
        }
    }

    /// Blocks that came and left; `None` where disks are not listened to.
    pub(crate) fn counts(&self) -> Option<CacheCounts> {
        self.shared.lock().counts
    }

    /// The last picture that was made, for a question or for the history.
    pub(crate) fn last_picture(&self) -> Arc<Picture> {
        Arc::clone(&self.shared.lock().picture)
    }

    /// A picture of now; of some time ago if the thread takes very long to answer, and of the end after that.
    pub(crate) fn picture(&self) -> Arc<Picture> {
        let mut state = self.shared.lock();
        state.questions += 1;
        let mine = state.questions;
        self.shared.asked.notify_all();
        let deadline = Instant::now() + ANSWER;
        while !state.stop && state.answers < mine {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.shared.answered.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Arc::clone(&state.picture)
    }

    /// Takes in what is left and ends the thread; what it knows stays.
    pub(crate) fn end(&self) {
        self.shared.lock().stop = true;
        self.shared.asked.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It ends by itself unless it panicked, and then there is nothing to save.
            let _ = thread.join();
        }
        self.shared.answered.notify_all();
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every update is an assignment: poisoning says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wanted(&self, now: Instant) -> bool {
        self.always || self.wanted_until.is_some_and(|until| now < until)
    }
}

/// What the thread has.
struct Watch {
    memory: Arc<GuestMemory>,
    task: Task,
    shared: Arc<Shared>,
    /// Where disks are listened to. Locked while something is done with it.
    cache: Option<Arc<Mutex<Cache>>>,
    accesses: Option<Accesses>,
    /// No attempt to begin epochs before this.
    prepare_at: Instant,
    history: VecDeque<HistoryPoint>,
    point_at: Instant,
}

impl Watch {
    fn new(memory: Arc<GuestMemory>, task: Task, shared: Arc<Shared>) -> Self {
        let (log, host_cache) = (task.log.clone(), task.host_cache.clone());
        let cache = memory.events().is_some();
        let cache = cache
            .then(|| Cache::new(&memory, log, host_cache, task.tells_accesses, &task.first_blocks));
        let cache = cache.map(|cache| Arc::new(Mutex::new(cache)));
        let now = Instant::now();
        let history = VecDeque::new();
        let (accesses, prepare_at, point_at) = (None, now, now);
        Self { memory, task, shared, cache, accesses, prepare_at, history, point_at }
    }

    fn run(mut self) {
        loop {
            let (stop, wanted, questions) = {
                let state = self.shared.lock();
                (state.stop, state.wanted(Instant::now()), state.questions)
            };
            let at = self.task.zero.elapsed();
            let cache = self.cache.as_ref();
            let busy = cache.is_some_and(|cache| lock(cache).take_in(&self.memory, at));
            self.watch(wanted && !stop);
            let point = Instant::now() >= self.point_at;
            let asked = questions > self.shared.lock().answers;
            if point || asked || stop {
                self.publish(questions, asked || stop, point);
            } else {
                self.tell_counts();
            }
            if stop {
                if let Some(cache) = &self.cache {
                    lock(cache).finish();
                }
                return;
            }
            self.sleep(busy);
        }
    }

    /// Begins to watch accesses, goes on or ends it.
    fn watch(&mut self, wanted: bool) {
        let now = Instant::now();
        match &mut self.accesses {
            Some(_) if !wanted => {
                self.accesses = None;
                self.shared.lock().latest = None;
            }
            Some(accesses) if now >= accesses.next_tick() => self.tick(now),
            Some(_) => {}
            None if wanted && now >= self.prepare_at => self.begin_epochs(now),
            None => {}
        }
    }

    fn begin_epochs(&mut self, now: Instant) {
        if !(self.task.prepare)() {
            self.prepare_at = now + self.task.epoch;
            return;
        }
        self.accesses =
            Some(Accesses::begin(&self.memory, self.task.epoch, self.task.tells_accesses));
        self.point_at = Instant::now() + EPOCH;
    }

    fn tick(&mut self, now: Instant) {
        let Some(accesses) = &mut self.accesses else { return };
        let Some(sample) = accesses.tick(&self.memory, now) else { return };
        if let Some(cache) = &self.cache {
            lock(cache).sweep();
        }
        accesses.set_epoch(epoch_after(now.elapsed(), self.task.epoch));
        let mut state = self.shared.lock();
        state.latest = Some(sample);
        if state.always {
            state.samples.push((now - self.task.zero, sample));
        }
    }

    /// Makes a picture for those who asked up to `questions`, and a `point` of the history.
    fn publish(&mut self, questions: u64, asked: bool, point: bool) {
        if asked {
            // An engine whose guests reach frames by themselves tells only then.
            self.memory.catch_up();
        }
        let mut picture = self.look();
        if point {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(point_of(&picture));
            let every = if self.accesses.is_some() { EPOCH } else { UNWATCHED_POINT };
            self.point_at = Instant::now() + every;
        }
        picture.history = self.history.iter().cloned().collect();
        self.tell_counts();
        let mut state = self.shared.lock();
        state.picture = Arc::new(picture);
        state.answers = questions;
        self.shared.answered.notify_all();
    }

    fn tell_counts(&self) {
        let counts = self.cache.as_ref().map(|cache| lock(cache).counts());
        self.shared.lock().counts = counts;
    }

    fn look(&self) -> Picture {
        let at = self.task.zero.elapsed();
        let cache = self.cache.as_ref().map(|cache| lock(cache));
        let (cache, accesses) = (cache.as_deref(), self.accesses.as_ref());
        let in_use = |frame| cache.map_or(FrameClass::Unknown, |cache| cache.part(frame));
        let mut parts = survey(&self.memory, accesses.map(Accesses::ages), in_use);
        for (part, bytes) in cache.into_iter().flat_map(Cache::shareable) {
            if let Some(figures) = parts.get_mut(&part) {
                figures.shareable_bytes = Some(bytes.min(figures.resident_bytes));
            }
        }
        let allocation = parts
            .iter()
            .filter(|(part, _)| **part != FrameClass::Ballooned)
            .map(|(_, figures)| figures.bytes)
            .sum();
        Picture {
            at_seconds: at.as_secs_f64(),
            memory_bytes: self.memory.bytes(),
            parts,
            classified: cache.is_some_and(Cache::is_classified),
            watched_seconds: accesses.map(|accesses| accesses.ages().watched().as_secs_f64()),
            working_set: accesses.and_then(Accesses::latest).map(WorkingSets::from),
            cache: cache.map(Cache::figures),
            curve: self.curve(allocation, cache),
            history: Vec::new(),
            lost_events: self.memory.events().map_or(0, EventStream::lost),
        }
    }

    /// Below the allocation by accesses, above it by what is read again, as far as either is known.
    fn curve(&self, allocation_bytes: u64, cache: Option<&Cache>) -> MemoryCurve {
        let above = cache.and_then(Cache::curve);
        let Some(accesses) = &self.accesses else {
            return MemoryCurve::above(allocation_bytes, above.as_ref());
        };
        let (misses, again) = cache.map_or((0.0, 0.0), Cache::misses_per_second);
        let whole = accesses.curve(allocation_bytes, above.as_ref(), misses);
        let mut curve = match &whole {
            Some(whole) => MemoryCurve::whole(allocation_bytes, whole),
            None => MemoryCurve::above(allocation_bytes, above.as_ref()),
        };
        let resident_bytes = self.memory.resident_bytes();
        curve.recommendation =
            accesses.demand(allocation_bytes, resident_bytes, whole.as_ref(), again);
        curve
    }

    /// Until the next thing to do, or a question.
    fn sleep(&self, busy: bool) {
        let now = Instant::now();
        let mut until = self.point_at;
        if let Some(cache) = &self.cache {
            let followed = lock(cache).is_followed();
            let tick = match (followed, busy) {
                (true, _) => TICK,
                (false, true) => RELAXED_TICK,
                (false, false) => IDLE_TICK,
            };
            until = until.min(now + tick);
        }
        if let Some(accesses) = &self.accesses {
            until = until.min(accesses.next_tick());
        }
        let state = self.shared.lock();
        let begin = self.accesses.is_none() && state.wanted(now);
        if begin {
            until = until.min(self.prepare_at);
        }
        if state.stop || state.questions > state.answers || until <= now {
            return;
        }
        // A wake-up for nothing does no harm.
        drop(self.shared.asked.wait_timeout(state, until - now));
    }
}

fn point_of(picture: &Picture) -> HistoryPoint {
    let cache = picture.cache.unwrap_or_default();
    HistoryPoint {
        at_seconds: picture.at_seconds,
        parts: picture.parts.iter().map(|(&part, figures)| (part, figures.bytes)).collect(),
        working_set_1s_bytes: picture.working_set.map(|sets| sets.window_1s_bytes),
        inserts_per_second: cache.inserts_per_second,
        evictions_per_second: cache.evictions_per_second,
    }
}

/// How long the epoch lasts, `epoch` at least, that began with a tick which took `tick`.
fn epoch_after(tick: Duration, epoch: Duration) -> Duration {
    epoch.max(tick * EPOCH_PER_TICK)
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    // A panic leaves wrong facts at worst.
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

fn frames_to_bytes(frames: u64) -> u64 {
    frames * FRAME_SIZE as u64
}
