//! The agent: a program in a guest that does what its host asks, so that a saved guest can become somebody else.
//!
//! It listens on AF_VSOCK, port 1, to the host alone (address 2), and takes lines as crate `agent-wire` has them. Whoever
//! runs a machine is its root, so that nothing is asked back. It keeps nothing: a guest that is saved with it and
//! goes on elsewhere answers there.
//!
//! ```text
//! agent           listens until it is killed
//! agent --once    answers one connection, for tests
//! ```
//!
//! Each request is many parts, and each part says whether it was done or why not: a guest without an interface still has a name.
//! It is *not* needed to run, save or restore a guest.

mod cpus;
mod facts;
mod files;
mod identity;
mod interfaces;
mod netlink;
mod parts;
mod prepare;
mod program;
mod sys;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use agent_wire::{Answer, LINE_MAX, LineError, Lines, Outcome, PORT, Question, Request, VERSION};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use sys::Listener;

/// The host's address (VMADDR_CID_HOST, vsock(7)): a program of the guest's own would have another.
const HOST: u32 = 2;
/// At a time; a host that wants more waits.
const CONNECTIONS_MAX: usize = 16;
/// One that says nothing for so long is gone: a host that went away while the guest was saved cannot say so.
const SILENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let once = std::env::args().nth(1).is_some_and(|argument| argument == "--once");
    let listener = match Listener::open(PORT) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("agent: listen on vsock port {PORT}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                // Of one caller, or for want of memory: the next one may do.
                eprintln!("agent: accept: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if peer != HOST {
            continue;
        }
        if once {
            serve(stream);
            return ExitCode::SUCCESS;
        }
        while open.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            thread::sleep(Duration::from_millis(10));
        }
        open.fetch_add(1, Ordering::AcqRel);
        let place = Place(open.clone());
        let served = thread::Builder::new().spawn(move || {
            let _place = place;
            serve(stream);
        });
        if let Err(error) = served {
            eprintln!("agent: start a thread: {error}");
        }
    }
}

/// One of the connections; free again when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers line by line until the host has enough.
fn serve(stream: File) {
    for timeout in [Timeout::Recv, Timeout::Send] {
        if let Err(error) = set_socket_timeout(&stream, timeout, Some(SILENCE)) {
            eprintln!("agent: limit a connection's silence: {error}");
        }
    }
    let mut lines = Lines::new(stream);
    loop {
        let answer = match lines.next(LINE_MAX, |_| Ok(())) {
            Ok(Some(line)) => answer(&line),
            Ok(None) | Err(LineError::Io(_) | LineError::Cut) => return,
            Err(error) => {
                // What follows cannot be told from the rest of this one.
                let _ = send(lines.stream(), &refused(0, &error.to_string()));
                return;
            }
        };
        if send(lines.stream(), &answer).is_err() {
            return;
        }
    }
}

fn send(stream: &mut File, answer: &Answer) -> Result<(), LineError> {
    let line = agent_wire::to_line(answer)
        .or_else(|error| agent_wire::to_line(&refused(answer.id, &error.to_string())))?;
    Ok(stream.write_all(&line)?)
}

fn answer(line: &[u8]) -> Answer {
    let question: Question = match agent_wire::from_line(line) {
        Ok(question) => question,
        Err(error) => return refused(0, &error.to_string()),
    };
    if question.version != VERSION {
        let what = format!("version {} is not known here, {VERSION} is", question.version);
        return refused(question.id, &what);
    }
    let outcome = match question.request {
        Request::Facts => Outcome::Facts(facts::facts()),
        Request::Prepare(how) => Outcome::Parts(prepare::prepare(how)),
        Request::Identity(identity) => Outcome::Parts(identity::assume(&identity)),
        Request::Run(run) => match program::run(&run) {
            Ok(ran) => Outcome::Ran(ran),
            Err(what) => Outcome::Refused(what),
        },
    };
    Answer { version: VERSION, id: question.id, outcome }
}

fn refused(id: u64, what: &str) -> Answer {
    Answer { version: VERSION, id, outcome: Outcome::Refused(what.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(line: &str) -> Outcome {
        answer(line.as_bytes()).outcome
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_reason() {
        for (line, expected) in [
            ("{", "not a line of this protocol"),
            (r#"{"version":1,"id":1,"request":"halt"}"#, "unknown variant `halt`"),
            (r#"{"version":2,"id":1,"request":"facts"}"#, "version 2 is not known here, 1 is"),
            (
                r#"{"version":1,"id":1,"request":{"run":{"command":[],"timeout_ms":1,"output_max":1}}}"#,
                "no program",
            ),
        ] {
            let Outcome::Refused(what) = outcome(line) else { panic!("{line} was answered") };
            assert!(what.contains(expected), "{line}: {what}");
        }
    }

    #[test]
    fn facts_of_this_machine() {
        let Outcome::Facts(facts) = outcome(r#"{"version":1,"id":1,"request":"facts"}"#) else {
            panic!("no facts")
        };
        assert!(facts.kernel.starts_with("Linux "), "{facts:?}");
        assert!(facts.cpus_online >= 1 && facts.cpus_present >= facts.cpus_online, "{facts:?}");
        assert!(facts.memory_bytes > 1 << 20 && facts.wall_clock_ns > 1 << 60, "{facts:?}");
    }
}
