//! Output between a console and a reader who may be slow, or gone.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Notifier;
use crate::sync::lock;

/// Bytes held before a console is asked to wait.
pub const SHUT_AT: usize = 256 << 10;
/// Bytes held at most: a console that was not asked to wait may still send all of one request.
pub const CAPACITY: usize = SHUT_AT + (1 << 20);
/// A reader who takes nothing for so long does not hold up the guest any more; output is lost instead.
pub const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Most bytes handed to the writer at a time. A pipe that is ready takes so many (PIPE_BUF).
const CHUNK: usize = 4096;

/// A bounded buffer. Consoles push, and a thread of the machine's owner takes; clones are the same buffer.
///
/// While the reader is only slow, a console that fills the buffer finds it [shut](Self::is_shut) and waits,
/// as a serial line with flow control would. When the reader takes nothing at all, the buffer is open but
/// full: what does not fit is lost.
#[derive(Clone, Debug)]
pub struct OutputBuffer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stalled_after: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `len <= CAPACITY`
    bytes: VecDeque<u8>,
    /// When the reader last took something, or the buffer last was empty.
    moved: Instant,
    /// To be signalled when the buffer is no longer shut; each once.
    waiting: Vec<Notifier>,
    /// Nothing will be pushed any more.
    closed: bool,
    /// Nothing will be taken any more.
    dead: bool,
}

impl Default for OutputBuffer {
    fn default() -> Self {
        Self::with_patience(STALLED_AFTER)
    }
}

impl OutputBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    fn with_patience(stalled_after: Duration) -> Self {
        let bytes = VecDeque::new();
        let moved = Instant::now();
        let state = State { bytes, moved, waiting: Vec::new(), closed: false, dead: false };
        Self(Arc::new(Shared { stalled_after, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Takes from the front of `bytes`; how many. The rest is lost. Never waits.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        if state.dead {
            return 0;
        }
        if state.bytes.is_empty() {
            state.moved = Instant::now();
        }
        let length = bytes.len().min(CAPACITY - state.bytes.len());
        state.bytes.extend(&bytes[..length]);
        self.0.changed.notify_all();
        length
    }

    /// Whether a console should wait before it sends more.
    pub fn is_shut(&self) -> bool {
        self.lock().is_shut(self.0.stalled_after)
    }

    /// Waits while the buffer is shut: no longer than it takes to find that the reader has stalled.
    pub fn wait(&self) {
        let mut state = self.lock();
        while state.is_shut(self.0.stalled_after) {
            state = self.wait_a_while(state);
        }
    }

    /// Signals `notifier` once when the buffer is not shut; at once if it is not.
    pub fn signal_when_open(&self, notifier: &Notifier) {
        let mut state = self.lock();
        if !state.is_shut(self.0.stalled_after) {
            notifier.signal();
        } else if !state.waiting.iter().any(|other| other.as_raw_fd() == notifier.as_raw_fd()) {
            state.waiting.push(notifier.clone());
        }
    }

    /// For the writer: waits for output, and copies the oldest. `None`: there will be no more.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while state.bytes.is_empty() && !state.closed {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let chunk: Vec<u8> = state.bytes.iter().copied().take(CHUNK).collect();
        (!chunk.is_empty()).then_some(chunk)
    }

    /// For the writer: the reader has taken the `length` oldest bytes.
    pub fn taken(&self, length: usize) {
        let mut state = self.lock();
        let length = length.min(state.bytes.len());
        state.bytes.drain(..length);
        state.moved = Instant::now();
        self.wake(&mut state);
    }

    /// For the writer: the reader has taken nothing for [`STALLED_AFTER`]. False: give up, the console is
    /// closed.
    pub fn stalled(&self) -> bool {
        let mut state = self.lock();
        self.wake(&mut state);
        !state.closed
    }

    /// For the writer, as its last act: nothing will be taken any more.
    pub fn dead(&self) {
        let mut state = self.lock();
        state.dead = true;
        state.bytes = VecDeque::new();
        self.wake(&mut state);
    }

    /// No console pushes any more. Waits until the writer has finished, or the reader has stalled (false).
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        state.closed = true;
        // However long ago there was something to take, the writer has to learn of the end.
        if state.bytes.is_empty() {
            state.moved = Instant::now();
        }
        self.0.changed.notify_all();
        // The writer finds a stalled reader in two waits at most, unless it hangs in its write.
        while !state.dead && state.moved.elapsed() < 3 * self.0.stalled_after {
            state = self.wait_a_while(state);
        }
        state.dead
    }

    fn wake(&self, state: &mut State) {
        if !state.is_shut(self.0.stalled_after) {
            state.waiting.drain(..).for_each(|notifier| notifier.signal());
        }
        self.0.changed.notify_all();
    }

    fn wait_a_while<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.0.changed.wait_timeout(state, self.0.stalled_after);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    fn is_shut(&self, stalled_after: Duration) -> bool {
        !self.dead && self.bytes.len() >= SHUT_AT && self.moved.elapsed() < stalled_after
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn full(patience: Duration) -> OutputBuffer {
        let buffer = OutputBuffer::with_patience(patience);
        assert_eq!(buffer.push(&[b'a'; SHUT_AT]), SHUT_AT);
        buffer
    }

    #[test]
    fn what_is_pushed_is_taken_in_order() {
        let buffer = OutputBuffer::new();
        assert_eq!((buffer.push(b"one "), buffer.push(b"two")), (4, 3));
        assert_eq!(buffer.next().as_deref(), Some(b"one two".as_slice()));
        buffer.taken(4);
        assert_eq!(buffer.next().as_deref(), Some(b"two".as_slice()));
        buffer.taken(3);
        let writer = buffer.clone();
        let writer = thread::spawn(move || {
            assert_eq!(writer.next(), None);
            writer.dead();
        });
        assert!(buffer.close());
        writer.join().unwrap();
    }

    #[test]
    fn who_took_all_long_ago_is_waited_for() {
        let buffer = OutputBuffer::with_patience(Duration::from_secs(10));
        buffer.lock().moved -= Duration::from_secs(40);
        let writer = buffer.clone();
        let writer = thread::spawn(move || {
            while !writer.lock().closed {
                thread::yield_now();
            }
            assert_eq!(writer.next(), None);
            writer.dead();
        });
        assert!(buffer.close());
        writer.join().unwrap();
    }

    #[test]
    fn a_slow_reader_shuts_the_buffer_until_it_reads() {
        let buffer = full(LONG);
        let open = Notifier::new().unwrap();
        (0..3).for_each(|_| buffer.signal_when_open(&open));
        assert_eq!(buffer.lock().waiting.len(), 1);
        assert!(buffer.is_shut() && !open.take());
        let console = buffer.clone();
        let console = thread::spawn(move || console.wait());
        buffer.taken(1);
        console.join().unwrap();
        assert!(!buffer.is_shut() && open.take());
        buffer.signal_when_open(&open);
        assert!(open.take());
    }

    #[test]
    fn a_console_that_was_let_in_can_send_a_whole_request() {
        let buffer = full(LONG);
        assert_eq!(buffer.push(&[b'b'; 1 << 20]), 1 << 20);
        assert_eq!(buffer.push(b"c"), 0);
    }

    #[test]
    fn a_stalled_reader_holds_up_nobody() {
        let buffer = full(Duration::ZERO);
        assert!(!buffer.is_shut());
        buffer.wait();
        assert!(buffer.stalled());
        assert!(!buffer.close(), "output is left");
        assert!(!buffer.stalled());
    }

    #[test]
    fn a_reader_who_went_away_leaves_an_open_buffer_that_takes_nothing() {
        let buffer = full(LONG);
        let open = Notifier::new().unwrap();
        buffer.signal_when_open(&open);
        buffer.dead();
        assert!(open.take() && !buffer.is_shut());
        assert_eq!(buffer.push(b"x"), 0);
        assert!(buffer.close());
    }

    #[test]
    fn a_burst_after_a_long_silence_is_no_stall() {
        let buffer = OutputBuffer::with_patience(LONG);
        buffer.lock().moved -= LONG;
        buffer.push(&[b'a'; SHUT_AT]);
        assert!(buffer.is_shut());
    }
}
