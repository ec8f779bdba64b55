//! Diagnostics on standard error, as `FATHOM_LOG` asks: `debug`, `vmm=trace,warn` and so on.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::arguments::Command;

/// Without the variable, warnings and errors are shown; of the daemon, whose log is all that it shows, what it does, too.
/// A part of the variable that makes no sense is left out.
pub(crate) fn start(command: &Command) {
    let level = match command {
        Command::Serve(_) => LevelFilter::INFO,
        _ => LevelFilter::WARN,
    };
    let filter = EnvFilter::builder()
        .with_env_var("FATHOM_LOG")
        .with_default_directive(level.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    if io::stderr().is_terminal() {
        // In a raw terminal a line feed does not return to the margin.
        log.with_writer(|| Lines(io::stderr())).init();
    } else {
        log.with_writer(io::stderr).with_ansi(false).init();
    }
}

/// Ends lines with a carriage return too.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    self.0.write_all(text)?;
                    self.0.write_all(b"\r\n")?;
                }
                None => self.0.write_all(line)?,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_return_to_the_margin() {
        let mut lines = Lines(Vec::new());
        lines.write_all(b"one\ntwo").expect("write");
        lines.write_all(b"\n").expect("write");
        assert_eq!(lines.0, b"one\r\ntwo\r\n");
    }
}
