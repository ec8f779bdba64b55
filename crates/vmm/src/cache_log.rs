//! The thread that follows the guest's page cache, and writes down which blocks come and go.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use confine::Thread;
use devices::virtio::block::HostCache;
use insight::{CacheCounts, CacheEvent, CacheTracker};
use memory::{GuestMemory, ReadView};
use serde::Serialize;

use crate::host_cache;

/// How often events are taken in. Watching frames makes each vCPU refill its translations once.
const TICK: Duration = Duration::from_millis(10);

/// Events that may wait: some ticks of a fast disk.
const CAPACITY: usize = 1 << 16;

/// Follows the cache of one machine. Dropping it takes in what is left, and ends the thread.
#[derive(Debug)]
pub(crate) struct CacheLog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    counts: Mutex<CacheCounts>,
}

/// A line of the log.
#[derive(Serialize)]
struct Line {
    at_ns: u64,
    change: insight::CacheChange,
    frame: u32,
    disk: u8,
    block: u64,
}

impl CacheLog {
    /// Starts the thread before the guest runs, so that nothing is missed.
    ///
    /// `host_cache` is told what comes and goes, `log` has it written down.
    pub(crate) fn start(
        memory: Arc<GuestMemory>,
        log: Option<Arc<File>>,
        host_cache: Option<Arc<HostCache>>,
    ) -> io::Result<Self> {
        memory.listen(CAPACITY);
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let builder = thread::Builder::new().name("cache".into());
        let body = move || of_thread.run(&memory, log.as_deref(), host_cache.as_deref());
        let thread = confine::spawn(builder, Thread::WorkingSet, body)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CacheLog {
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
    fn run(&self, memory: &Arc<GuestMemory>, log: Option<&File>, host_cache: Option<&HostCache>) {
        let contents = Box::new(ReadView::new(Arc::clone(memory)));
        let mut tracker = CacheTracker::new(memory.layout().frames(), contents);
        let mut log = log.map(BufWriter::new);
        loop {
            let last = self.stop.load(Ordering::SeqCst);
            let events = self.tick(memory, &mut tracker);
            if let Some(cache) = host_cache {
                host_cache::tell(cache, &events);
            }
            let written = log.as_mut().map_or(Ok(()), |log| write_lines(log, &events, last));
            if let Err(error) = written {
                tracing::error!("cache log: {error}: nothing more is written to it");
                log = None;
            }
            if last {
                return;
            }
            thread::park_timeout(TICK);
        }
    }

    fn tick(&self, memory: &GuestMemory, tracker: &mut CacheTracker) -> Vec<CacheEvent> {
        let Some(events) = memory.events() else { return Vec::new() };
        let lost = events.lost();
        while let Some(stamped) = events.take() {
            tracker.tell(stamped);
        }
        memory.watch(tracker.take_watch());
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = tracker.counts();
        if events.lost() != lost {
            tracing::warn!("cache log: {} events came too fast and are lost", events.lost());
        }
        tracker.take_events()
    }
}

/// All of them are in the file after the `last`.
fn write_lines(log: &mut impl Write, events: &[CacheEvent], last: bool) -> io::Result<()> {
    events.iter().try_for_each(|event| write_line(log, event))?;
    if last { log.flush() } else { Ok(()) }
}

fn write_line(log: &mut impl Write, event: &CacheEvent) -> io::Result<()> {
    let CacheEvent { at, change, frame, block } = *event;
    let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let line = Line { at_ns, change, frame: frame.0, disk: block.disk, block: block.block };
    serde_json::to_writer(&mut *log, &line)?;
    log.write_all(b"\n")
}
