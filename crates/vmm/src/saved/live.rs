//! Copying frozen memory while its guest goes on.
//!
//! ```text
//!   vCPUs, devices: about to write --> Keeper --> bounded queue --+
//!                                                                 +--> one sink a thread
//!   copying threads: chunk after chunk --> Frozen::take ----------+
//! ```
//! What the guest is about to overwrite waits in a queue, which the copying threads empty before they take the next
//! chunk. When the queue is full, who writes waits: the guest is as fast as the disk then, and no faster. Whatever goes
//! wrong, the queue closes, the others stop, and nobody waits any more; the guest goes on when the [`Frozen`] is dropped.
//!
//! It knows nothing of files: a sink is a function of a frame and its contents.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memory::{FRAME_SIZE, Frame, FrameRange, Frozen, Keep, SourceError, TakeError, Taken};

/// Frames that a thread takes between two looks at the queue.
const CHUNK: u32 = 512;

type Contents = [u8; FRAME_SIZE];

/// Why memory was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LiveError {
    /// A sink.
    #[error("write frame {frame}: {error}")]
    Sink {
        /// Which frame it was given.
        frame: Frame,
        /// What it said.
        error: io::Error,
    },
    /// The source of a frame that is absent.
    #[error("frame {frame}: fetch: {error}")]
    Source {
        /// The frame.
        frame: Frame,
        /// What it said.
        error: SourceError,
    },
    /// Frames were taken by somebody else: a bug.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The host.
    #[error("start a thread that copies: {0}")]
    Thread(io::Error),
}

/// What a copy was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Copied {
    /// Frames that were copied as they lay there.
    pub(crate) taken: u32,
    /// Frames that were kept because somebody wrote to them.
    pub(crate) kept: u32,
    /// Frames without contents, which no sink was given.
    pub(crate) zero: u32,
    /// Frames that were fetched from their source.
    pub(crate) fetched: u32,
    /// How long writers waited for a full queue, together.
    pub(crate) held_up: Duration,
}

/// The queue, as those who copy hold it.
#[derive(Debug)]
pub(crate) struct KeptFrames {
    queue: Mutex<Queue>,
    /// Something left the queue.
    room: Condvar,
    /// Something came into the queue, or nothing more will.
    news: Condvar,
    /// Frames at most.
    most: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<(Frame, Box<Contents>)>,
    /// Nobody wants more of them.
    closed: bool,
    /// Frames that were taken out.
    out: u32,
    /// Frames that are said to have been kept.
    expected: u32,
    /// Threads that may still find such frames.
    taking: usize,
    held_up: Duration,
}

/// The queue, as whoever writes finds it.
#[derive(Debug)]
pub(crate) struct Keeper(Arc<KeptFrames>);

/// A queue of at most `bytes`: the one end is for [`memory::GuestMemory::freeze`], the other for [`copy`].
pub(crate) fn queue(bytes: usize) -> (Keeper, Arc<KeptFrames>) {
    let kept = Arc::new(KeptFrames {
        queue: Mutex::default(),
        room: Condvar::new(),
        news: Condvar::new(),
        most: (bytes / FRAME_SIZE).max(1),
    });
    (Keeper(Arc::clone(&kept)), kept)
}

impl Keep for Keeper {
    fn keep(&self, frame: Frame, contents: &Contents) {
        let contents = Box::new(*contents);
        let mut queue = self.0.queue();
        if queue.frames.len() >= self.0.most && !queue.closed {
            let since = Instant::now();
            while queue.frames.len() >= self.0.most && !queue.closed {
                queue = self.0.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.held_up += since.elapsed();
        }
        if !queue.closed {
            queue.frames.push_back((frame, contents));
            self.0.news.notify_one();
        }
    }
}

impl KeptFrames {
    /// Nobody waits any more, on either side, and what comes is dropped.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.frames.clear();
        self.room.notify_all();
        self.news.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.queue().closed
    }

    /// The oldest, if there is one.
    fn pop(&self) -> Option<(Frame, Box<Contents>)> {
        self.pop_from(&mut self.queue())
    }

    /// Waits for the next; `None` when all that were expected have come out, or the queue is closed.
    fn pop_last(&self) -> Option<(Frame, Box<Contents>)> {
        let mut queue = self.queue();
        loop {
            if let Some(kept) = self.pop_from(&mut queue) {
                return Some(kept);
            }
            if queue.closed || queue.taking == 0 && queue.out == queue.expected {
                self.news.notify_all();
                return None;
            }
            queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pop_from(&self, queue: &mut Queue) -> Option<(Frame, Box<Contents>)> {
        let kept = queue.frames.pop_front()?;
        queue.out += 1;
        self.room.notify_one();
        Some(kept)
    }

    fn expect(&self, frames: u32) {
        self.queue().expected += frames;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies all of `frozen`, whose keeper is of `kept`, with a thread for each of `sinks`. Each frame that had something
/// in it at the moment of the freeze is given to one of them, once.
///
/// # Errors
/// The first of any thread. The queue is closed then.
pub(crate) fn copy<S>(
    frozen: &Frozen,
    kept: &KeptFrames,
    sinks: Vec<S>,
) -> Result<Copied, LiveError>
where
    S: FnMut(Frame, &Contents) -> io::Result<()> + Send,
{
    kept.queue().taking = sinks.len();
    let work = Work { frozen, kept, next: AtomicU32::new(0) };
    let work = &work;
    let parts: Vec<Result<Copied, LiveError>> = thread::scope(|scope| {
        let start = |sink| {
            let builder = thread::Builder::new().name("copy-memory".into());
            builder.spawn_scoped(scope, move || Copier::new(work, sink).run())
        };
        let mut threads = Vec::new();
        for sink in sinks {
            threads.push(start(sink).inspect_err(|_| kept.close()));
        }
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(|thread| join(thread.map_err(LiveError::Thread)?)).collect()
    });
    let mut sum = Copied { held_up: kept.queue().held_up, ..Copied::default() };
    for part in parts {
        let part = part?;
        sum.taken += part.taken;
        sum.kept += part.kept;
        sum.zero += part.zero;
        sum.fetched += part.fetched;
    }
    Ok(sum)
}

/// What the threads share.
struct Work<'a> {
    frozen: &'a Frozen,
    kept: &'a KeptFrames,
    /// The first frame that no thread has taken on.
    next: AtomicU32,
}

impl Work<'_> {
    fn next_chunk(&self) -> Option<FrameRange> {
        let frames = self.frozen.memory().layout().frames();
        let take = |next: u32| (next < frames).then(|| next.saturating_add(CHUNK).min(frames));
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(FrameRange { first: Frame(first), count: CHUNK.min(frames - first) })
    }
}

/// One thread. Dropped before it is done (an error, a panic in its sink), it closes the queue.
struct Copier<'a, S> {
    work: &'a Work<'a>,
    sink: S,
    copied: Copied,
    is_done: bool,
}

impl<'a, S: FnMut(Frame, &Contents) -> io::Result<()>> Copier<'a, S> {
    fn new(work: &'a Work<'a>, sink: S) -> Self {
        Self { work, sink, copied: Copied::default(), is_done: false }
    }

    fn run(mut self) -> Result<Copied, LiveError> {
        let kept = self.work.kept;
        loop {
            while let Some((frame, contents)) = kept.pop() {
                self.give_kept(frame, &contents)?;
            }
            let Some(chunk) = self.work.next_chunk().filter(|_| !kept.is_closed()) else { break };
            self.take(chunk)?;
        }
        kept.queue().taking -= 1;
        while let Some((frame, contents)) = kept.pop_last() {
            self.give_kept(frame, &contents)?;
        }
        self.is_done = true;
        Ok(self.copied)
    }

    fn take(&mut self, chunk: FrameRange) -> Result<(), LiveError> {
        let frozen = self.work.frozen;
        let mut expected = 0;
        let mut contents = [0; FRAME_SIZE];
        for frame in chunk.frames() {
            match frozen.take(frame, &mut contents)? {
                Taken::Contents => {
                    self.give(frame, &contents)?;
                    self.copied.taken += 1;
                }
                Taken::Kept => expected += 1,
                Taken::Zero => self.copied.zero += 1,
                Taken::Absent(source) => {
                    frozen
                        .fetch(frame, source, &mut contents)
                        .map_err(|error| LiveError::Source { frame, error })?;
                    self.give(frame, &contents)?;
                    self.copied.fetched += 1;
                }
            }
        }
        self.work.kept.expect(expected);
        Ok(())
    }

    fn give_kept(&mut self, frame: Frame, contents: &Contents) -> Result<(), LiveError> {
        self.give(frame, contents)?;
        self.copied.kept += 1;
        Ok(())
    }

    fn give(&mut self, frame: Frame, contents: &Contents) -> Result<(), LiveError> {
        (self.sink)(frame, contents).map_err(|error| LiveError::Sink { frame, error })
    }
}

impl<S> Drop for Copier<'_, S> {
    fn drop(&mut self) {
        if !self.is_done {
            self.work.kept.close();
        }
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
