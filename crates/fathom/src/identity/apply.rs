//! A VM that runs becomes who it is to be.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_wire::{Identity, Part, Ran};
use api::{BalloonTarget, SocketDirectory};
use serde::Serialize;

use super::Change;
use crate::agent::{Agent, AgentError, TIMEOUT, with_agent, words};
use crate::failure::Failure;
use crate::text;

/// For what is run in it.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// Mixed into a guest's random numbers: as much as its kernel draws from at a time, twice.
const ENTROPY: usize = 64;
/// What an identity has of itself, whether asked or not: a guest that cannot is told of and kept.
const OF_ITSELF: [&str; 3] = ["clock", "entropy", "machine-id"];

/// What a VM has become, and when: times are from the command on.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Became {
    /// Its guest moves.
    pub(crate) running_ms: f64,
    /// Its agent has answered that it is who it is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent_ms: Option<f64>,
    /// What was run in it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_ms: Option<f64>,
    /// What its agent did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) parts: Vec<Part>,
    /// What was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<Ran>,
}

/// It has not become what it is to be.
pub(crate) struct Failed {
    pub(crate) why: Failure,
    /// And runs no more.
    pub(crate) ended: bool,
}

impl<E: Into<Failure>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { why: error.into(), ended: false }
    }
}

impl Change {
    /// Has the VM `name`, which runs, become what it is to be.
    pub(crate) fn apply(
        &self,
        name: &str,
        vsock: Option<&Path>,
        begun: Instant,
    ) -> Result<Became, Failed> {
        let ms = || begun.elapsed().as_secs_f64() * 1e3;
        let mut became = Became { running_ms: ms(), ..Became::default() };
        let failed = |error: AgentError| Failure::Host(format!("VM `{name}`: {error}"));
        if let (Some(identity), Some(vsock)) = (&self.identity, vsock) {
            let told = with_agent(vsock, |agent| agent.identity(now(identity)));
            became.parts = told.map_err(|error| without_agent(name, error))?;
            became.agent_ms = Some(ms());
        }
        if let Some(target_bytes) = self.balloon_bytes {
            let client = SocketDirectory::open()?.client(name);
            client.set_balloon(BalloonTarget { target_bytes })?;
        }
        check(name, &became.parts)?;
        if let (Some(run), Some(vsock)) = (&self.run, vsock) {
            let command = ["sh", "-c", run].map(str::to_owned);
            let agent = Agent::connect(vsock, TIMEOUT);
            let ran = agent.and_then(|mut agent| agent.run(&command, RUN_TIMEOUT));
            became.run = Some(ran.map_err(failed)?);
            became.run_ms = Some(ms());
        }
        Ok(became)
    }
}

/// A VM that cannot become who it is to be must not be taken for it: without an agent it ends.
fn without_agent(name: &str, error: AgentError) -> Failed {
    let stop = || SocketDirectory::open().is_ok_and(|sockets| sockets.client(name).stop().is_ok());
    let ended = matches!(error, AgentError::Absent) && stop();
    let end = if ended { ": the VM was ended" } else { "" };
    Failed { why: Failure::Host(format!("VM `{name}`: {error}{end}")), ended }
}

/// With what is so only at this moment.
fn now(identity: &Identity) -> Identity {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut bytes = [0; ENTROPY];
    let drawn = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    let digits = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Identity {
        wall_clock_ns: u64::try_from(since.as_nanos()).ok(),
        entropy: drawn.is_ok().then(digits),
        ..identity.clone()
    }
}

/// What was asked and not done is an error; the rest is told.
fn check(name: &str, parts: &[Part]) -> Result<(), Failure> {
    let (asked, of_itself): (Vec<&Part>, Vec<&Part>) = parts
        .iter()
        .filter(|part| !part.ok)
        .partition(|part| !OF_ITSELF.contains(&part.part.as_str()));
    let line = |part: &Part| format!("{}: {}", words(&part.part), words(&part.said));
    for part in of_itself {
        tracing::warn!("VM `{name}`: {}", line(part));
    }
    match asked.first() {
        None => Ok(()),
        Some(part) => Err(Failure::Host(format!("VM `{name}`: {}", line(part)))),
    }
}

/// For people: who runs, since when, and what they printed.
pub(crate) fn table<'a>(members: impl Iterator<Item = (&'a str, &'a Became)>) -> String {
    let head = ["NAME", "RUNNING", "AGENT", "RUN"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    let mut printed = String::new();
    let ms = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
    for (name, became) in members {
        let Became { running_ms, agent_ms, run_ms, .. } = became;
        rows.push(vec![name.to_owned(), ms(Some(*running_ms)), ms(*agent_ms), ms(*run_ms)]);
        if let Some(ran) = &became.run {
            let lines = ran.output.lines().chain(ran.errors.lines());
            lines.for_each(|line| printed += &format!("{name}: {}\n", words(line)));
            match (ran.timed_out, ran.status, ran.signal) {
                (true, ..) => printed += &format!("{name}: its time was up\n"),
                (_, Some(0), _) => {}
                (_, Some(status), _) => printed += &format!("{name}: exit status {status}\n"),
                (_, None, signal) => {
                    printed += &format!("{name}: ended by signal {}\n", signal.unwrap_or(0));
                }
            }
        }
    }
    text::table(&rows) + &printed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(part: &str, ok: bool) -> Part {
        Part { part: part.to_owned(), ok, said: "so\n".to_owned() }
    }

    #[test]
    fn what_was_asked_and_not_done_is_an_error() {
        let parts = [part("hostname", true), part("machine-id", false), part("clock", false)];
        assert!(check("a", &parts).is_ok());
        let refused = check("a", &[part("hostname", true), part("interface", false)]);
        assert_eq!(refused.expect_err("an error").to_string(), "VM `a`: interface: so ");
    }

    #[test]
    fn people_see_who_runs_and_what_was_printed() {
        let ran = |status| Ran {
            status: Some(status),
            signal: None,
            timed_out: false,
            output: "one\n\u{1b}two\n".to_owned(),
            errors: String::new(),
            cut: false,
        };
        let became = |status| Became {
            running_ms: 10.4,
            agent_ms: Some(20.6),
            run_ms: Some(30.0),
            run: Some(ran(status)),
            ..Became::default()
        };
        let (a, b) = (became(0), Became { running_ms: 1.0, ..Became::default() });
        let shown = table([("a", &a), ("b", &b)].into_iter());
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["NAME", "RUNNING", "AGENT", "RUN"]
        );
        assert!(lines[1].starts_with('a') && lines[1].ends_with("10 ms  21 ms  30 ms"), "{shown}");
        assert_eq!(lines[3..], ["a: one", "a:  two"]);
        let failed = became(3);
        assert!(table([("a", &failed)].into_iter()).ends_with("a: exit status 3\n"));
    }

    #[test]
    fn an_identity_has_the_time_and_numbers_of_its_own() {
        let (a, b) = (now(&Identity::default()), now(&Identity::default()));
        assert!(a.entropy.as_ref().is_some_and(|entropy| entropy.len() == 2 * ENTROPY));
        assert_ne!(a.entropy, b.entropy);
        assert!(a.wall_clock_ns > Some(1 << 60) && a.wall_clock_ns <= b.wall_clock_ns);
    }
}
