//! Fixed amounts of work, the same static program everywhere: as an ordinary process of this
//! host, in Fathom, in QEMU's translator and in User-Mode Linux, by turns.
//!
//! What is compared is the time by the guest's own clock, and that clock is checked against ours
//! by when the console's lines arrive. A workload whose result differs between engines has no
//! time worth comparing, and fails the benchmark.

mod plot;
mod report;
mod session;
mod versions;

use crate::kit::{self, Kit};
use crate::machine::{Vmm, build_fathom};
use crate::workspace;
use anyhow::{Context, Result, bail};
use report::Report;
use serde::Serialize;
use session::{Place, Session};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct EnginesArgs {
    /// Runs of each engine, by turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Which engines (qemu-backports: the QEMU of Debian's backports, mostly newer); the first is what the others are compared to
    #[arg(long, value_delimiter = ',', default_value = "native,fathom,qemu,uml")]
    engines: Vec<Engine>,
    /// Only these workloads, or all of these groups
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    only: Vec<String>,
    /// How much work, in percent: 100 takes an ordinary process about a second in all
    #[arg(long, default_value_t = 100, value_name = "PERCENT")]
    scale: u64,
    /// Give up an engine's run after so many seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    limit: u64,
    /// For qemu, another than the host's or, where it has none, Debian's
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Tell which workloads there are, and do nothing
    #[arg(long)]
    list: bool,
}

/// What does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Native,
    Fathom,
    Qemu,
    /// Of Debian's backports
    QemuBackports,
    Uml,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fathom => "fathom",
            Self::Qemu => "qemu",
            Self::QemuBackports => "qemu-bpo",
            Self::Uml => "uml",
        }
    }

    /// None: an ordinary process.
    fn vmm(self) -> Option<Vmm> {
        match self {
            Self::Native => None,
            Self::Fathom => Some(Vmm::Fathom),
            Self::Qemu | Self::QemuBackports => Some(Vmm::Qemu),
            Self::Uml => Some(Vmm::UserMode),
        }
    }

    /// User-Mode Linux knows one processor.
    fn cpus_max(self) -> u64 {
        if self == Self::Uml { 1 } else { 2 }
    }
}

/// As the guest program lists it.
#[derive(Clone, Debug, Serialize)]
struct Workload {
    name: String,
    group: String,
    cpus: u64,
}

pub(super) fn run(args: &EnginesArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    let workloads = chosen(session::list(&kit)?, &args.only)?;
    if args.list {
        workloads.iter().for_each(|w| println!("{:16} {:10} {} vCPU", w.name, w.group, w.cpus));
        return Ok(());
    }
    let (engines, mut troubles) = ready(&kit, args);
    let place = place(&kit, args, &engines, &workloads, &mut troubles)?;
    let sessions = measure(&kit, args, &engines, &workloads, &place, &mut troubles);
    let versions = versions::of(&kit, args, &engines);
    let report =
        Report::new(args.runs, args.scale, &engines, versions, &workloads, &sessions, troubles);
    let picture = workspace::target().join("bench-engines.svg");
    plot::draw(&picture, &report)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}\npicture: {}\n", report.table(), picture.display());
    }
    if report.wrong_results() > 0 {
        bail!("{} workloads gave different results on different engines", report.wrong_results());
    }
    Ok(())
}

fn chosen(all: Vec<Workload>, only: &[String]) -> Result<Vec<Workload>> {
    let fits =
        |word: &String, workload: &Workload| [&workload.name, &workload.group].contains(&word);
    if let Some(word) = only.iter().find(|word| !all.iter().any(|workload| fits(word, workload))) {
        bail!("no workload or group is called {word}: see --list");
    }
    let wanted =
        |workload: &Workload| only.is_empty() || only.iter().any(|word| fits(word, workload));
    Ok(all.into_iter().filter(wanted).collect())
}

/// The engines that can be had, and why not the others.
fn ready(kit: &Kit, args: &EnginesArgs) -> (Vec<Engine>, Vec<String>) {
    let (mut engines, mut troubles) = (Vec::new(), Vec::new());
    for &engine in &args.engines {
        let found = match engine {
            Engine::Native => Ok(()),
            Engine::Fathom => build_fathom(),
            Engine::QemuBackports => kit.backports_qemu().map(drop),
            Engine::Qemu if args.qemu.is_some() => Ok(()),
            Engine::Qemu => kit.qemu().map(drop),
            Engine::Uml => kit.user_mode_linux().map(drop),
        };
        match found {
            Ok(()) => engines.push(engine),
            Err(error) => {
                heard(&mut troubles, format!("{}: left out: {error:#}", engine.name()));
            }
        }
    }
    (engines, troubles)
}

/// At once, and again below the table.
fn heard(troubles: &mut Vec<String>, trouble: String) {
    eprintln!("! {trouble}");
    troubles.push(trouble);
}

fn place(
    kit: &Kit,
    args: &EnginesArgs,
    engines: &[Engine],
    workloads: &[Workload],
    troubles: &mut Vec<String>,
) -> Result<Place> {
    let scratch = workspace::target().join("bench-engines.raw");
    write_scratch(&scratch)?;
    let limit = Duration::from_secs(args.limit);
    let (scale, qemu) = (args.scale, args.qemu.clone());
    let mut place = Place { disk: None, root: None, scratch, scale, limit, qemu };
    if workloads.iter().any(|workload| workload.group == "programs") {
        let is_native = engines.contains(&Engine::Native);
        if let Err(error) = place.add_programs(kit, is_native) {
            heard(troubles, format!("programs: left out: {error:#}"));
        }
    }
    Ok(place)
}

/// As the guest program has it: as much to read, and as much to write after that.
const SCRATCH_BYTES: u64 = 128 << 20;

/// Bytes that differ, written once; holes in a file would be read faster than a disk is. It is in
/// the host's memory afterwards, so that no engine's first run is slower for being the first.
fn write_scratch(path: &Path) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old.len() as u64 == SCRATCH_BYTES) {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for word in 0..SCRATCH_BYTES / 8 {
            file.write_all(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())?;
        }
        file.flush()
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// All runs of all engines, by turns, and who begins changes with every run. An engine that
/// fails is heard of and does not stop the others.
fn measure(
    kit: &Kit,
    args: &EnginesArgs,
    engines: &[Engine],
    workloads: &[Workload],
    place: &Place,
    troubles: &mut Vec<String>,
) -> Vec<Session> {
    let mut sessions = Vec::new();
    for run in 0..args.runs as usize {
        for turn in 0..engines.len() {
            let engine = engines[(run + turn) % engines.len()];
            for cpus in 1..=engine.cpus_max() {
                let names: Vec<&str> =
                    workloads.iter().filter(|w| w.cpus == cpus).map(|w| w.name.as_str()).collect();
                if names.is_empty() {
                    continue;
                }
                let session = session::run(kit, engine, cpus, &names, place);
                eprintln!("run {} of {}: {}", run + 1, args.runs, session.summary());
                session.troubles().into_iter().for_each(|trouble| heard(troubles, trouble));
                sessions.push(session);
            }
        }
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_chosen_by_name_or_group() {
        let all: Vec<Workload> = [("alu", "integer"), ("sort", "integer"), ("x87", "float")]
            .map(|(name, group)| Workload { name: name.into(), group: group.into(), cpus: 1 })
            .to_vec();
        let names = |only: &[&str]| -> Result<Vec<String>> {
            let only: Vec<String> = only.iter().map(|word| (*word).to_owned()).collect();
            Ok(chosen(all.clone(), &only)?.into_iter().map(|workload| workload.name).collect())
        };
        assert_eq!(names(&["integer"]).unwrap(), ["alu", "sort"]);
        assert_eq!(names(&["x87", "alu"]).unwrap(), ["alu", "x87"]);
        assert_eq!(names(&[]).unwrap().len(), 3);
        assert!(names(&["integer", "dance"]).is_err());
    }
}
