//! Fathom beside QEMU's microvm, both on KVM: in the lab's machine, or here where KVM is real.
//!
//! This program measures itself there: the machine runs it with `--here`.

use super::lab_measure::{self, Figures};
use super::median;
use crate::kit::{self, Kit};
use crate::lab;
use crate::machine::{self, build_fathom};
use crate::workspace;
use anyhow::{Context, Result};
use serde::Serialize;
use std::ffi::OsString;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct LabBootArgs {
    /// Boots of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Look at idle guests for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    idle: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// On this machine's KVM, whatever it is
    #[arg(long, hide = true)]
    here: bool,
}

/// The targets.
const RATIO_MAX: f64 = 0.8;
const IDLE_MAX_PERCENT: f64 = 3.0;
const MEMORY_MAX_MIB: f64 = 15.0;

/// A run that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(3600);

pub(super) fn run(args: &LabBootArgs) -> Result<()> {
    if args.here {
        return measure(args, &Kit::open()?);
    }
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    build_fathom()?;
    if lab::is_direct() {
        return measure(args, &kit);
    }
    let this = std::env::current_exe().context("find this program")?;
    let mut files = vec![this.clone(), machine::fathom_program()];
    files.extend([kit.kernel().image(), kit.initramfs()]);
    files.extend(kit.qemu()?.files());
    let mut words: Vec<OsString> = vec![this.into(), "bench".into(), "lab-boot".into()];
    words.extend(["--here".into(), format!("--runs={}", args.runs).into()]);
    words.push(format!("--idle={}", args.idle).into());
    words.extend(args.json.then(|| "--json".into()));
    words.splice(0..0, target_folder());
    let program = lab::Program { words, files: &files, results: None };
    lab::run_program(&kit, program, LONGEST, lab::Processors::Two)
}

/// The program in the lab's machine must find Fathom where it is here.
fn target_folder() -> Vec<OsString> {
    let mut setting = OsString::from("CARGO_TARGET_DIR=");
    setting.push(workspace::target());
    vec!["env".into(), setting]
}

fn measure(args: &LabBootArgs, kit: &Kit) -> Result<()> {
    let figures = lab_measure::all(kit, args.runs, Duration::from_secs(args.idle))?;
    let report = Report::new(figures).context("give --runs of at least 1")?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// What is printed. `ratio` is Fathom's median boot by QEMU's.
#[derive(Serialize)]
struct Report {
    runs: usize,
    ratio: f64,
    fathom: Row,
    qemu: Row,
}

#[derive(Serialize)]
struct Row {
    boot_seconds: f64,
    boots: Vec<f64>,
    idle_percent: f64,
    overhead_mib: f64,
}

impl Report {
    fn new([fathom, qemu]: [Figures; 2]) -> Option<Self> {
        let (runs, fathom, qemu) = (fathom.boots.len(), Row::new(fathom)?, Row::new(qemu)?);
        Some(Self { runs, ratio: fathom.boot_seconds / qemu.boot_seconds, fathom, qemu })
    }

    fn table(&self) -> String {
        let Self { runs, ratio, fathom, qemu } = self;
        let mut table = format!(
            "on KVM, median of {runs} boots, {} MiB{:>8} {:>8}  target\n",
            machine::MEMORY_MIB,
            "fathom",
            "qemu"
        );
        let mut row = |name: &str, fathom: f64, qemu: f64, target: String| {
            table += &format!("{name:36} {fathom:8.2} {qemu:8.2}  {target}\n");
        };
        let boots = (fathom.boot_seconds, qemu.boot_seconds);
        row(
            "start to /init, s",
            boots.0,
            boots.1,
            format!("ratio {ratio:.2}, at most {RATIO_MAX}"),
        );
        let idle = format!("at most {IDLE_MAX_PERCENT}");
        row("idle guest, % of a processor", fathom.idle_percent, qemu.idle_percent, idle);
        let memory = format!("at most {MEMORY_MAX_MIB}");
        row("memory beside the guest's, MiB", fathom.overhead_mib, qemu.overhead_mib, memory);
        table
    }
}

impl Row {
    fn new(figures: Figures) -> Option<Self> {
        Some(Self {
            boot_seconds: median(figures.boots.clone())?,
            boots: figures.boots,
            idle_percent: figures.idle_percent,
            overhead_mib: figures.overhead_bytes as f64 / f64::from(1 << 20),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared_and_all_targets_shown() {
        let figures = |boots: &[f64]| Figures {
            boots: boots.to_vec(),
            idle_percent: 1.5,
            overhead_bytes: 3 << 19,
        };
        let report = Report::new([figures(&[3.0, 1.0, 2.0]), figures(&[4.0, 4.0, 9.0])]).unwrap();
        assert_eq!((report.ratio, report.fathom.overhead_mib), (0.5, 1.5));
        let table = report.table();
        assert!(table.contains("ratio 0.50, at most 0.8") && table.lines().count() == 4, "{table}");
        assert!(Report::new([figures(&[]), figures(&[])]).is_none());
    }
}
