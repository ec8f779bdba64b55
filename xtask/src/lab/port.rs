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

/// As it comes: a line may take its time.
pub(super) fn copy(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<Tally> {
    thread::spawn(move || {
        let mut tally = Tally::default();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            // Nobody may listen any more; the machine goes on.
            let _ = to.write_all(&bytes[..count]).and_then(|()| to.flush());
            tally.hear(&bytes[..count]);
        }
        tally
    })
}
