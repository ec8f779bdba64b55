//! A guest that runs, and what its program says.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What the guest program said: an object with `event` and more.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Since the VMM was started.
    pub(crate) at: Duration,
    fields: Value,
}

impl Event {
    /// The kernel's own messages may stand before it on the same line.
    pub(crate) fn parse(at: Duration, line: &str) -> Option<Self> {
        let (_, json) = line.split_once("@fathom ")?;
        let fields: Value = serde_json::from_str(json.trim_end()).ok()?;
        fields.get("event")?.as_str()?;
        Some(Self { at, fields })
    }

    pub(crate) fn is(&self, event: &str) -> bool {
        self.text("event") == event
    }

    /// A field that is a text; empty if there is none such.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// A field that is a number; 0 if there is none such.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.fields.get(name).and_then(Value::as_u64).unwrap_or(0)
    }
}

/// A guest that runs; stopped when dropped.
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    /// Of its own, which it ends if it is asked to end and not if it is killed.
    pub(super) has_processes: bool,
    started: Instant,
    lines: Receiver<(Instant, String)>,
    errors: Receiver<(Instant, String)>,
    console: Vec<String>,
}

/// What [`Running::next`] has to say.
pub(crate) enum Next {
    Event(Event),
    /// Nothing within the time given.
    Quiet,
    /// The console is closed.
    Ended,
}

impl Running {
    /// Start a program that talks as the guest program does, or holds it. What it prints is read
    /// in the background from now on.
    pub(crate) fn start(name: &'static str, command: Command) -> Result<Self> {
        Self::start_with(name, command, Stdio::null())
    }

    /// The same with one that listens: see [`Running::say`].
    pub(crate) fn start_listening(name: &'static str, command: Command) -> Result<Self> {
        Self::start_with(name, command, Stdio::piped())
    }

    fn start_with(name: &'static str, mut command: Command, input: Stdio) -> Result<Self> {
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| {
            format!("start {}: is it built?", command.get_program().to_string_lossy())
        })?;
        let lines = read_lines(child.stdout.take().context("the guest has a console")?);
        let errors = read_lines(child.stderr.take().context("the guest has an error output")?);
        Ok(Self { name, child, has_processes: false, started, lines, errors, console: Vec::new() })
    }

    /// A line on its console.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        let console = self.child.stdin.as_mut().context("it does not listen")?;
        console.write_all(format!("{line}\n").as_bytes()).context("say something to the guest")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Wait for the guest program to say something, `patience` at most.
    pub(crate) fn next(&mut self, patience: Duration) -> Next {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok((when, line)) => {
                    let event = Event::parse(when - self.started, &line);
                    self.console.push(line);
                    if let Some(event) = event {
                        return Next::Event(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Next::Quiet,
                Err(RecvTimeoutError::Disconnected) => return Next::Ended,
            }
        }
    }

    /// Gather events until the guest ends; an error with the last of the console if it does not
    /// end well or within `limit`.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match self.next(limit.saturating_sub(self.elapsed())) {
                Next::Event(event) => events.push(event),
                Next::Ended => break,
                Next::Quiet => bail!(self.complaint(&format!("did not end within {limit:?}"))),
            }
        }
        self.check_end()?;
        Ok(events)
    }

    /// After [`Next::Ended`]: an error unless the program's exit status says all was well.
    pub(crate) fn check_end(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!(self.complaint(&format!("ended with {status}")));
        }
        Ok(())
    }

    pub(crate) fn complaint(&self, what: &str) -> String {
        let errors: Vec<String> = self.errors.try_iter().map(|(_, line)| line).collect();
        let last = &self.console[self.console.len().saturating_sub(15)..];
        let shown = [last, errors.as_slice()].concat().join("\n  ");
        format!("{}: the guest {what}; it said last:\n  {shown}", self.name)
    }
}

/// One that was asked to end may take so long.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Running {
    fn ask_to_end(&mut self) {
        let asked = Instant::now();
        while let (Ok(None), true) = (self.child.try_wait(), asked.elapsed() < LAST_WORDS) {
            // Still there and not waited for, so the number is no other process's.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_processes {
            self.ask_to_end();
        }
        // Ended already, or to be ended: either is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Read on a thread, each line with the time of its arrival; the channel closes at the end.
fn read_lines(source: impl Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send((Instant::now(), text)).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_behind_a_message_of_the_kernel() {
        let line = "[    1.5] clocksource: @fathom {\"event\":\"phase\",\"mib\":30}\r\n";
        let event = Event::parse(Duration::ZERO, line).unwrap();
        assert!(event.is("phase"));
        assert_eq!((event.number("mib"), event.number("none"), event.text("name")), (30, 0, ""));
    }

    #[test]
    fn what_is_torn_is_no_event() {
        assert!(Event::parse(Duration::ZERO, "@fathom {\"event\":\"pha").is_none());
        assert!(Event::parse(Duration::ZERO, "@fathom {\"name\":1}").is_none());
    }
}
