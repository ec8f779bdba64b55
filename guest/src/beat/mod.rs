//! A guest that beats: each time after the same piece of its load's work it says so. From when the beats come it is
//! seen from outside how much of its time the guest has to itself, whichever monitor runs it.
//!
//! It has a nonce that is in its memory only and some memory that depends on it, and answers lines on the console: to
//! `proof` with the nonce and with checksums of that memory and of what the load has, which stay the same; by `end` it
//! ends. A load `NAME-idle` does a piece of work ten times a second and waits in between.

mod build;
mod kernel;
mod redis;
mod sqlite;
mod web;

use crate::random::Random;
use crate::report::emit;
use crate::request::{Request, Work};
use crate::work::program::{self, Root};
use std::fs::File;
use std::io::{Error, Read, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Of memory that depends on the nonce, unless said otherwise.
const PROOF_MIB: u64 = 16;
/// Before each beat of a load that is `-idle`.
const IDLE: Duration = Duration::from_millis(100);
/// A server that takes longer to start has failed.
const START_LONGEST: Duration = Duration::from_secs(60);

trait Load {
    /// The same amount of work each time.
    fn beat(&mut self) -> Result<()>;
    /// Of all that it keeps: beats do not change it.
    fn proof(&mut self) -> Result<u64>;
}

/// `beat:LOAD[,MIB]`.
pub(crate) fn run(work: &Work, request: &Request) -> bool {
    let name = work.args.split(',').next().unwrap_or_default();
    match beat(name, work.number_or(PROOF_MIB), &request.root) {
        Ok(()) => true,
        Err(error) => {
            emit("beat", &[("error", error.to_string().as_str().into())]);
            false
        }
    }
}

fn beat(name: &str, mib: u64, disk: &Path) -> Result<()> {
    let nonce = draw_nonce()?;
    let memory = Memory::new(nonce, mib);
    let busy = name.strip_suffix("-idle");
    let mut load = start(busy.unwrap_or(name), nonce, disk)?;
    let asked = listen();
    emit("ready", &[("load", name.into())]);
    for number in 1_u64.. {
        if busy.is_some() {
            thread::sleep(IDLE);
        }
        load.beat()?;
        emit("beat", &[("n", number.into())]);
        match asked.try_recv().as_deref() {
            Ok("proof") => {
                let [nonce, memory, load] =
                    [nonce, memory.checksum(), load.proof()?].map(|sum| format!("{sum:016x}"));
                let fields = [("nonce", &nonce), ("memory", &memory), ("load", &load)];
                emit("proof", &fields.map(|(name, sum)| (name, sum.as_str().into())));
            }
            Ok("end") => break,
            _ => {}
        }
    }
    Ok(())
}

fn start(name: &str, nonce: u64, disk: &Path) -> Result<Box<dyn Load>> {
    if name == "kernel" {
        return Ok(Box::new(kernel::Kernel::new()));
    }
    let root = Root::new(disk)?;
    Ok(match name {
        "redis" => Box::new(redis::Redis::start(&root, nonce)?),
        "web" => Box::new(web::Web::start(&root, nonce)?),
        "sqlite3" => Box::new(sqlite::Sqlite::start(&root, nonce)?),
        "build" => Box::new(build::Build::start(root, nonce)?),
        _ => return Err(Error::other("no such load")),
    })
}

/// Drawn once: who has it later has this guest's memory.
fn draw_nonce() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) | 1)
}

/// Lines from the console, which says nothing back.
fn listen() -> Receiver<String> {
    let _ = Command::new("/bin/busybox").args(["stty", "-echo"]).status();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line.trim().to_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

struct Memory(Vec<u64>);

impl Memory {
    fn new(nonce: u64, mib: u64) -> Self {
        let mut random = Random::from_seed(nonce);
        Self(std::iter::repeat_with(|| random.next()).take((mib << 17) as usize).collect())
    }

    fn checksum(&self) -> u64 {
        self.0.iter().fold(0, |sum, &word| mix(sum, word))
    }
}

/// A checksum one word on: it depends on their order.
fn mix(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| mix(sum, byte.into()))
}

/// A program of the disk that is not waited for: it ends with the machine.
fn server(root: &Root, program: &str, args: &[&str]) -> Command {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let mut command = program::command(program, &args);
    root.enter(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Until a server is there.
fn patiently<T>(mut connect: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match connect() {
            Err(error) if begun.elapsed() > START_LONGEST => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_depends_on_the_nonce_and_on_every_word() {
        let mut memory = Memory::new(7, 1);
        let before = memory.checksum();
        assert_eq!(before, Memory::new(7, 1).checksum());
        assert_ne!(before, Memory::new(9, 1).checksum());
        memory.0[70_000] ^= 1;
        assert_ne!(before, memory.checksum());
        assert_ne!(checksum(b"ab"), checksum(b"ba"));
    }
}
