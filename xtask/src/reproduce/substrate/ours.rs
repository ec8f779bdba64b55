//! Substrates and VMs of Fathom.

use super::guests::Subject;
use super::process::Vms;
use super::{Place, Started, Template, size, wait_for_beats};
use crate::command::output;
use crate::machine::{Next, Running, Vmm, fathom_program};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(super) const NAME: &str = "reproduce-substrate";
const END_LONGEST: Duration = Duration::from_secs(60);

/// What `activate --json` says, as far as it is used.
#[derive(Deserialize)]
struct Done {
    clones: Vec<Clone>,
}

#[derive(Deserialize)]
struct Clone {
    pid: u32,
}

pub(super) fn command(place: &Place<'_>) -> Command {
    let mut command = Command::new(fathom_program());
    command.env("XDG_RUNTIME_DIR", place.sockets.path());
    command
}

/// With more words for `fathom run`.
pub(super) fn start(place: &Place<'_>, subject: &Subject, more: &[String]) -> Result<Running> {
    let guest = subject.guest(place.kit)?.named(NAME, &place.folder.join("report.json"));
    let mut start = guest.options(more).command(Vmm::Fathom)?;
    start.env("XDG_RUNTIME_DIR", place.sockets.path());
    Running::start_listening("fathom", start)
}

/// Starts a guest, has it wait for work, and saves it.
pub(super) fn save(place: &Place<'_>, subject: &Subject) -> Result<Template> {
    let path = place.folder.join(format!("{}.fathom", subject.name()));
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    let mut running = start(place, subject, &[])?;
    wait_for_beats(&mut running)?;
    let begun = Instant::now();
    output(command(place).args(["save", NAME]).arg(&path).arg("--stop"))?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut beat = 0;
    while let Next::Event(event) = running.next(END_LONGEST) {
        beat = beat.max(event.number("n"));
    }
    running.check_end()?;
    Ok(Template { bytes: size(&path)?, path, beat, seconds })
}

/// So many at once.
pub(super) fn activate(place: &Place<'_>, template: &Template, count: u32) -> Result<Started> {
    let folder = place.empty_folder()?;
    let consoles: Vec<PathBuf> = match count {
        1 => vec![folder.join("a.console")],
        _ => (1..=count).map(|number| folder.join(format!("a-{number}.console"))).collect(),
    };
    let mut command = command(place);
    command.arg("activate").arg(&template.path).args(["--name", "a", "--json"]);
    command.args(["--count", &count.to_string()]).arg("--output").arg(&folder);
    let failed = AtomicBool::new(false);
    let begun = Instant::now();
    let (vms, first) = thread::scope(|scope| {
        let first = scope.spawn(|| Vms::first_beats(&consoles, begun, template.beat, &failed));
        let done = output(&mut command);
        let running_seconds = begun.elapsed().as_secs_f64();
        failed.store(done.is_err(), Ordering::Relaxed);
        let first = first.join().expect("it does not panic");
        (done.map(|done| (done, running_seconds)), first)
    });
    let (done, running_seconds) = vms?;
    let vms = parse(&done, count)?;
    // From here on they end with this.
    Ok(Started { running_seconds, first_beats: first?, begun, vms })
}

/// Their processes, which stand: what each has before its guest does anything.
pub(super) fn stand(place: &Place<'_>, template: &Template, count: u32) -> Result<Vms> {
    let mut command = command(place);
    command.arg("activate").arg(&template.path).args(["--name", "a", "--json", "--paused"]);
    parse(&output(command.args(["--count", &count.to_string()]))?, count)
}

fn parse(said: &str, count: u32) -> Result<Vms> {
    let done: Done = serde_json::from_str(said).context("what `fathom activate` says")?;
    let vms = Vms(done.clones.iter().map(|clone| clone.pid).collect());
    ensure!(vms.0.len() == count as usize, "{} of {count} VMs run", vms.0.len());
    Ok(vms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_run_is_missed() {
        let said = r#"{"seconds":0.1,"clones":[{"name":"a","pid":4000000,"overlays":[]}]}"#;
        let vms = parse(said, 1).unwrap();
        assert_eq!(vms.0, [4_000_000]);
        assert!(parse(said, 2).is_err() && parse("{}", 0).is_err());
    }
}
