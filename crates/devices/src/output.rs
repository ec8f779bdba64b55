//! Console output: to a sink, with a look at every line on the way.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::Duration;

/// Longest line handed to the hook, in bytes; what follows on the same line is not looked at.
pub const LINE_LIMIT: usize = 4096;

/// How long to wait before writing again to a sink that is full for now.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// Called with each complete line, without its end. On the thread that wrote the line's end, with
/// the device locked: it must be quick and must not call into a device.
pub type LineHook = Box<dyn FnMut(&[u8]) + Send>;

/// Where a console's output goes.
///
/// Each write is flushed, so that a prompt without a line end shows. A sink that is full blocks
/// the writer, as a serial line with flow control would; a sink that fails loses the bytes, which
/// are counted, and never fails the guest.
pub struct Output {
    sink: Box<dyn Write + Send>,
    hook: Option<LineHook>,
    /// The line so far; len <= LINE_LIMIT. Kept only while there is a hook.
    line: Vec<u8>,
    lost_bytes: u64,
}

impl Output {
    /// Output into `sink`.
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        Self { sink: Box::new(sink), hook: None, line: Vec::new(), lost_bytes: 0 }
    }

    /// The same output, each line also shown to `hook`.
    #[must_use]
    pub fn with_line_hook(mut self, hook: LineHook) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Sends `bytes` on.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.send_all(bytes) {
            if self.lost_bytes == 0 {
                tracing::warn!("console output: {error}: output is lost from here on");
            }
            self.lost_bytes += bytes.len() as u64;
        }
        if self.hook.is_some() {
            self.scan(bytes);
        }
    }

    /// Bytes that the sink did not take.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) => wait_if_busy(error)?,
            }
        }
        loop {
            match self.sink.flush() {
                Ok(()) => return Ok(()),
                Err(error) => wait_if_busy(error)?,
            }
        }
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

/// Another process may have made a shared terminal or pipe non-blocking: full is not failed.
fn wait_if_busy(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock => {
            thread::sleep(RETRY_AFTER);
            Ok(())
        }
        _ => Err(error),
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("lost_bytes", &self.lost_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
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

    /// Refuses every second write, as a full non-blocking pipe does.
    struct Busy(Shared, bool);

    impl Write for Busy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(ErrorKind::WouldBlock.into()) } else { self.0.write(&bytes[..1]) }
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
    fn a_full_sink_loses_nothing() {
        let shared = Shared::default();
        let mut output = Output::new(Busy(shared.clone(), false));
        output.send(b"slow");
        assert_eq!(*shared.0.lock().unwrap(), b"slow");
        assert_eq!(output.lost_bytes(), 0);
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
