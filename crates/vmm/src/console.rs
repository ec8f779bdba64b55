//! Where the serial console goes: our standard streams, a file, or nowhere. It outlives a reboot of the
//! guest.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use devices::input::{InputPump, InputSink};
use devices::output::Output;
use devices::terminal::Terminal;
use rustix::stdio;

use crate::config::ConsoleConfig;
use crate::error::VmError;

/// The host side of the console.
#[derive(Debug)]
pub(crate) struct Console {
    output: Option<OwnedFd>,
    input: Option<OwnedFd>,
    /// Standard input in raw mode, where it is a terminal; restored on drop.
    terminal: Option<Terminal>,
}

impl Console {
    pub(crate) fn open(config: &ConsoleConfig) -> Result<Self, VmError> {
        match config {
            ConsoleConfig::None => Ok(Self { output: None, input: None, terminal: None }),
            ConsoleConfig::File(path) => Self::file(path),
            ConsoleConfig::Stdio => Self::stdio(),
        }
    }

    fn file(path: &Path) -> Result<Self, VmError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|source| error(&path.display().to_string(), source))?;
        Ok(Self { output: Some(file.into()), input: None, terminal: None })
    }

    fn stdio() -> Result<Self, VmError> {
        let duplicate = |fd: rustix::fd::BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|source| error("stdio", source))
        };
        let terminal = Terminal::raw(stdio::stdin())
            .map_err(|refused| error("stdio", io::Error::other(refused)))?;
        let (output, input) = (duplicate(stdio::stdout())?, duplicate(stdio::stdin())?);
        Ok(Self { output: Some(output), input: Some(input), terminal })
    }

    /// Whether somebody types into it: then Ctrl-A x leaves.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// An output for one life of the machine.
    pub(crate) fn output(&self) -> Result<Output, VmError> {
        match &self.output {
            None => Ok(Output::new(io::sink())),
            Some(fd) => {
                let fd = fd.try_clone().map_err(|source| error("output", source))?;
                Ok(Output::new(Sink(fd)))
            }
        }
    }

    /// Input for one life of the machine, into `sink`; `leave` is called at the escape.
    pub(crate) fn input(
        &self,
        sink: Arc<dyn InputSink>,
        leave: impl Fn() + Send + Sync + 'static,
    ) -> Result<Option<InputPump>, VmError> {
        let Some(fd) = &self.input else { return Ok(None) };
        let fd = fd.try_clone().map_err(|source| error("input", source))?;
        let pump = InputPump::new(fd, sink);
        Ok(Some(if self.is_terminal() { pump.with_escape(leave) } else { pump }))
    }
}

/// Unbuffered: a prompt shows at once.
struct Sink(OwnedFd);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn error(path: &str, source: io::Error) -> VmError {
    VmError::Console { path: path.to_owned(), source }
}
