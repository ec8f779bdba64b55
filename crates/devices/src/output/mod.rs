//! Console output: into a bounded buffer, with a look at every line on the way.

use std::fmt;
use std::io::Write;

use crate::Notifier;

mod buffer;

pub use buffer::{CAPACITY, OutputBuffer, SHUT_AT, STALLED_AFTER};

/// Longest line handed to the hook, in bytes; what follows on the same line is not looked at.
pub const LINE_LIMIT: usize = 4096;

/// Called with each complete line, without its end. On the thread that wrote the line's end, with
/// the device locked: it must be quick and must not call into a device.
pub type LineHook = Box<dyn FnMut(&[u8]) + Send>;

/// Where a console's output goes.
///
/// Each write is flushed, so that a prompt without a line end shows. What the sink does not take is
/// lost and counted, and never fails the guest.
pub struct Output {
    sink: Sink,
    hook: Option<LineHook>,
    /// The line so far; len <= LINE_LIMIT. Kept only while there is a hook.
    line: Vec<u8>,
    lost_bytes: u64,
}

enum Sink {
    Direct(Box<dyn Write + Send>),
    Buffer(OutputBuffer),
}

impl Output {
    /// Output into `sink`, which must not block for long: the device waits for it, locked.
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        Self::into_sink(Sink::Direct(Box::new(sink)))
    }

    /// Output into `buffer`, which somebody else empties.
    pub fn buffered(buffer: OutputBuffer) -> Self {
        Self::into_sink(Sink::Buffer(buffer))
    }

    fn into_sink(sink: Sink) -> Self {
        Self { sink, hook: None, line: Vec::new(), lost_bytes: 0 }
    }

    /// The same output, each line also shown to `hook`.
    #[must_use]
    pub fn with_line_hook(mut self, hook: LineHook) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Says when to wait before sending more.
    pub fn gate(&self) -> Gate {
        Gate(match &self.sink {
            Sink::Direct(_) => None,
            Sink::Buffer(buffer) => Some(buffer.clone()),
        })
    }

    /// Sends `bytes` on.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.sink.take(bytes) {
            if self.lost_bytes == 0 {
                tracing::warn!("console output: {}: output is lost", error.why);
            }
            self.lost_bytes += error.lost as u64;
        }
        if self.hook.is_some() {
            self.scan(bytes);
        }
    }

    /// Bytes that the sink did not take.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn scan(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ if self.line.len() < LINE_LIMIT => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        if let Some(hook) = &mut self.hook {
            hook(&self.line);
        }
        self.line.clear();
    }
}

struct Lost {
    lost: usize,
    why: String,
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        match self {
            Self::Direct(sink) => sink
                .write_all(bytes)
                .and_then(|()| sink.flush())
                .map_err(|error| Lost { lost: bytes.len(), why: error.to_string() }),
            Self::Buffer(buffer) => match bytes.len() - buffer.push(bytes) {
                0 => Ok(()),
                lost => Err(Lost { lost, why: "nobody reads it".to_owned() }),
            },
        }
    }
}

/// The entrance of an output. Waiting there needs no lock of the device.
#[derive(Clone, Debug)]
pub struct Gate(Option<OutputBuffer>);

impl Gate {
    /// Whether the reader is behind: what is sent now may be lost.
    pub fn is_shut(&self) -> bool {
        self.0.as_ref().is_some_and(OutputBuffer::is_shut)
    }

    /// Waits while it is shut, [`STALLED_AFTER`] at most if the reader takes nothing.
    pub fn wait(&self) {
        if let Some(buffer) = &self.0 {
            buffer.wait();
        }
    }

    /// Signals `notifier` once when it is not shut; at once if it is not.
    pub fn signal_when_open(&self, notifier: &Notifier) {
        match &self.0 {
            Some(buffer) => buffer.signal_when_open(notifier),
            None => notifier.signal(),
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("lost_bytes", &self.lost_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Arc<Mutex<Vec<String>>>, LineHook) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let hook = move |line: &[u8]| {
            sink.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
        };
        (seen, Box::new(hook))
    }

    #[test]
    fn lines_are_put_together_from_single_bytes() {
        let (seen, hook) = lines();
        let shared = Shared::default();
        let mut output = Output::new(shared.clone()).with_line_hook(hook);
        for byte in b"one\r\ntwo\r\nrest" {
            output.send(&[*byte]);
        }
        assert_eq!(*seen.lock().unwrap(), ["one", "two"]);
        assert_eq!(*shared.0.lock().unwrap(), b"one\r\ntwo\r\nrest");
    }

    #[test]
    fn an_endless_line_takes_bounded_memory() {
        let (seen, hook) = lines();
        let mut output = Output::new(io::sink()).with_line_hook(hook);
        output.send(&vec![b'x'; 3 * LINE_LIMIT]);
        output.send(b"\nnext\n");
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0].len(), LINE_LIMIT);
        assert_eq!(seen[1], "next");
    }

    #[test]
    fn a_full_buffer_is_counted_and_lines_are_still_seen() {
        let (seen, hook) = lines();
        let buffer = OutputBuffer::new();
        let mut output = Output::buffered(buffer.clone()).with_line_hook(hook);
        output.send(&[b'a'; CAPACITY]);
        assert_eq!(output.lost_bytes(), 0);
        output.send(b"\nlost\n");
        assert_eq!(output.lost_bytes(), 6);
        assert_eq!(seen.lock().unwrap()[1], "lost");
        assert_eq!(buffer.next().map(|bytes| bytes[0]), Some(b'a'));
    }

    #[test]
    fn a_broken_sink_is_counted_and_lines_are_still_seen() {
        let (seen, hook) = lines();
        let mut output = Output::new(Broken).with_line_hook(hook);
        output.send(b"gone\n");
        assert_eq!(output.lost_bytes(), 5);
        assert_eq!(*seen.lock().unwrap(), ["gone"]);
    }
}
