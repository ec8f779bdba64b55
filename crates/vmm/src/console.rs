//! Where the serial console goes: our standard streams, a file, or nowhere. It outlives a reboot of the
//! guest.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use devices::input::{InputPump, InputSink};
use devices::output::Output;
use devices::terminal::Terminal;
use rustix::stdio;

use crate::config::ConsoleConfig;
use crate::console_writer::ConsoleWriter;
use crate::error::VmError;

/// The host side of the console.
#[derive(Debug)]
pub(crate) struct Console {
    /// Dropped first: what is left of the output comes before the terminal is as it was.
    output: Option<ConsoleWriter>,
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
        let output = Some(ConsoleWriter::start(file.into())?);
        Ok(Self { output, input: None, terminal: None })
    }

    fn stdio() -> Result<Self, VmError> {
        let duplicate = |fd: rustix::fd::BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|source| error("stdio", source))
        };
        let terminal = Terminal::raw(stdio::stdin())
            .map_err(|refused| error("stdio", io::Error::other(refused)))?;
        let (output, input) = (duplicate(stdio::stdout())?, duplicate(stdio::stdin())?);
        let output = Some(ConsoleWriter::start(output)?);
        Ok(Self { output, input: Some(input), terminal })
    }

    /// Whether somebody types into it: then Ctrl-A x leaves.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// An output for one life of the machine.
    pub(crate) fn output(&self) -> Output {
        match &self.output {
            None => Output::new(io::sink()),
            Some(writer) => Output::buffered(writer.buffer()),
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

fn error(path: &str, source: io::Error) -> VmError {
    VmError::Console { path: path.to_owned(), source }
}
