//! The user's terminal: raw while the guest has it, as it was afterwards.
//!
//! In raw mode every key reaches the guest, Ctrl-C too. The way back must not depend on how the
//! process ends: [`Terminal`] restores on drop, so also when a panic unwinds; [`restore`] does it
//! from anywhere, for a path that ends in `process::exit`; [`ExitSignals`] turns the signals that
//! would kill the process into an orderly stop. Nothing can be done about SIGKILL.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use thiserror::Error;

use crate::sync::lock;

mod signals;
#[cfg(test)]
mod tests;

pub use signals::ExitSignals;

/// The terminal cannot be set up.
#[derive(Debug, Error)]
pub enum TerminalError {
    /// The host refused.
    #[error("terminal: {operation}: {source}: run with --console none or a file instead")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Terminals in raw mode, each with its settings from before.
static RAW: Mutex<Vec<Saved>> = Mutex::new(Vec::new());

struct Saved {
    number: u64,
    terminal: OwnedFd,
    before: Termios,
}

/// A terminal in raw mode, for as long as this value lives.
#[derive(Debug)]
pub struct Terminal {
    number: u64,
}

impl Terminal {
    /// Puts the terminal `fd` into raw mode; `None` if `fd` is not a terminal.
    ///
    /// # Errors
    /// The host refuses; the terminal is as it was.
    pub fn raw(fd: impl AsFd) -> Result<Option<Self>, TerminalError> {
        if !isatty(&fd) {
            return Ok(None);
        }
        let terminal = fd.as_fd().try_clone_to_owned().map_err(host("duplicate"))?;
        let before = tcgetattr(&terminal).map_err(host("read settings"))?;
        let mut raw = before.clone();
        raw.make_raw();
        let mut all = lock(&RAW);
        tcsetattr(&terminal, OptionalActions::Now, &raw).map_err(host("set raw mode"))?;
        let number = all.last().map_or(0, |saved| saved.number + 1);
        all.push(Saved { number, terminal, before });
        Ok(Some(Self { number }))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut all = lock(&RAW);
        if let Some(at) = all.iter().position(|saved| saved.number == self.number) {
            all.remove(at).restore();
        }
    }
}

/// Restores every terminal now. Harmless when there is none, and when called twice.
pub fn restore() {
    // The last one made raw is restored first: the first one saved the true settings.
    while let Some(saved) = lock(&RAW).pop() {
        saved.restore();
    }
}

impl Saved {
    fn restore(self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

fn host<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| TerminalError::Host { operation, source: source.into() }
}
