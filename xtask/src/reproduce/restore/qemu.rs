//! Save and restore by QEMU: a migration to a file, and one from it (docs/devel/migration of QEMU).
//!
//! The guest is stopped before it is saved, as ours is, and the state that says so is left out, so that it runs again as
//! soon as it is loaded. The stream of 7.2 is read through a descriptor of the file, with no program between; from 9.0 on
//! there is `mapped-ram`, in which each page has its place in the file.

use super::super::qmp::Monitor;
use super::guests::Subject;
use super::monitor::Place;
use crate::kit::lab::Qemu;
use crate::machine::{Next, Running, Vmm};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(120);
/// Bytes a second: more than any disk writes.
const UNLIMITED: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The host's or Debian's: a stream
    Stream,
    /// Of Debian's backports: mapped-ram
    Mapped,
}

/// `socket`: for its monitor.
fn command(place: &Place<'_>, subject: &Subject, kind: Kind, socket: &str) -> Result<Command> {
    let qemu: Option<Qemu> = match kind {
        Kind::Stream => None,
        Kind::Mapped => Some(place.kit.backports_qemu()?),
    };
    let mut command = subject.guest(place.kit)?.qemu_program(qemu).command(Vmm::Qemu)?;
    let socket = place.sockets.path().join(socket);
    command.arg("-qmp").arg(format!("unix:{},server,nowait", socket.display()));
    command.args(["-global", "migration.store-global-state=off"]);
    if kind == Kind::Mapped {
        command.args(["-global", "migration.mapped-ram=on"]);
    }
    Ok(command)
}

pub(super) fn start(place: &Place<'_>, subject: &Subject, kind: Kind) -> Result<Running> {
    Running::start_listening(name(kind), command(place, subject, kind, MONITOR)?)
}

/// To a file. The guest ends.
pub(super) fn save(
    place: &Place<'_>,
    running: &mut Running,
    path: &Path,
    kind: Kind,
) -> Result<()> {
    let mut monitor = connect(place, MONITOR)?;
    monitor.ask("stop", &json!({}))?;
    monitor.ask("migrate-set-parameters", &json!({ "max-bandwidth": UNLIMITED }))?;
    if path.exists() {
        fs::remove_file(path)?;
    }
    let shown = path.to_str().context("a path that is a text")?;
    let uri = match kind {
        Kind::Stream => format!("exec:cat >'{shown}'"),
        Kind::Mapped => format!("file:{shown}"),
    };
    monitor.migrate(&uri, Duration::from_millis(5))?;
    monitor.ask("quit", &json!({}))?;
    while let Next::Event(_) = running.next(LONGEST) {}
    Ok(())
}

pub(super) fn restore(
    place: &Place<'_>,
    subject: &Subject,
    path: &Path,
    kind: Kind,
) -> Result<Running> {
    let command = command(place, subject, kind, MONITOR)?;
    Running::start_listening(name(kind), incoming(command, path, kind))
}

fn incoming(mut command: Command, path: &Path, kind: Kind) -> Command {
    if kind == Kind::Mapped {
        command.arg("-incoming").arg(format!("file:{}", path.display()));
        return command;
    }
    // Descriptor 3 is the file: it is for a shell to open it there.
    command.args(["-incoming", "fd:3"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 3<\"$SAVED\""]).env("SAVED", path);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
}

/// A QEMU that has a saved guest in its memory and does not run it. From a file there is no postcopy: who is restored asks
/// for the pages that it misses, so that somebody has to answer. Nothing of this is in the times that are measured.
pub(super) struct Source {
    kind: Kind,
    monitor: RefCell<Monitor>,
    _running: Running,
}

impl Source {
    pub(super) fn start(
        place: &Place<'_>,
        subject: &Subject,
        path: &Path,
        kind: Kind,
    ) -> Result<Self> {
        let mut command = command(place, subject, kind, SOURCE)?;
        command.arg("-S");
        let running = Running::start("qemu", incoming(command, path, kind))?;
        let mut monitor = connect(place, SOURCE)?;
        let begun = Instant::now();
        while monitor.ask("query-status", &json!({}))?["status"] == "inmigrate" {
            if begun.elapsed() > LONGEST {
                bail!("QEMU loads the guest for ever");
            }
            sleep(Duration::from_millis(5));
        }
        monitor.allow("postcopy-ram")?;
        monitor.ask("migrate-set-parameters", &json!({ "max-bandwidth": UNLIMITED }))?;
        Ok(Self { kind, monitor: RefCell::new(monitor), _running: running })
    }

    /// One that runs it at once and has all pages later.
    pub(super) fn restore(&self, place: &Place<'_>, subject: &Subject) -> Result<Running> {
        let mut command = command(place, subject, self.kind, MONITOR)?;
        command.args(["-incoming", "defer"]);
        let running = Running::start_listening("qemu", command)?;
        let mut taker = connect(place, MONITOR)?;
        taker.allow("postcopy-ram")?;
        let uri = format!("unix:{}", place.sockets.path().join("pages").display());
        taker.ask("migrate-incoming", &json!({ "uri": uri }))?;
        let mut giver = self.monitor.borrow_mut();
        giver.ask("migrate", &json!({ "uri": uri }))?;
        while giver.ask("query-migrate", &json!({}))?["status"] == "setup" {
            sleep(Duration::from_millis(1));
        }
        giver.ask("migrate-start-postcopy", &json!({}))?;
        Ok(running)
    }
}

fn connect(place: &Place<'_>, socket: &str) -> Result<Monitor> {
    Monitor::connect(&place.sockets.path().join(socket))
}

pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "qemu",
        Kind::Mapped => "qemu-mapped",
    }
}

/// Names of sockets.
const MONITOR: &str = "qmp";
const SOURCE: &str = "source";
