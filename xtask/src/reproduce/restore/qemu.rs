//! Save and restore by QEMU: a migration to a file, and one from it (docs/devel/migration of QEMU).
//!
//! The guest is stopped before it is saved, as ours is, and the state that says so is left out, so that it runs again as
//! soon as it is loaded. The stream of 7.2 is read through a descriptor of the file, with no program between; from 9.0 on
//! there is `mapped-ram`, in which each page has its place in the file.

use super::guests::Subject;
use super::monitor::Place;
use crate::kit::lab::Qemu;
use crate::machine::{Next, Running, Vmm};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
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

fn command(place: &Place<'_>, subject: &Subject, kind: Kind) -> Result<Command> {
    let qemu: Option<Qemu> = match kind {
        Kind::Stream => None,
        Kind::Mapped => Some(place.kit.backports_qemu()?),
    };
    let mut command = subject.guest(place.kit)?.qemu_program(qemu).command(Vmm::Qemu)?;
    let socket = socket(place);
    command.arg("-qmp").arg(format!("unix:{},server,nowait", socket.display()));
    command.args(["-global", "migration.store-global-state=off"]);
    if kind == Kind::Mapped {
        command.args(["-global", "migration.mapped-ram=on"]);
    }
    Ok(command)
}

pub(super) fn start(place: &Place<'_>, subject: &Subject, kind: Kind) -> Result<Running> {
    Running::start_listening(name(kind), command(place, subject, kind)?)
}

/// To a file. The guest ends.
pub(super) fn save(
    place: &Place<'_>,
    running: &mut Running,
    path: &Path,
    kind: Kind,
) -> Result<()> {
    let mut monitor = Monitor::connect(&socket(place))?;
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
    monitor.ask("migrate", &json!({ "uri": uri }))?;
    let begun = Instant::now();
    loop {
        let said = monitor.ask("query-migrate", &json!({}))?;
        match said["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "cancelled") => bail!("QEMU did not save the guest: {said}"),
            _ if begun.elapsed() > LONGEST => bail!("QEMU saves the guest for ever: {said}"),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
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
    let mut command = command(place, subject, kind)?;
    match kind {
        Kind::Stream => {
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
            command = shell;
        }
        Kind::Mapped => {
            command.arg("-incoming").arg(format!("file:{}", path.display()));
        }
    }
    Running::start_listening(name(kind), command)
}

pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "qemu",
        Kind::Mapped => "qemu-mapped",
    }
}

fn socket(place: &Place<'_>) -> PathBuf {
    place.sockets.path().join("qmp")
}

/// Its protocol: a line of JSON each way (docs/interop/qmp-spec of QEMU).
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connect to QEMU's monitor")?;
        stream.set_read_timeout(Some(LONGEST))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.line()?;
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}")?;
        loop {
            // Events come in between.
            let mut said = self.line()?;
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line).context("read from QEMU's monitor")? == 0 {
            bail!("QEMU has closed its monitor");
        }
        serde_json::from_str(&line).context("QEMU's monitor says what is no JSON")
    }
}
