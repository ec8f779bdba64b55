//! Row `esx`: memory goes to the guest that uses it. Balloons, idle sampling, the idle-memory tax, frames that guests have
//! alike, and a mix of guests that are promised more than there is.

mod balloon;
mod daemon;
mod frames;
mod ksm;
mod mix;
mod sampling;
mod sharing;
mod tax;

use super::place::Place;
use super::{folder, write_json};
use crate::kit::GuestArgs;
use crate::machine::{Event, Next, Running};
use anyhow::{Result, bail};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BOOT_LONGEST: Duration = Duration::from_secs(120);
/// So long a console that has not answered is not asked again.
const LOOK: Duration = Duration::from_secs(1);
const PAPER: &str = "Waldspurger: Memory resource management in VMware ESX server, OSDI 2002";

#[derive(clap::Args)]
pub(crate) struct EsxArgs {
    /// Only this part; all that there are if not said
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Short phases, and each tax once
    #[arg(long)]
    quick: bool,
    /// Fail where what is counted is not as it should be; times are not judged
    #[arg(long)]
    check: bool,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// A guest with a balloon beside one that was configured without that memory, with a file load (1)
    Balloon,
    /// Identical guests, and what they have alike, against all that they have alike and beside the kernel's KSM (2)
    Sharing,
    /// Five guests that are promised twice what the host has, through a change of loads and a spike: by the daemon, by
    /// equal parts, by swap alone, and with as much as they take (5)
    Mix,
    /// Random frames against a log of all accesses, of a guest that touches known sizes (4)
    Sampling,
    /// An idle guest that has touched all its memory beside one that pages, with tax 0 and 0.75 (3)
    Tax,
}

#[derive(Serialize)]
struct Figures {
    row: &'static str,
    paper: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    balloon: Option<balloon::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mix: Option<mix::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling: Option<sampling::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sharing: Option<sharing::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tax: Option<tax::Figures>,
}

pub(super) fn run(args: &EsxArgs) -> Result<()> {
    let place = Place::translator();
    let kit = place.kit(&GuestArgs::default())?;
    let pictures = folder()?;
    let mut figures = Figures {
        row: "esx",
        paper: PAPER,
        balloon: None,
        mix: None,
        sampling: None,
        sharing: None,
        tax: None,
    };
    let mut troubles = Vec::new();
    let wanted = |part| args.part.is_none_or(|only| only == part);
    println!("esx\npaper: {PAPER}");
    if wanted(Part::Balloon) {
        let part = balloon::measure(&place, &kit, args.quick)?;
        print!("\n{}", part.table());
        troubles.extend(part.troubles());
        figures.balloon = Some(part);
    }
    if wanted(Part::Sharing) {
        let part = sharing::measure(&place, &kit, args.quick, &pictures)?;
        print!("\n{}", part.table());
        troubles.extend(part.troubles());
        figures.sharing = Some(part);
    }
    if wanted(Part::Tax) {
        let part = tax::measure(&place, &kit, args.quick, &pictures)?;
        print!("\n{}", part.table());
        troubles.extend(part.troubles());
        figures.tax = Some(part);
    }
    if wanted(Part::Sampling) {
        let part = sampling::measure(&place, &kit, args.quick, &pictures)?;
        print!("\n{}", part.table());
        troubles.extend(part.troubles());
        figures.sampling = Some(part);
    }
    if wanted(Part::Mix) {
        let part = mix::measure(&place, &kit, args.quick, &pictures)?;
        print!("\n{}", part.table());
        troubles.extend(part.troubles());
        figures.mix = Some(part);
    }
    println!("pictures: {}", pictures.join("esx-*.svg").display());
    if let Some(file) = &args.json {
        write_json(file, &figures)?;
    }
    troubles.iter().for_each(|trouble| println!("! {trouble}"));
    if args.check && !troubles.is_empty() {
        bail!("{} figures are not as they should be", troubles.len());
    }
    Ok(())
}

/// A guest with `fathom.run=sh`, whose sockets are in a folder for itself, when it has done `command`.
fn start_shell(mut vm: Command, sockets: &Path, command: &str) -> Result<Running> {
    vm.env("XDG_RUNTIME_DIR", sockets);
    let mut running = Running::start_listening("fathom", vm)?;
    say_until(&mut running, command, "shell")?;
    Ok(running)
}

/// For the shell. Its echo is no event: of that the quote is a part.
fn says(event: &str) -> String {
    format!("echo '@fathom {{\"event\":\"{event}\"}}'")
}

/// What is said to a console that nobody reads yet is lost.
fn say_until(running: &mut Running, command: &str, event: &str) -> Result<()> {
    while running.elapsed() < BOOT_LONGEST {
        running.say(&format!("{command}; {}", says(event)))?;
        match running.next(LOOK) {
            Next::Event(said) if said.is(event) => return Ok(()),
            Next::Event(_) | Next::Quiet => {}
            Next::Ended => bail!(running.complaint("has ended")),
        }
    }
    bail!(running.complaint("has no shell"))
}

fn wait(running: &mut Running, event: &str) -> Result<Event> {
    loop {
        match running.next(BOOT_LONGEST) {
            Next::Event(said) if said.is(event) => return Ok(said),
            Next::Event(_) => {}
            Next::Quiet => bail!(running.complaint("says nothing")),
            Next::Ended => bail!(running.complaint("has ended")),
        }
    }
}
