//! Row `substrate`: guests that are held ready in memory, and VMs that are made of them: how many a GiB holds, how soon
//! one, ten and a hundred run and say something, what memory each then has to itself. Beside QEMU's way.

mod docked;
mod figures;
mod guests;
mod ours;
mod process;
mod qemu;

use super::{folder, write_json};
use crate::bench::Others;
use crate::kit::{self, GuestArgs, Kit};
use crate::machine::{Next, Running, build_fathom};
use anyhow::{Context, Result, bail};
use figures::{Figures, GuestFigures, Sample};
use guests::Subject;
use process::{Memory, Vms};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// After the command: when memory is looked at.
const LOOKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// A guest that is silent for so long has failed.
const LONGEST: Duration = Duration::from_secs(240);
/// Then it does what it always does.
const BEATS: u64 = 10;

#[derive(clap::Args)]
pub(crate) struct SubstrateArgs {
    /// Guests, separated by commas: kernel, web, redis
    #[arg(long, value_delimiter = ',', value_name = "GUEST")]
    guests: Vec<String>,
    /// Monitors, separated by commas: fathom, qemu, qemu-backports; all if not said
    #[arg(long, value_delimiter = ',', value_name = "MONITOR")]
    monitors: Vec<String>,
    /// How many VMs are made at once
    #[arg(long, value_delimiter = ',', value_name = "N", default_values_t = [1, 10, 100])]
    at_once: Vec<u32>,
    /// Activations of each, by turns; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// One small guest, ours alone, once, one and ten at a time: whether it works, not how fast
    #[arg(long)]
    quick: bool,
    /// Fail where a VM of ours has 2 MiB or more to itself before its guest does anything
    #[arg(long)]
    check: bool,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Where templates, consoles and sockets are.
struct Place<'a> {
    kit: &'a Kit,
    folder: PathBuf,
    /// Names of sockets are short.
    sockets: TempDir,
}

/// A saved guest, of which VMs are made.
struct Template {
    path: PathBuf,
    /// What it takes of a disk or of memory: holes are not counted.
    bytes: u64,
    /// The last that its guest had done.
    beat: u64,
    /// What it took to save it.
    seconds: f64,
}

/// VMs that were made at once.
struct Started {
    /// From the command until it says that all run.
    running_seconds: f64,
    /// Of each, since the command.
    first_beats: Vec<Duration>,
    begun: Instant,
    vms: Vms,
}

enum Monitor {
    Fathom,
    Qemu(&'static str, qemu::Program),
}

impl Monitor {
    fn named(names: &[String], kit: &Kit, quick: bool) -> Result<Vec<Self>> {
        let known = ["fathom", "qemu", "qemu-backports"];
        if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
            bail!("no monitor is called {unknown}: there are {}", known.join(", "));
        }
        let wanted = |name: &&str| match names {
            [] => *name == "fathom" || !quick,
            names => names.iter().any(|wanted| wanted == name),
        };
        let monitor = |name| {
            Ok(match name {
                "fathom" => Self::Fathom,
                "qemu" => Self::Qemu(name, None),
                _ => Self::Qemu(name, Some(kit.backports_qemu()?)),
            })
        };
        known.into_iter().filter(wanted).map(monitor).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Fathom => "fathom",
            Self::Qemu(name, _) => name,
        }
    }

    fn save(&self, place: &Place<'_>, subject: &Subject) -> Result<Template> {
        match self {
            Self::Fathom => ours::save(place, subject),
            Self::Qemu(name, program) => qemu::save(place, subject, name, program),
        }
    }

    fn measure(
        &self,
        place: &Place<'_>,
        subject: &Subject,
        template: &Template,
        count: u32,
    ) -> Result<Sample> {
        let standing = match self {
            Self::Fathom => ours::stand(place, template, count),
            Self::Qemu(_, program) => qemu::stand(place, subject, program, template, count),
        }?;
        let mut looks: Vec<Vec<Memory>> = vec![standing.memory()?];
        drop(standing);
        let started = match self {
            Self::Fathom => ours::activate(place, template, count),
            Self::Qemu(_, program) => qemu::activate(place, subject, program, template, count),
        }?;
        for look in LOOKS {
            sleep(look.saturating_sub(started.begun.elapsed()));
            looks.push(started.vms.memory()?);
        }
        Ok(Sample::new(started.running_seconds, &started.first_beats, &looks))
    }
}

impl Place<'_> {
    /// For consoles.
    fn empty_folder(&self) -> Result<PathBuf> {
        let folder = self.folder.join("consoles");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}

pub(super) fn run(args: &SubstrateArgs) -> Result<()> {
    let kit = kit::prepare(&GuestArgs::default())?;
    build_fathom()?;
    let monitors = Monitor::named(&args.monitors, &kit, args.quick)?;
    let mut subjects = Subject::named(&args.guests)?;
    if args.quick && args.guests.is_empty() {
        subjects = vec![Subject::smallest()];
    }
    let at_once = if args.quick { vec![1, 10] } else { args.at_once.clone() };
    let folder = folder()?.join("substrate");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let place = Place { kit: &kit, folder, sockets: tempfile::tempdir()? };
    let runs = if args.quick { 1 } else { args.runs };
    let mut figures = Figures::new(runs);
    print!("{}", figures.head());
    for subject in &subjects {
        let others = Others::from_now()?;
        let mut guest = measure(&place, subject, &monitors, &at_once, runs)?;
        guest.others_processors = others.processors()?;
        print!("{}", guest.text());
        if args.check {
            guest.check()?;
        }
        figures.guests.push(guest);
        // What there is, should a later guest fail.
        if let Some(file) = &args.json {
            write_json(file, &figures)?;
        }
    }
    figures.add_docked(docked::dock(&place, &subjects, args.quick));
    figures.add_cluster(docked::cluster(&place, &Subject::smallest()));
    print!("{}", figures.docked_text());
    if let Some(file) = &args.json {
        write_json(file, &figures)?;
    }
    if args.check {
        figures.check()?;
    }
    figures.draw(&super::folder()?.join("substrate.svg"))?;
    println!("picture: {}", super::folder()?.join("substrate.svg").display());
    Ok(())
}

/// Saved once by each monitor; activations by turns, and who begins changes with every run.
fn measure(
    place: &Place<'_>,
    subject: &Subject,
    monitors: &[Monitor],
    at_once: &[u32],
    runs: u64,
) -> Result<GuestFigures> {
    let mut guest = GuestFigures::new(subject, subject.template_bytes(place.kit)?);
    let mut templates = Vec::new();
    for monitor in monitors {
        match (monitor.save(place, subject), monitor) {
            // A peer that fails is told of, and stops nobody.
            (Err(error), Monitor::Qemu(name, _)) => guest.trouble(name, &error),
            (template, _) => {
                let template = template?;
                guest.add_template(monitor.name(), &template);
                templates.push((monitor, template));
            }
        }
    }
    for run in 0..runs as usize {
        for &count in at_once {
            for turn in 0..templates.len() {
                let (monitor, template) = &templates[(run + turn) % templates.len()];
                let sample = match (monitor.measure(place, subject, template, count), monitor) {
                    (Err(error), Monitor::Qemu(name, _)) => {
                        guest.trouble(name, &error);
                        continue;
                    }
                    (sample, _) => sample?,
                };
                eprintln!(
                    "{}, run {} of {runs}: {:14} {count:3} at once: all run after {:.0} ms",
                    subject.name(),
                    run + 1,
                    monitor.name(),
                    sample.running_seconds * 1e3
                );
                guest.add(monitor.name(), count, sample);
            }
        }
    }
    for (_, template) in templates {
        // Some hundred MiB each.
        fs::remove_dir_all(template.path)?;
    }
    Ok(guest)
}

/// Until the guest does what it always does.
fn wait_for_beats(running: &mut Running) -> Result<()> {
    let begun = running.elapsed();
    while running.elapsed() < begun + LONGEST {
        match running.next(LONGEST) {
            Next::Event(event) if !event.text("error").is_empty() => {
                let error = event.text("error").to_owned();
                bail!(running.complaint(&format!("failed: {error}")));
            }
            Next::Event(event) if event.is("beat") && event.number("n") >= BEATS => return Ok(()),
            Next::Event(_) => {}
            Next::Quiet => bail!(running.complaint("is silent")),
            Next::Ended => bail!(running.complaint("ended")),
        }
    }
    bail!(running.complaint("does not beat"))
}

/// What the files of a folder take of the disk.
fn size(folder: &Path) -> Result<u64> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let blocks = entries.map(|entry| Ok(entry?.metadata()?.blocks()));
    blocks.sum::<Result<u64>>().map(|blocks| blocks * 512)
}
