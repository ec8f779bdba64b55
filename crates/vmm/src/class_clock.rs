//! The thread that classifies the guest's frames, for experiments.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use confine::Thread;
use insight::classes::truth::{self, Comparison};
use insight::kernel::KernelError;
use insight::{CacheTracker, ClassSummary, Classifier, ProcessSeen};
use memory::{Gpa, GuestMemory, ReadView};
use serde::Serialize;

/// How often events are taken in.
const TICK: Duration = Duration::from_millis(10);

/// How long an epoch lasts, with a sweep at its end.
/// What programs get and give back meanwhile is not known yet.
const EPOCH: Duration = Duration::from_millis(250);

/// Events that may wait.
const CAPACITY: usize = 1 << 16;

/// Classes of a guest that stands, and what its kernel says.
#[derive(Debug, Serialize)]
pub struct ClassCheck {
    summary: ClassSummary,
    processes: Vec<ProcessSeen>,
    comparison: Comparison,
    events_lost: u64,
    /// Time of this thread's processor spent on sweeps, and how many.
    sweep_seconds: f64,
    sweeps: u64,
    longest_sweep_seconds: f64,
}

/// Classifies the frames of one machine. Dropping it ends the thread.
pub(crate) struct ClassClock {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Where vCPUs have their page tables now; `None` once the machine has ended.
type Roots = Box<dyn Fn() -> Option<Vec<Gpa>> + Send + Sync>;

struct Shared {
    stop: AtomicBool,
    roots: OnceLock<Roots>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    classifier: Classifier,
    tracker: CacheTracker,
    sweep_time: Duration,
    longest_sweep: Duration,
    sweeps: u64,
}

impl ClassClock {
    /// Starts the thread before the guest runs, so that nothing is missed.
    pub(crate) fn start(memory: Arc<GuestMemory>) -> io::Result<Self> {
        memory.listen(CAPACITY);
        let contents = Box::new(ReadView::new(Arc::clone(&memory)));
        let state = State {
            classifier: Classifier::new(Arc::clone(&memory)),
            tracker: CacheTracker::new(memory.layout().frames(), contents),
            sweep_time: Duration::ZERO,
            longest_sweep: Duration::ZERO,
            sweeps: 0,
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            roots: OnceLock::new(),
            state: Mutex::new(state),
        });
        let of_thread = Arc::clone(&shared);
        let builder = thread::Builder::new().name("classes".into());
        let body = move || of_thread.run(&memory);
        let thread = confine::spawn(builder, Thread::WorkingSet, body)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Where the engine does not tell of address spaces: asks `roots` at the end of each epoch.
    pub(crate) fn ask_for_roots(&self, roots: Roots) {
        // One machine asks once.
        let _ = self.shared.roots.set(roots);
    }

    /// As frames are now known, with the events that were told.
    pub(crate) fn check(&self, memory: &Arc<GuestMemory>) -> Result<ClassCheck, KernelError> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.take_events(memory);
        let State { classifier, tracker, .. } = &*state;
        Ok(ClassCheck {
            summary: classifier.summary(tracker),
            processes: classifier.processes().collect(),
            comparison: truth::compare(memory, classifier, tracker)?,
            events_lost: memory.events().map_or(0, memory::EventStream::lost),
            sweep_seconds: state.sweep_time.as_secs_f64(),
            sweeps: state.sweeps,
            longest_sweep_seconds: state.longest_sweep.as_secs_f64(),
        })
    }
}

impl Drop for ClassClock {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends by itself unless it panicked, and then there is nothing to save.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, memory: &GuestMemory) {
        let mut epoch_ends = Instant::now() + EPOCH;
        while !self.stop.load(Ordering::SeqCst) {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.take_events(memory);
            let now = Instant::now();
            if now >= epoch_ends {
                drop(state);
                let roots = self.roots.get().and_then(|roots| roots()).unwrap_or_default();
                memory.advance_epoch();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.saw(memory, &roots);
                state.sweep();
                epoch_ends = now + EPOCH;
            }
            drop(state);
            thread::park_timeout(TICK);
        }
    }
}

impl State {
    fn take_events(&mut self, memory: &GuestMemory) {
        let Some(events) = memory.events() else { return };
        while let Some(stamped) = events.take() {
            self.classifier.tell(&stamped);
            self.tracker.tell(stamped);
        }
        memory.watch(self.tracker.take_watch());
        self.tracker.take_events();
    }

    fn saw(&mut self, memory: &GuestMemory, roots: &[Gpa]) {
        let now = memory.events().map_or(Duration::ZERO, memory::EventStream::now);
        for root in roots.iter().filter_map(|&root| memory.frame_of(root)) {
            self.classifier.saw_root(root, now);
        }
    }

    fn sweep(&mut self) {
        let begun = Instant::now();
        self.classifier.sweep(&self.tracker);
        let took = begun.elapsed();
        self.sweep_time += took;
        self.longest_sweep = self.longest_sweep.max(took);
        self.sweeps += 1;
    }
}
