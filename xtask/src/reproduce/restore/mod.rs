//! Row `restore`: how soon a guest that was saved in the middle of its work does its work again, by mode of restore and
//! beside QEMU.
//!
//! The same guest, kernel, disk and load for all. What is compared is seen from outside: the guest's load says when it
//! has done a piece of work. Each restore is proven by what only the guest that was saved can know.

mod beats;
mod cache;
mod fathom;
mod figures;
mod guests;
mod monitor;
mod neighbours;
mod plot;
mod qemu;

use super::{folder, write_json};
use crate::bench::Others;
use crate::kit::{self, GuestArgs};
use crate::machine::build_fathom;
use anyhow::{Context, Result};
use cache::Cache;
use figures::{Figures, GuestFigures};
use guests::Subject;
use monitor::{Monitor, Place, Saved, Way};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const FOLLOW: Duration = Duration::from_secs(6);
const QUICK_FOLLOW: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct RestoreArgs {
    /// Guests, separated by commas: kernel, redis, web, sqlite3, build; NAME:MIB for one with another memory
    #[arg(long, value_delimiter = ',', value_name = "GUEST")]
    guests: Vec<String>,
    /// Modes of `fathom restore` and, beside them, qemu (a stream) and qemu-mapped (of Debian's backports); all if not
    /// said
    #[arg(long, value_delimiter = ',', value_name = "MODE")]
    modes: Vec<String>,
    /// Whether the snapshot is in the host's page cache
    #[arg(long, value_delimiter = ',', value_name = "CACHE")]
    caches: Vec<Cache>,
    /// How ours is compressed: none, lz4, zstd
    #[arg(long, default_value = "none", value_name = "HOW")]
    compress: String,
    /// Restores of each, by turns; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// How long a guest is followed after its first beat, 6 if not said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// One small guest, once, without peers: whether it works, not how fast
    #[arg(long)]
    quick: bool,
    /// Fail where a working set that was learnt leaves more than 10 % of lazy's demand faults
    #[arg(long)]
    check: bool,
    /// Instead, without a clock: how many demand faults there are by which neighbours come with a frame
    #[arg(long, conflicts_with_all = ["modes", "caches", "check"])]
    neighbours: bool,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &RestoreArgs) -> Result<()> {
    let kit = kit::prepare(&GuestArgs::default())?;
    build_fathom()?;
    let mut ways = Way::named(&args.modes)?;
    let mut subjects = Subject::named(&args.guests)?;
    let mut caches = args.caches.clone();
    if args.quick {
        if args.modes.is_empty() {
            ways.retain(|way| way.monitor == Monitor::Fathom);
        }
        if args.guests.is_empty() {
            subjects = vec![Subject::smallest()];
        }
    }
    if caches.is_empty() {
        caches = if args.quick { vec![Cache::Warm] } else { vec![Cache::Warm, Cache::Cold] };
    }
    let folder = folder()?.join("restore");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let compress = fathom::compression(&args.compress)?;
    let follow = args.seconds.map(Duration::from_secs);
    let follow = follow.unwrap_or(if args.quick { QUICK_FOLLOW } else { FOLLOW });
    let (sockets, live) = (tempfile::tempdir()?, ways.iter().any(Way::is_live));
    let place = Place { kit: &kit, folder, sockets, follow, compress, live };
    if args.neighbours {
        return count_neighbours(args, &place, &subjects);
    }
    let runs = if args.quick { 1 } else { args.runs };
    let mut figures = Figures::new(runs);
    print!("{}", figures.head());
    for subject in &subjects {
        let others = Others::from_now()?;
        let mut guest = measure(&place, subject, &ways, &caches, runs)?;
        guest.others_processors = others.processors()?;
        plot::draw(&guest)?;
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
    plot::draw_all(&figures)?;
    println!("pictures: {}", super::folder()?.join("restore*.svg").display());
    Ok(())
}

fn count_neighbours(args: &RestoreArgs, place: &Place<'_>, subjects: &[Subject]) -> Result<()> {
    let mut counted = Vec::new();
    print!("{}", neighbours::head());
    for subject in subjects {
        let one = neighbours::count(place, subject)?;
        print!("{}", one.text());
        counted.push(one);
        if let Some(file) = &args.json {
            write_json(file, &counted)?;
        }
    }
    Ok(())
}

/// Saved once by each monitor; restores by turns, and who begins changes with every run.
fn measure(
    place: &Place<'_>,
    subject: &Subject,
    ways: &[Way],
    caches: &[Cache],
    runs: u64,
) -> Result<GuestFigures> {
    let mut saved: BTreeMap<Monitor, Saved> = BTreeMap::new();
    let mut guest = GuestFigures::new(subject);
    for way in ways {
        if let Entry::Vacant(entry) = saved.entry(way.monitor) {
            let one = match way.monitor.save(place, subject) {
                // A peer that fails is told of, and stops nobody.
                Err(error) if way.monitor != Monitor::Fathom => {
                    guest.trouble(way.monitor.name(), &error);
                    continue;
                }
                one => one?,
            };
            eprintln!("{}: saved by {}", subject.name(), way.monitor.name());
            guest.add_saved(way.monitor.name(), &one);
            entry.insert(one);
        }
    }
    for run in 0..runs as usize {
        for &cache in caches {
            for turn in 0..ways.len() {
                let way = &ways[(run + turn) % ways.len()];
                let Some(saved) = saved.get(&way.monitor) else { continue };
                let sample = match way.restore(place, subject, saved, cache) {
                    Err(error) if way.monitor != Monitor::Fathom => {
                        guest.trouble(way.name(), &error);
                        continue;
                    }
                    sample => sample?,
                };
                eprintln!(
                    "{}, run {} of {runs}: {:12} {:4}, first beat after {:.0} ms",
                    subject.name(),
                    run + 1,
                    way.name(),
                    cache.name(),
                    sample.outside.first_beat_seconds * 1e3
                );
                guest.add([way.monitor.name(), way.name()], cache, sample);
            }
        }
    }
    for monitor in saved.keys() {
        // Some hundred MiB each.
        monitor.forget(place, subject)?;
    }
    Ok(guest)
}
