//! The same by QEMU: memory is a file, of which each VM has a private mapping, and all else is a migration that leaves out
//! what is shared (`memory-backend-file`, `x-ignore-shared`; docs/devel/migration of QEMU).

use super::guests::Subject;
use super::process::Vms;
use super::{Place, Started, Template, size, wait_for_beats};
use crate::kit::lab::Qemu;
use crate::machine::{Next, Running, Vmm};
use crate::reproduce::qmp::Monitor;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(120);
/// QEMU's microvm without KVM hangs now and then before it prints anything.
const BOOT_TRIES: usize = 4;
const BOOT_LONGEST: Duration = Duration::from_secs(60);
const IGNORE_SHARED: &str = "x-ignore-shared";

/// The host's or the kit's, unless it is another.
pub(super) type Program = Option<Qemu>;

fn command(
    place: &Place<'_>,
    subject: &Subject,
    program: &Program,
    memory: &Path,
    shared: bool,
    socket: &Path,
) -> Result<Command> {
    let guest = subject.guest(place.kit)?.qemu_program(program.clone());
    let mut command = guest.command(Vmm::Qemu)?;
    let (size, share) = (subject.memory_mib, if shared { "on" } else { "off" });
    let path = memory.display();
    command.arg("-object");
    command.arg(format!("memory-backend-file,id=ram,size={size}M,mem-path={path},share={share}"));
    command.args(["-machine", "memory-backend=ram"]);
    command.arg("-qmp").arg(format!("unix:{},server,nowait", socket.display()));
    command.args(["-global", "migration.store-global-state=off"]);
    Ok(command)
}

pub(super) fn save(
    place: &Place<'_>,
    subject: &Subject,
    name: &str,
    program: &Program,
) -> Result<Template> {
    let path = place.folder.join(format!("{}.{name}", subject.name()));
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir(&path)?;
    let socket = place.sockets.path().join("template");
    let mut running = None;
    for _ in 0..BOOT_TRIES {
        let command = command(place, subject, program, &path.join("memory"), true, &socket)?;
        let mut started = Running::start_listening("qemu", command)?;
        if !matches!(started.next(BOOT_LONGEST), Next::Quiet) {
            running = Some(started);
            break;
        }
    }
    let mut running = running.context("QEMU does not boot the guest")?;
    wait_for_beats(&mut running)?;
    let mut monitor = Monitor::connect(&socket)?;
    let begun = Instant::now();
    monitor.ask("stop", &json!({}))?;
    monitor.allow(IGNORE_SHARED)?;
    let state = path.join("state");
    monitor.migrate(&format!("exec:cat >'{}'", state.display()), Duration::from_millis(1))?;
    let seconds = begun.elapsed().as_secs_f64();
    monitor.ask("quit", &json!({}))?;
    let mut beat = 0;
    while let Next::Event(event) = running.next(LONGEST) {
        beat = beat.max(event.number("n"));
    }
    Ok(Template { bytes: size(&path)?, path, beat, seconds })
}

/// So many at once, each started and told by a thread of its own.
pub(super) fn activate(
    place: &Place<'_>,
    subject: &Subject,
    program: &Program,
    template: &Template,
    count: u32,
) -> Result<Started> {
    let folder = place.empty_folder()?;
    let consoles: Vec<PathBuf> =
        (1..=count).map(|number| folder.join(format!("{number}.console"))).collect();
    let (failed, begun) = (AtomicBool::new(false), Instant::now());
    let (vms, first) = thread::scope(|scope| {
        let first = scope.spawn(|| Vms::first_beats(&consoles, begun, template.beat, &failed));
        let started = all(place, subject, program, template, &consoles, false);
        let running_seconds = begun.elapsed().as_secs_f64();
        failed.store(started.is_err(), Ordering::Relaxed);
        let first = first.join().expect("it does not panic");
        (started.map(|vms| (vms, running_seconds)), first)
    });
    let (vms, running_seconds) = vms?;
    Ok(Started { running_seconds, first_beats: first?, begun, vms })
}

/// Their processes, which stand.
pub(super) fn stand(
    place: &Place<'_>,
    subject: &Subject,
    program: &Program,
    template: &Template,
    count: u32,
) -> Result<Vms> {
    let folder = place.empty_folder()?;
    let consoles: Vec<PathBuf> =
        (1..=count).map(|number| folder.join(format!("{number}.console"))).collect();
    all(place, subject, program, template, &consoles, true)
}

fn all(
    place: &Place<'_>,
    subject: &Subject,
    program: &Program,
    template: &Template,
    consoles: &[PathBuf],
    paused: bool,
) -> Result<Vms> {
    let (mut vms, mut sockets) = (Vms(Vec::new()), Vec::new());
    for (number, console) in consoles.iter().enumerate() {
        let socket = place.sockets.path().join(format!("q{number}"));
        let memory = template.path.join("memory");
        let mut command = command(place, subject, program, &memory, false, &socket)?;
        command.args(["-incoming", "defer"]);
        if paused {
            command.arg("-S");
        }
        // It waits for nobody: `Vms` ends it by its number.
        vms.0.push(spawn(command, &template.path.join("state"), console)?);
        sockets.push(socket);
    }
    let told = thread::scope(|scope| {
        let tell = |socket: PathBuf| scope.spawn(move || take_up(&socket));
        let all: Vec<_> = sockets.into_iter().map(tell).collect();
        all.into_iter().try_for_each(|one| one.join().expect("it does not panic"))
    });
    told.map(|()| vms)
}

/// Descriptor 3 is the state: it is for a shell to open it there.
fn spawn(command: Command, state: &Path, console: &Path) -> Result<u32> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 3<\"$SAVED\""]).env("SAVED", state);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell.stdin(Stdio::null()).stdout(File::create(console)?).stderr(Stdio::null());
    Ok(shell.spawn().context("start QEMU")?.id())
}

fn take_up(socket: &Path) -> Result<()> {
    let mut monitor = Monitor::connect(socket)?;
    monitor.allow(IGNORE_SHARED)?;
    monitor.ask("migrate-incoming", &json!({ "uri": "fd:3" }))?;
    let begun = Instant::now();
    while monitor.ask("query-status", &json!({}))?["status"] == "inmigrate" {
        if begun.elapsed() > LONGEST {
            bail!("QEMU loads the guest for ever");
        }
        sleep(Duration::from_micros(500));
    }
    Ok(())
}
