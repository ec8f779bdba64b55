//! Frames that come before anybody needs them.

use std::collections::HashSet;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use confine::Thread;
use memory::{Frame, FrameState};
use snapshot::{Batch, Place, WorkingSet};

use super::demand::by_frame;
use super::{Restore, RestoreMode};
use crate::error::VmError;
use crate::saved::SavedError;

/// The guest starts when so much time has gone into the first part of its working set, or all of it is in.
const FIRST: Duration = Duration::from_millis(4);
/// More threads than this would only take each other's locks.
const THREADS_MAX: usize = 4;
/// How much the thread that reads the rest gives way.
const NICE: i32 = 10;
/// Before another try of what could not be read.
const RETRY: Duration = Duration::from_millis(500);

/// What has been read ahead.
pub(super) struct Progress {
    set: Option<Arc<WorkingSet>>,
    /// Whether it is read first.
    set_first: bool,
    /// The next piece of it.
    piece: AtomicU32,
    rest: Mutex<Rest>,
    supplied: AtomicU64,
    read: AtomicU64,
    /// Threads that are still at the working set, and who waits for them.
    at_set: Mutex<usize>,
    past_set: Condvar,
    stop: AtomicBool,
    complete: OnceLock<Instant>,
}

/// What is read after the working set, by rising frame.
#[derive(Default)]
struct Rest {
    next: u32,
    /// Read by another thread just now, perhaps.
    taken: HashSet<Place>,
}

impl Progress {
    pub(super) fn new(set: Option<Arc<WorkingSet>>, mode: RestoreMode) -> Self {
        Self {
            set_first: mode == RestoreMode::WorkingSet && set.is_some(),
            set,
            piece: AtomicU32::new(0),
            rest: Mutex::default(),
            supplied: AtomicU64::new(0),
            read: AtomicU64::new(0),
            at_set: Mutex::default(),
            past_set: Condvar::new(),
            stop: AtomicBool::new(false),
            complete: OnceLock::new(),
        }
    }

    /// Frames that came in time.
    pub(super) fn supplied(&self) -> u64 {
        self.supplied.load(Ordering::Relaxed)
    }

    /// Frames that were read.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Frames of the working set, if it was read first.
    pub(super) fn set_frames(&self) -> u64 {
        if self.set_first { self.set().len() as u64 } else { 0 }
    }

    /// In its order.
    pub(super) fn set(&self) -> &[Frame] {
        self.set.as_ref().map_or(&[], |set| set.frames())
    }

    /// When nothing was absent any more.
    pub(super) fn complete(&self) -> Option<Instant> {
        self.complete.get().copied()
    }

    fn at_set(&self) -> MutexGuard<'_, usize> {
        self.at_set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads. Dropping it ends them.
pub(crate) struct Readers {
    restore: Arc<Restore>,
    threads: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Readers {
    /// Starts them, if there is anything to read.
    pub(crate) fn start(restore: &Arc<Restore>, vcpus: u32) -> Result<Option<Self>, VmError> {
        let progress = &restore.progress;
        if progress.complete.get().is_some() {
            return Ok(None);
        }
        // The guest's own processors are not taken from it.
        let threads = if progress.set_first { threads().saturating_sub(vcpus as usize) } else { 1 };
        let threads = threads.max(1);
        *progress.at_set() = threads;
        let mut readers =
            Self { restore: Arc::clone(restore), threads: Vec::new(), started: Instant::now() };
        for number in 0..threads {
            let restore = Arc::clone(restore);
            let builder = thread::Builder::new().name(format!("restore{number}"));
            let body = move || restore.read_ahead(number == 0);
            let thread = confine::spawn(builder, Thread::Restore, body);
            readers.threads.push(thread.map_err(VmError::host("start a thread that reads"))?);
        }
        Ok(Some(readers))
    }

    /// Returns when the guest should start.
    pub(crate) fn wait_for_first(&self) {
        let Restore { progress, .. } = &*self.restore;
        let rest = FIRST.saturating_sub(self.started.elapsed());
        let waiting = progress.at_set();
        drop(progress.past_set.wait_timeout_while(waiting, rest, |at_set| *at_set > 0));
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.restore.progress.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX)
}

/// Does the same on this thread and others, each of which takes what is left; the first error of any.
pub(crate) fn together(work: impl Fn() -> Result<(), SavedError> + Sync) -> Result<(), SavedError> {
    let work = &work;
    thread::scope(|scope| {
        let start = |number| {
            let builder = thread::Builder::new().name(format!("restore{number}"));
            builder.spawn_scoped(scope, work)
        };
        let started: Vec<_> = (1..threads()).map(start).collect();
        let mine = work();
        let gone = |_| Err(SavedError::Stream("a thread that reads has panicked".into()));
        let refused = |error| SavedError::Stream(format!("start a thread: {error}"));
        let ended =
            started.into_iter().map(|thread| thread.map_err(refused)?.join().unwrap_or_else(gone));
        ended.fold(mine, Result::and)
    })
}

impl Restore {
    /// Everything, now, on this thread and others.
    pub(crate) fn read_all(&self) -> Result<(), SavedError> {
        together(|| self.read_rest(&mut Batch::new()))?;
        let _ = self.progress.complete.set(Instant::now());
        Ok(())
    }

    /// The working set, with others; then, on one of them, all else.
    fn read_ahead(&self, stays: bool) {
        snapshot::read_ahead();
        let mut batch = Batch::new();
        let whole = self.read_set(&mut batch);
        let last = {
            let mut at_set = self.progress.at_set();
            *at_set -= 1;
            *at_set == 0
        };
        if last {
            self.progress.past_set.notify_all();
        }
        if let Err(error) = whole {
            tracing::warn!("{error}: the rest of the working set comes when it is needed");
        }
        if !stays {
            return;
        }
        let tid = Some(rustix::thread::gettid());
        if let Err(error) = rustix::process::setpriority_process(tid, NICE) {
            tracing::debug!("lower the priority of the thread that reads: {error}");
        }
        while let Err(error) = self.read_rest(&mut batch) {
            tracing::warn!("{error}: tried again");
            if !self.rest_before_retry() {
                return;
            }
        }
        if !self.stopping() {
            let _ = self.progress.complete.set(Instant::now());
        }
    }

    fn stopping(&self) -> bool {
        self.progress.stop.load(Ordering::Relaxed)
    }

    /// False: there is no more to do.
    fn rest_before_retry(&self) -> bool {
        let until = Instant::now() + RETRY;
        while Instant::now() < until && !self.stopping() {
            thread::sleep(RETRY / 20);
        }
        // From its beginning: what came is passed over.
        *self.rest() = Rest::default();
        !self.stopping()
    }

    fn read_set(&self, batch: &mut Batch) -> Result<(), SavedError> {
        let Some(set) = self.progress.set.as_ref().filter(|_| self.progress.set_first) else {
            return Ok(());
        };
        while !self.stopping() {
            let piece = self.progress.piece.fetch_add(1, Ordering::Relaxed);
            if piece >= set.chunks() {
                break;
            }
            set.read(piece, batch)?;
            self.supply(batch)?;
        }
        Ok(())
    }

    fn read_rest(&self, batch: &mut Batch) -> Result<(), SavedError> {
        while !self.stopping()
            && let Some(place) = self.next_absent()?
        {
            self.snapshot.read_place(place, batch)?;
            self.supply(batch)?;
        }
        Ok(())
    }

    /// What has the next frame that is absent.
    fn next_absent(&self) -> Result<Option<Place>, SavedError> {
        let mut rest = self.rest();
        while rest.next < self.memory.layout().frames() {
            let frame = Frame(rest.next);
            let state = self.memory.facts(frame).map(|facts| facts.state);
            if !matches!(state, Some(FrameState::Absent(_))) {
                rest.next += 1;
                continue;
            }
            let place = self.snapshot.place_of(frame)?;
            rest.next += 1;
            if let Some(place) = place
                && rest.taken.insert(place)
            {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    fn supply(&self, batch: &Batch) -> Result<(), SavedError> {
        self.progress.read.fetch_add(batch.frames().len() as u64, Ordering::Relaxed);
        let supplied = self.memory.supply(self.demand.source(), &by_frame(batch, |_| true));
        let supplied = supplied.map_err(|error| SavedError::Stream(error.to_string()))?;
        self.progress.supplied.fetch_add(u64::from(supplied), Ordering::Relaxed);
        Ok(())
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.progress.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
