//! Agents that do not behave: each is a program on the other side of a UNIX socket.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;

use super::*;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

/// A guest's end of vsock that greets, and then does as `behave` says with what follows.
fn guest(
    behave: impl Fn(&mut BufReader<UnixStream>) + Send + 'static,
) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).expect("a socket");
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a caller"));
            let mut greeting = String::new();
            stream.read_line(&mut greeting).expect("a greeting");
            assert_eq!(greeting, "CONNECT 1\n");
            behave(&mut stream);
        }
    });
    (folder, path)
}

fn say(stream: &mut BufReader<UnixStream>, what: &str) {
    // Who has gone hears nothing.
    let _ = stream.get_mut().write_all(what.as_bytes());
}

/// What facts come to where the agent answers each question by `answer`.
fn facts_from(answer: &'static str) -> Result<AgentFacts, AgentError> {
    let (_folder, path) = guest(move |stream| {
        say(stream, "OK 1234\n");
        let mut question = String::new();
        stream.read_line(&mut question).expect("a question");
        assert_eq!(question, "{\"version\":1,\"id\":1,\"request\":\"facts\"}\n");
        say(stream, answer);
    });
    Agent::connect(&path, LONG)?.facts(LONG)
}

#[test]
fn an_agent_that_behaves_is_believed() {
    let facts = facts_from(
        "{\"version\":1,\"id\":1,\"outcome\":{\"facts\":{\"agent\":\"1\",\"kernel\":\"L\",\"hostname\":\"h\",\
         \"cpus_online\":1,\"cpus_present\":2,\"memory_bytes\":3,\"wall_clock_ns\":4,\"interfaces\":[]}}}\n",
    );
    assert_eq!(facts.expect("facts").hostname, "h");
}

#[test]
fn nonsense_is_refused_in_one_line() {
    for answer in [
        "\n",
        "hello\n",
        "{}\n",
        "\u{1}\u{2}\u{fffd}\n",
        "{\"version\":1,\"id\":1,\"outcome\":{\"parts\":[]}}\n",
        "{\"version\":1,\"id\":2,\"outcome\":{\"facts\":{\"agent\":\"1\",\"kernel\":\"L\",\"hostname\":\"h\",\
         \"cpus_online\":1,\"cpus_present\":2,\"memory_bytes\":3,\"wall_clock_ns\":4,\"interfaces\":[]}}}\n",
        "{\"version\":1,\"id\":1,\"outcome\":{\"facts\":{\"cpus_online\":-1}}}\n",
    ] {
        let error = facts_from(answer).expect_err(answer);
        assert!(matches!(error, AgentError::Nonsense(_)), "{answer}: {error}");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    let error =
        facts_from("{\"version\":1,\"id\":0,\"outcome\":{\"refused\":\"\\u001b[2Jno\\n\"}}\n");
    let AgentError::Refused(_) = error.as_ref().expect_err("refused") else { panic!("{error:?}") };
    assert_eq!(error.expect_err("refused").to_string(), "the agent refuses:  [2Jno ");
    // Nested deeper than anybody reads.
    let error = facts_from(Box::leak(("[".repeat(100_000) + "\n").into_boxed_str()));
    assert!(matches!(error, Err(AgentError::Nonsense(_))), "{error:?}");
}

#[test]
fn an_agent_that_goes_is_gone() {
    assert!(matches!(facts_from(""), Err(AgentError::Gone)));
    assert!(matches!(facts_from("{\"version\":1"), Err(AgentError::Gone)));
}

#[test]
fn an_endless_line_ends() {
    let (_folder, path) = guest(|stream| {
        say(stream, "OK 1\n");
        let chunk = [b'x'; 1 << 16];
        while stream.get_mut().write_all(&chunk).is_ok() {}
    });
    let error = Agent::connect(&path, LONG).and_then(|mut agent| agent.facts(LONG));
    let error = error.expect_err("endless").to_string();
    assert!(error.contains("a line of more than 4194304 bytes"), "{error}");
    let (_folder, path) =
        guest(|stream| while stream.get_mut().write_all(b"OK OK OK OK ").is_ok() {});
    assert!(matches!(Agent::connect(&path, LONG), Err(AgentError::Nonsense(_))));
}

#[test]
fn silence_has_an_end_however_it_is_kept() {
    // A byte now and then is no answer.
    let (_folder, path) = guest(|stream| {
        say(stream, "OK 1\n");
        while stream.get_mut().write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut agent = Agent::connect(&path, LONG).expect("greeted");
    assert!(matches!(agent.facts(SHORT), Err(AgentError::Silent(SHORT))));
    drop(agent);
    let (_folder, path) = guest(|stream| {
        let _ = stream.read(&mut [0]);
    });
    assert!(matches!(Agent::connect(&path, SHORT), Err(AgentError::Silent(SHORT))));
    // One that reads nothing either.
    let (_folder, path) = guest(|stream| {
        say(stream, "OK 1\n");
        thread::sleep(Duration::from_secs(3));
    });
    let mut agent = Agent::connect(&path, LONG).expect("greeted");
    let run = Run { command: vec!["x".repeat(3 << 20)], timeout_ms: 1, output_max: 1 };
    assert!(matches!(agent.ask(Request::Run(run), SHORT), Err(AgentError::Silent(SHORT))));
}

#[test]
fn nobody_who_listens_is_said_to_be_absent() {
    let (_folder, path) = guest(|_| {});
    assert!(matches!(Agent::connect(&path, LONG), Err(AgentError::Absent)));
    let nowhere = path.with_extension("no");
    let error = Agent::connect(&nowhere, LONG).expect_err("no socket").to_string();
    assert!(error.contains("vsock.no: "), "{error}");
}

#[test]
fn a_connection_that_is_lost_is_made_again() {
    let losses = std::sync::atomic::AtomicU32::new(0);
    let (_folder, path) = guest(move |stream| {
        say(stream, "OK 1\n");
        let mut question = String::new();
        stream.read_line(&mut question).expect("a question");
        if losses.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2 {
            say(stream, "{\"version\":1,\"id\":1,\"outcome\":{\"parts\":[]}}\n");
        }
    });
    let done = with_agent(&path, |agent| agent.identity(Identity::default()));
    assert!(done.expect("done").is_empty());
}

#[test]
fn statuses_are_those_of_shells() {
    let ran = |timed_out, status, signal| Ran {
        status,
        signal,
        timed_out,
        output: String::new(),
        errors: String::new(),
        cut: false,
    };
    assert_eq!(exit_status(&ran(false, Some(3), None)), 3);
    assert_eq!(exit_status(&ran(false, None, Some(9))), 137);
    assert_eq!(exit_status(&ran(true, None, Some(9))), 124);
    assert_eq!(exit_status(&ran(false, Some(i32::MIN), None)), 0);
}
