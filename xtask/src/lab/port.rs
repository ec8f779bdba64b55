//! Where what the machine says arrives: UNIX sockets that QEMU connects to.

use super::tally::Tally;
use anyhow::{Context, Result, bail};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(50);
/// More of a line is not waited for.
const LINE_MAX: usize = 1 << 20;

/// A socket that QEMU connects to.
pub(super) struct Socket {
    name: String,
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    pub(super) fn new(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { name: name.to_owned(), path, listener })
    }

    pub(super) fn chardev(&self) -> String {
        format!("socket,id={},path={}", self.name, comma(&self.path))
    }

    /// Wait for QEMU, which connects before it runs anything.
    pub(super) fn accept(self, qemu: &mut Child) -> Result<UnixStream> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = qemu.try_wait()? {
                bail!("QEMU does not start: {status}");
            }
            thread::sleep(POLL);
        }
    }
}

/// In QEMU's options a comma ends a value unless there are two.
pub(super) fn comma(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Each line with its end; the channel closes with the stream.
pub(super) fn lines(stream: UnixStream) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// In whole lines, since several machines may speak at once.
pub(super) fn copy(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<Tally> {
    thread::spawn(move || {
        let mut tally = Tally::default();
        let mut kept = Vec::new();
        let mut bytes = [0; 1 << 16];
        // Nobody may listen any more; the machine goes on.
        let mut write = |bytes: &[u8]| drop(to.write_all(bytes).and_then(|()| to.flush()));
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            tally.hear(&bytes[..count]);
            kept.extend_from_slice(&bytes[..count]);
            let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
            if let Some(end) = kept.iter().rposition(ends) {
                write(&kept[..=end]);
                kept.drain(..=end);
            } else if kept.len() > LINE_MAX {
                write(&std::mem::take(&mut kept));
            }
        }
        write(&kept);
        tally
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, and how often.
    #[derive(Clone, Default)]
    struct Writes(std::sync::Arc<std::sync::Mutex<Vec<Vec<u8>>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_stay_whole_and_nothing_is_lost() {
        let (from, mut into) = UnixStream::pair().unwrap();
        let writes = Writes::default();
        let copier = copy(from, writes.clone());
        for piece in ["one", " line\nand", " another\nand the rest"] {
            into.write_all(piece.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        into.write_all(&[b'x'; 2 * LINE_MAX]).unwrap();
        drop(into);
        copier.join().unwrap();
        let written = writes.0.lock().unwrap().clone();
        assert!(written[0].starts_with(b"one line\n"), "{:?}", written[0]);
        let whole = format!("one line\nand another\nand the rest{}", "x".repeat(2 * LINE_MAX));
        assert!(written.concat() == whole.as_bytes(), "something is lost or twice");
    }
}
