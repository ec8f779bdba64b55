//! The agent in a guest, from outside: `fathom agent`, and what other commands have it do.
//!
//! The guest is not trusted: whatever answers may be silent, endless or nonsense. Lines are bounded, every wait has an
//! end, and what it says is data.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use agent_wire::{
    Answer, Identity, LINE_MAX, LineError, Lines, OUTPUT_MAX, Outcome, PORT, Part, Prepare,
    Question, Ran, Request, Run, VERSION, from_line, to_line,
};
use api::{Client, SocketDirectory};

pub(crate) use agent_wire::Facts as AgentFacts;

use crate::arguments::{AgentArguments, AgentVerb};
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;

/// An agent that is there answers in milliseconds; the host may be crowded.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
/// Caches are written to slow disks first.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);
/// A program's answer may take so much longer than the program.
const GRACE: Duration = Duration::from_secs(10);
/// A guest that goes on from a snapshot loses connections once, when it learns its new address: that is no answer yet.
const REFUSALS: u32 = 5;
const RETRY: Duration = Duration::from_millis(20);
/// What it is asked before it knows that address is lost, and nobody says so: it is asked again then, the next time with twice
/// the patience.
const PATIENCE: Duration = Duration::from_millis(100);
/// `CONNECT` is answered by `OK PORT`.
const GREETING_MAX: usize = 32;
/// Of what is shown of a guest's words.
const WORDS_MAX: usize = 300;
/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Why the agent has not done what it was asked.
#[derive(Debug)]
pub(crate) enum AgentError {
    /// Nobody listens in the guest.
    Absent,
    /// It did not answer in time.
    Silent(Duration),
    /// The connection ended before the answer.
    Gone,
    /// What it says is none of our lines.
    Nonsense(String),
    /// It says no.
    Refused(String),
    /// The VM's socket fails.
    Socket(PathBuf, io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "no agent listens in the guest: start it there"),
            Self::Silent(time) => {
                write!(f, "the agent has not answered within {:.1} s", time.as_secs_f64())
            }
            Self::Gone => write!(f, "the agent closed the connection"),
            Self::Nonsense(what) => write!(f, "the agent's answer is refused: {}", words(what)),
            Self::Refused(what) => write!(f, "the agent refuses: {}", words(what)),
            Self::Socket(path, error) => write!(f, "vsock socket {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for AgentError {}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::host(error)
    }
}

/// What a guest says, in one line that cannot move a terminal's cursor.
pub(crate) fn words(said: &str) -> String {
    let plain = said.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = plain.take(WORDS_MAX).collect();
    if said.chars().count() > WORDS_MAX {
        line.push('…');
    }
    line
}

/// A connection to the agent in a guest.
#[derive(Debug)]
pub(crate) struct Agent {
    lines: Lines<UnixStream>,
    path: PathBuf,
    questions: u64,
}

impl Agent {
    /// Connects to it by the VM's socket for vsock. Nobody listens yet in a guest that goes on from a snapshot, or does not
    /// any more: it is tried some times.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Self, AgentError> {
        let whole = Deadline::after(timeout);
        let (mut refusals, mut patience) = (0, PATIENCE);
        loop {
            let left = whole.left().map_err(|_| whole.silent())?;
            match Self::try_connect(path, &Deadline::after(left.min(patience))) {
                Err(AgentError::Absent) if refusals < REFUSALS => {
                    refusals += 1;
                    thread::sleep(RETRY * refusals);
                }
                Err(AgentError::Silent(_)) if left > patience => patience *= 2,
                Err(AgentError::Silent(_)) => return Err(whole.silent()),
                connected => return connected,
            }
        }
    }

    fn try_connect(path: &Path, until: &Deadline) -> Result<Self, AgentError> {
        let failed = |error| AgentError::Socket(path.to_owned(), error);
        let mut stream = UnixStream::connect(path).map_err(failed)?;
        stream
            .set_write_timeout(Some(until.left().map_err(|_| until.silent())?))
            .map_err(failed)?;
        match writeln!(stream, "CONNECT {PORT}") {
            Ok(()) => {}
            Err(error) if is_end(&error) => return Err(AgentError::Absent),
            Err(error) => return Err(until.explain(path, error)),
        }
        let mut lines = Lines::new(stream);
        let greeting = match lines.next(GREETING_MAX, |stream| until.limit(stream)) {
            Ok(Some(line)) => line,
            // Whoever is not taken in the guest sees the end.
            Ok(None) => return Err(AgentError::Absent),
            Err(LineError::Io(error)) if is_end(&error) => return Err(AgentError::Absent),
            Err(LineError::Io(error)) => return Err(until.explain(path, error)),
            Err(error) => return Err(AgentError::Nonsense(error.to_string())),
        };
        if !greeting.starts_with(b"OK ") {
            let what = format!("greeted by {}", String::from_utf8_lossy(&greeting));
            return Err(AgentError::Nonsense(what));
        }
        Ok(Self { lines, path: path.to_owned(), questions: 0 })
    }

    /// What the guest is.
    pub(crate) fn facts(&mut self, timeout: Duration) -> Result<AgentFacts, AgentError> {
        match self.ask(Request::Facts, timeout)? {
            Outcome::Facts(facts) => Ok(facts),
            _ => Err(other()),
        }
    }

    /// Has it become small and nobody.
    pub(crate) fn prepare(&mut self, how: Prepare) -> Result<Vec<Part>, AgentError> {
        self.parts(Request::Prepare(how), PREPARE_TIMEOUT)
    }

    /// Has it become somebody.
    pub(crate) fn identity(&mut self, identity: Identity) -> Result<Vec<Part>, AgentError> {
        self.parts(Request::Identity(identity), TIMEOUT)
    }

    /// Runs a program there; it is killed after `timeout`.
    pub(crate) fn run(&mut self, command: &[String], timeout: Duration) -> Result<Ran, AgentError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let run = Run { command: command.to_vec(), timeout_ms, output_max: OUTPUT_MAX };
        match self.ask(Request::Run(run), timeout + GRACE)? {
            Outcome::Ran(ran) => Ok(ran),
            _ => Err(other()),
        }
    }

    fn parts(&mut self, request: Request, timeout: Duration) -> Result<Vec<Part>, AgentError> {
        match self.ask(request, timeout)? {
            Outcome::Parts(parts) => Ok(parts),
            _ => Err(other()),
        }
    }

    fn ask(&mut self, request: Request, timeout: Duration) -> Result<Outcome, AgentError> {
        self.questions += 1;
        let id = self.questions;
        let until = Deadline::after(timeout);
        let nonsense = |error: LineError| AgentError::Nonsense(error.to_string());
        let line = to_line(&Question { version: VERSION, id, request }).map_err(nonsense)?;
        self.send(&line, &until)?;
        let answer = match self.lines.next(LINE_MAX, |stream| until.limit(stream)) {
            Ok(Some(line)) => from_line::<Answer>(&line).map_err(nonsense)?,
            Ok(None) | Err(LineError::Cut) => return Err(AgentError::Gone),
            Err(LineError::Io(error)) => return Err(until.explain(&self.path, error)),
            Err(error) => return Err(nonsense(error)),
        };
        match answer.outcome {
            Outcome::Refused(what) => Err(AgentError::Refused(what)),
            _ if (answer.version, answer.id) != (VERSION, id) => Err(other()),
            outcome => Ok(outcome),
        }
    }

    /// A guest that reads nothing takes no more than its buffers.
    fn send(&mut self, mut line: &[u8], until: &Deadline) -> Result<(), AgentError> {
        let stream = self.lines.stream();
        while !line.is_empty() {
            let sent = until
                .left()
                .and_then(|left| stream.set_write_timeout(Some(left)))
                .and_then(|()| stream.write(line));
            match sent {
                Ok(0) => return Err(AgentError::Gone),
                Ok(count) => line = &line[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(until.explain(&self.path, error)),
            }
        }
        Ok(())
    }
}

fn other() -> AgentError {
    AgentError::Nonsense("it answers another question".to_owned())
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// When somebody has waited for long enough.
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self { at: Instant::now() + timeout, timeout }
    }

    /// More than nothing.
    fn left(&self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn limit(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(self.left()?))
    }

    fn silent(&self) -> AgentError {
        AgentError::Silent(self.timeout)
    }

    fn explain(&self, path: &Path, error: io::Error) -> AgentError {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => self.silent(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => AgentError::Gone,
            _ => AgentError::Socket(path.to_owned(), error),
        }
    }
}

/// Does it with a connection; again where the guest lost that one before it answered, as it does once after it went on
/// from a snapshot. What is asked must do no harm twice.
pub(crate) fn with_agent<T>(
    path: &Path,
    mut ask: impl FnMut(&mut Agent) -> Result<T, AgentError>,
) -> Result<T, AgentError> {
    let mut losses = 0;
    loop {
        match Agent::connect(path, TIMEOUT).and_then(|mut agent| ask(&mut agent)) {
            Err(AgentError::Gone) if losses < REFUSALS => {
                losses += 1;
                thread::sleep(RETRY);
            }
            done => return done,
        }
    }
}

/// Has the agent in the guest of a running VM make it small and nobody, before the guest is saved to be activated; one
/// that `goes_on` stays who it is. `None` where there is no agent.
pub(crate) fn before_dock(client: &Client, goes_on: bool) -> Result<Option<AgentFacts>, Failure> {
    let Some(path) = client.status()?.vsock else { return Ok(None) };
    let mut agent = match Agent::connect(&path, TIMEOUT) {
        Ok(agent) => agent,
        Err(AgentError::Absent) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let parts = if goes_on { Vec::new() } else { agent.prepare(Prepare { generalise: true })? };
    for part in parts.iter().filter(|part| !part.ok) {
        tracing::warn!("agent: {}: {}", words(&part.part), words(&part.said));
    }
    Ok(Some(agent.facts(TIMEOUT)?))
}

/// `fathom agent`.
pub(crate) fn agent(arguments: &AgentArguments) -> Result<ExitCode, Failure> {
    let status = SocketDirectory::open()?.client(&arguments.name).status()?;
    let Some(path) = status.vsock else {
        let name = &arguments.name;
        return Err(Failure::Usage(format!(
            "VM `{name}` has no vsock, so no agent: run it with --vsock cid=N,socket=PATH"
        )));
    };
    let mut agent = Agent::connect(&path, TIMEOUT)?;
    match &arguments.verb {
        AgentVerb::Facts { json } => {
            let facts = agent.facts(TIMEOUT)?;
            let line = if *json { json_line(&facts)? } else { table(&facts) };
            print(&line);
            Ok(ExitCode::from(SUCCESS))
        }
        AgentVerb::Run { timeout, json, command } => {
            let ran = agent.run(command, Duration::from_secs_f64(*timeout))?;
            if *json {
                print(&json_line(&ran)?);
            } else {
                print(&ran.output);
                eprint!("{}", ran.errors);
            }
            Ok(ExitCode::from(exit_status(&ran)))
        }
    }
}

fn json_line(value: &impl serde::Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string(value).map_err(Failure::host)? + "\n")
}

/// As shells have it.
fn exit_status(ran: &Ran) -> u8 {
    let low = |number: i32| (number & 0xff) as u8;
    match (ran.timed_out, ran.status, ran.signal) {
        (true, ..) => TIMED_OUT,
        (_, Some(status), _) => low(status),
        (_, None, Some(signal)) => low(128 + (signal & 0x7f)),
        (_, None, None) => low(255),
    }
}

fn table(facts: &AgentFacts) -> String {
    let mut lines = format!(
        "name        {}\nkernel      {}\nprocessors  {} of {} run\nmemory      {}\nagent       {}\n",
        words(&facts.hostname),
        words(&facts.kernel),
        facts.cpus_online,
        facts.cpus_present,
        text::bytes(facts.memory_bytes),
        words(&facts.agent),
    );
    for interface in facts.interfaces.iter().take(100) {
        let state = if interface.up { "up" } else { "down" };
        let mac = interface.mac.as_deref().map_or(String::new(), |mac| format!(", {}", words(mac)));
        let addresses = interface.addresses.iter().take(100);
        let addresses: String =
            addresses.map(|address| format!(", {}/{}", address.ip, address.prefix)).collect();
        lines += &format!("interface   {} {state}{mac}{addresses}\n", words(&interface.name));
    }
    lines
}

#[cfg(test)]
mod tests;
