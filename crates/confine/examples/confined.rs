//! A process that confines itself and then tries things, for the tests in `tests/`.
//!
//! ```text
//! confined [RULE=PATH]... -- [ATTEMPT[:ARGUMENT]]...
//! ```
//! Each attempt is answered by a line: `ok` or what the host said.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use confine::{Need, PathRule};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut parts = arguments.split(|argument| argument == "--");
    let (rules, attempts) = (parts.next().expect("rules"), parts.next().expect("attempts"));
    if rules.iter().any(|rule| rule == "fresh") {
        confine::close_inherited(&[]).expect("closed");
    }
    let rules: Vec<PathRule> = rules.iter().filter_map(|rule| path_rule(rule)).collect();
    for missing in confine::confine(&rules).expect("confined") {
        println!("missing {}", missing.wall);
    }
    for attempt in attempts {
        let (verb, argument) = attempt.split_once(':').unwrap_or((attempt, ""));
        match on_a_thread(verb, argument) {
            Ok(()) => println!("{attempt} ok"),
            Err(error) => println!("{attempt} {:?}", error.kind()),
        }
    }
}

fn path_rule(rule: &str) -> Option<PathRule> {
    let (need, path) = rule.split_once('=')?;
    let need = match need {
        "read" => Need::Read,
        "write" => Need::ReadWrite,
        "output" => Need::Output,
        "sockets" => Need::SocketDirectory,
        _ => panic!("no rule {need}"),
    };
    Some(PathRule::new(path, need))
}

/// Walls hold for every thread.
fn on_a_thread(verb: &str, argument: &str) -> io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(|| attempt(verb, argument)).join().expect("no panic in an attempt")
    })
}

fn attempt(verb: &str, argument: &str) -> io::Result<()> {
    let path = Path::new(argument);
    match verb {
        "read" => File::open(path).map(drop),
        "write" => File::options().write(true).open(path)?.write_all(b"x"),
        "truncate" => fs::write(path, b"new"),
        "remove" => fs::remove_file(path),
        "make" => File::create_new(path).map(drop),
        "rename" => fs::rename(path, path.with_extension("renamed")),
        "list" => fs::read_dir(path).map(drop),
        "listen" => UnixListener::bind(path).map(drop),
        "connect" => UnixStream::connect(path).map(drop),
        "tcp" => TcpListener::bind("127.0.0.1:0").map(drop),
        "execute" => Command::new(path).status().map(drop),
        "wait" => wait(),
        "privileges" => privileges(),
        _ => panic!("no attempt {verb}"),
    }
}

/// Waits while the test looks at this process from outside.
fn wait() -> io::Result<()> {
    println!("waiting");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new()).map(drop)
}

fn privileges() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    if !status.lines().any(|line| line == "NoNewPrivs:\t1") {
        return Err(io::Error::other("new privileges are possible"));
    }
    Ok(())
}
