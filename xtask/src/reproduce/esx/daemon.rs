//! `fathom serve` beside guests that run already.

use crate::machine::fathom_program;
use anyhow::{Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const END_LONGEST: Duration = Duration::from_secs(20);
const ANSWER_LONGEST: Duration = Duration::from_secs(5);

/// Killed when dropped.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    /// For the VMs whose sockets are in this folder, with these options.
    pub(super) fn start(sockets: &Path, options: &[&str]) -> Result<Self> {
        let log = sockets.join("serve.log");
        let mut command = Command::new(fathom_program());
        command.env("XDG_RUNTIME_DIR", sockets).arg("serve").args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(File::create(&log)?).spawn()?;
        Ok(Self { child, log, socket: sockets.join("fathom/.serve.sock") })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last of its log.
    pub(super) fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// A figure of its `/metrics`, without labels; nothing as long as it does not say.
    pub(super) fn figure(&self, name: &str) -> Option<f64> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(ANSWER_LONGEST)).ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        value(&text, name)
    }

    /// As systemd does; its VMs go on.
    pub(super) fn end(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let begun = Instant::now();
        while begun.elapsed() < END_LONGEST {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the daemon ended with {status}\n{}", self.said());
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("the daemon does not end")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, or something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of a line `name value`.
fn value(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(known, _)| *known == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_whole_name() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE a_b gauge\na_bc 3\na_b 4096\n";
        assert_eq!(value(text, "a_b"), Some(4096.0));
        assert_eq!(value(text, "a"), None);
    }
}
