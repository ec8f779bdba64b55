//! The thread that ticks the working-set tracker, while somebody wants to know.
//!
//! Each tick makes every vCPU refill its translations, so it happens only while asked for: always with
//! `--report`, else until [`LINGER`] after the last question. And where ticks take long, it happens less often.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use confine::Thread;
use insight::{WorkingSetSample, WorkingSetTracker};
use memory::GuestMemory;

/// An epoch, unless the tick before it took long.
const EPOCH: Duration = Duration::from_secs(1);
/// Epochs last so many times what the tick before them took, at least. Most of a tick goes into frames that were
/// accessed, and so does what the guest pays for it afterwards, on KVM some six times as much: a page fault or two
/// for each of them. A guest on a slow or crowded host that pays each second does little else.
const EPOCH_PER_TICK: u32 = 20;
/// How long after the last question the ticking goes on.
const LINGER: Duration = Duration::from_secs(60);

/// Measures on demand. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct WorkingSetClock {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// What the times of the history count from.
    zero: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    always: bool,
    wanted_until: Option<Instant>,
    stop: bool,
    latest: Option<WorkingSetSample>,
    /// When each was taken, since `Shared::zero`.
    history: Vec<(Duration, WorkingSetSample)>,
}

impl WorkingSetClock {
    /// Starts the thread; it sleeps until asked, unless `always`. Times count from `zero`. `prepare` is
    /// called before each time that it measures: false where the memory cannot be measured now.
    pub(crate) fn start(
        memory: Arc<GuestMemory>,
        zero: Instant,
        always: bool,
        prepare: impl Fn() -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let state =
            State { always, wanted_until: None, stop: false, latest: None, history: Vec::new() };
        let shared = Arc::new(Shared { zero, state: Mutex::new(state), changed: Condvar::new() });
        let body = Arc::clone(&shared);
        let builder = thread::Builder::new().name("working-set".into());
        let body = move || body.run(&memory, prepare);
        let thread = confine::spawn(builder, Thread::WorkingSet, body)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Measure for the next minute.
    pub(crate) fn watch(&self) {
        self.shared.lock().wanted_until = Some(Instant::now() + LINGER);
        self.shared.changed.notify_all();
    }

    /// The latest sample; `None` while nobody watches, and until an epoch has ended.
    pub(crate) fn latest(&self) -> Option<WorkingSetSample> {
        self.shared.lock().latest
    }

    /// Every sample that `always` asked for, with its time.
    pub(crate) fn history(&self) -> Vec<(Duration, WorkingSetSample)> {
        self.shared.lock().history.clone()
    }
}

impl Drop for WorkingSetClock {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends by itself unless it panicked, and then there is nothing to save.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, memory: &Arc<GuestMemory>, prepare: impl Fn() -> bool) {
        while self.wait_until_wanted() {
            if !prepare() {
                self.sleep_until(Instant::now() + EPOCH);
                continue;
            }
            self.track(WorkingSetTracker::new(Arc::clone(memory), EPOCH));
        }
    }

    /// False when it is time to end.
    fn wait_until_wanted(&self) -> bool {
        let mut state = self.lock();
        while !state.stop && !state.wanted(Instant::now()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stop
    }

    fn track(&self, mut tracker: WorkingSetTracker) {
        let (mut begun, mut length) = (Instant::now(), EPOCH);
        while self.sleep_until(begun + length) {
            let now = Instant::now();
            let sample = tracker.tick(now - begun);
            (begun, length) = (now, epoch_after(now.elapsed()));
            let mut state = self.lock();
            state.latest = Some(sample);
            if state.always {
                state.history.push((now - self.zero, sample));
            }
        }
        self.lock().latest = None;
    }

    /// Sleeps; false when nobody wants to know any more.
    fn sleep_until(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.stop || !state.wanted(now) {
                return false;
            }
            if now >= deadline {
                return true;
            }
            let woken = self.changed.wait_timeout(state, deadline - now);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the epoch lasts that began with a tick which took `tick`.
fn epoch_after(tick: Duration) -> Duration {
    EPOCH.max(tick * EPOCH_PER_TICK)
}

impl State {
    fn wanted(&self, now: Instant) -> bool {
        self.always || self.wanted_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, MappingObserver, Revocation};
    use std::sync::mpsc::{Sender, channel};

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
        let clock = WorkingSetClock::start(memory, Instant::now(), true, || true).unwrap();
        // The first one only begins to measure.
        let (_, [first, second]) =
            (told.recv().unwrap(), [told.recv().unwrap(), told.recv().unwrap()]);
        drop(clock);
        let took = first.1 - first.0;
        assert!(second.0 - first.0 >= took * EPOCH_PER_TICK, "{first:?} {second:?}");
    }

    #[test]
    fn short_ticks_leave_the_epochs_as_they_are() {
        assert_eq!(epoch_after(Duration::ZERO), EPOCH);
        assert_eq!(epoch_after(EPOCH / EPOCH_PER_TICK), EPOCH);
        assert_eq!(epoch_after(EPOCH), EPOCH * EPOCH_PER_TICK);
    }
}
