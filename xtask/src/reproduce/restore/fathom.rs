//! Save and restore by `fathom`, and what its report says of a restore.

use super::guests::Subject;
use super::monitor::Place;
use crate::command::output;
use crate::machine::{Next, Running, Vmm, fathom_program};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NAME: &str = "reproduce-restore";
const END_LONGEST: Duration = Duration::from_secs(30);

/// `restore` of a report, as far as there is one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Inside {
    pub(super) first_instruction_seconds: Option<f64>,
    pub(super) complete_seconds: Option<f64>,
    pub(super) bytes_read: Option<u64>,
    pub(super) working_set_frames: Option<u64>,
    pub(super) frames_prefetched: Option<u64>,
    pub(super) faults: Option<Faults>,
    pub(super) blocked_seconds: Option<Vec<f64>>,
    pub(super) ttr: Option<Vec<InsideTtr>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Faults {
    pub(super) demand: u64,
    pub(super) neighbours: u64,
    pub(super) waited: u64,
    pub(super) device: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct InsideTtr {
    window_seconds: f64,
    utilization: f64,
    mean_seconds: f64,
    worst_seconds: f64,
}

impl Inside {
    /// Of the vCPU that waited longest; without what an empty translation cache costs.
    pub(super) fn ttr(&self, window_seconds: f64, utilization: f64) -> Option<f64> {
        let same = |ttr: &&InsideTtr| {
            (ttr.window_seconds - window_seconds).abs() < 1e-9
                && (ttr.utilization - utilization).abs() < 1e-9
        };
        self.ttr.as_ref()?.iter().find(same).map(|ttr| ttr.worst_seconds)
    }
}

/// A mode of restore, and where its working set is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Eager,
    Lazy,
    /// By the accessed bits before the save.
    Scan,
    /// By the same, and by what it touched after a live save went on.
    Trace,
    /// By what earlier restores needed, and the same.
    Learnt,
}

impl Mode {
    pub(super) const ALL: [Self; 5] =
        [Self::Eager, Self::Lazy, Self::Scan, Self::Trace, Self::Learnt];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::Scan => "scan",
            Self::Trace => "trace",
            Self::Learnt => "learnt",
        }
    }

    /// As the command line has it.
    fn word(self) -> &'static str {
        match self {
            Self::Eager | Self::Lazy => self.name(),
            Self::Scan | Self::Trace | Self::Learnt => "working-set",
        }
    }
}

/// For `fathom save`; nothing for what it does anyway.
pub(super) fn compression(how: &str) -> Result<Vec<String>> {
    Ok(match how {
        "none" => Vec::new(),
        "lz4" | "zstd" => vec!["--compress".to_owned(), how.to_owned()],
        _ => bail!("no compression is called {how}: there are none, lz4, zstd"),
    })
}

fn command(place: &Place<'_>) -> Command {
    let mut command = Command::new(fathom_program());
    command.env("XDG_RUNTIME_DIR", place.sockets.path());
    command
}

pub(super) fn start(place: &Place<'_>, subject: &Subject) -> Result<Running> {
    let guest = subject.guest(place.kit)?.named(NAME, &report(place));
    let mut command = guest.command(Vmm::Fathom)?;
    command.env("XDG_RUNTIME_DIR", place.sockets.path());
    Running::start_listening("fathom", command)
}

/// To a folder, where nothing is. The guest ends.
pub(super) fn save(place: &Place<'_>, running: &mut Running, path: &Path) -> Result<()> {
    output(command(place).args(["save", NAME]).arg(path).arg("--stop").args(&place.compress))?;
    wait_for_end(running)
}

/// To a folder, where nothing is, and the guest goes on.
pub(super) fn save_live(place: &Place<'_>, path: &Path) -> Result<()> {
    output(command(place).args(["save", NAME]).arg(path).arg("--live").args(&place.compress))?;
    Ok(())
}

/// What the restore needs is written back to the snapshot if it is to be `learnt`.
pub(super) fn restore(place: &Place<'_>, path: &Path, mode: Mode, learnt: bool) -> Result<Running> {
    let report = report(place);
    if report.exists() {
        fs::remove_file(&report)?;
    }
    let mut command = command(place);
    command.arg("restore").arg(path).arg("--report").arg(report);
    command.args(["--mode", mode.word(), "--learn", if learnt { "true" } else { "false" }]);
    Running::start_listening("fathom", command)
}

/// The same snapshot once more: files that nobody changes are in both, and each has a working set of its own.
pub(super) fn twin(path: &Path) -> Result<PathBuf> {
    let twin = path.with_extension("learnt");
    if twin.exists() {
        fs::remove_dir_all(&twin)?;
    }
    fs::create_dir(&twin).with_context(|| format!("create {}", twin.display()))?;
    for file in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let file = file?;
        fs::hard_link(file.path(), twin.join(file.file_name()))?;
    }
    Ok(twin)
}

/// Ends the guest; none if the report says nothing of a restore.
pub(super) fn end(place: &Place<'_>, running: &mut Running) -> Result<Option<Inside>> {
    output(command(place).args(["stop", NAME]))?;
    wait_for_end(running)?;
    let report = report(place);
    let text = fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    inside(&text)
}

fn inside(report: &str) -> Result<Option<Inside>> {
    let mut report: serde_json::Value = serde_json::from_str(report)?;
    match report.get_mut("restore").map(serde_json::Value::take) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(restore) => Ok(serde_json::from_value(restore).context("`restore` of the report")?),
    }
}

fn wait_for_end(running: &mut Running) -> Result<()> {
    let begun = running.elapsed();
    while running.elapsed() < begun + END_LONGEST {
        if let Next::Ended = running.next(END_LONGEST) {
            return running.check_end();
        }
    }
    bail!(running.complaint("did not end"))
}

fn report(place: &Place<'_>) -> PathBuf {
    place.folder.join("report.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_may_say_less() {
        assert!(inside("{}").unwrap().is_none() && inside("{\"restore\":null}").unwrap().is_none());
        let text = r#"{"restore":{"mode":"lazy","first_instruction_seconds":0.01,
            "faults":{"demand":3,"new":1}}}"#;
        let some = inside(text).unwrap().unwrap();
        assert_eq!((some.first_instruction_seconds, some.bytes_read), (Some(0.01), None));
        assert_eq!(some.faults.unwrap().demand, 3);
        assert!(inside(r#"{"restore":{"bytes_read":"many"}}"#).is_err());
    }
}
