//! Row `geiger`: what of a guest's page cache is seen from outside, against what its kernel says.

mod disks;
mod faults;
mod placement;
mod programs;
mod score;
mod sizes;
mod truth;

use super::place::Place;
use super::write_json;
use crate::kit;
use anyhow::{Context, Result};
use disks::{Disks, FileSystem};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use truth::{Kind, Owner, Recording, Run, Truth};

/// Those that run on KVM unless others are asked for: one for each rule that is left there, or missing.
const KVM_LOADS: [&str; 6] = ["read", "write", "delete", "anonymous", "swap", "file-server"];
/// Memory of the guest, MiB; less where everything is slow.
const MEMORY_MIB: u64 = 192;
const KVM_MEMORY_MIB: u64 = 128;

/// Loads of the guest program (`fathom.run=cache:LOAD`), most for one way in which pages come and go; and programs of
/// Debian's.
const LOADS: [&str; 20] = [
    "read",
    "read-random",
    "write",
    "overwrite",
    "delete",
    "truncate",
    "anonymous",
    "copy-on-write",
    "map-resident",
    "map-read",
    "map-write",
    "swap",
    "direct-read",
    "direct-write",
    "slab",
    "file-server",
    "mail-spool",
    "sqlite3",
    "grep",
    "gcc",
];

#[derive(clap::Args)]
pub(crate) struct GeigerArgs {
    /// Only what the guest's kernel says
    #[arg(long)]
    truth_only: bool,
    /// Fail where less than 97 % of inserts or evictions are right or found
    #[arg(long, conflicts_with = "truth_only")]
    check: bool,
    #[command(flatten)]
    place: Place,
    /// Loads, separated by commas; LOAD:MIB for one of another size. All if not said, and some on KVM
    #[arg(long, value_delimiter = ',', value_name = "LOAD")]
    loads: Vec<String>,
    /// Also count what is wrong or missed, by what the kernel says before and after
    #[arg(long, conflicts_with = "truth_only")]
    faults: bool,
    /// Instead: a program of the kit's disk, with its arguments; single quotes hold a word together
    #[arg(long, value_name = "COMMAND", conflicts_with = "loads")]
    program: Vec<String>,
    /// What is on the disk
    #[arg(long, value_enum, default_value = "ext4")]
    file_system: FileSystem,
    /// Memory of the guest, 192 MiB if not said, on KVM 128
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u64,
    /// Instead: hits of a host cache that takes what the guest evicts, beside one that takes what it reads. With --check,
    /// fail where they are fewer, or less than 90 % of an ideal exclusive LRU's
    #[arg(long, conflicts_with_all = ["truth_only", "loads", "program"])]
    placement: bool,
    /// Instead: misses with other sizes of memory, predicted from the least of them, and counted. With --check, fail
    /// where predictions are off by more than 0.05 in the mean
    #[arg(long, conflicts_with_all = ["truth_only", "loads", "program", "placement", "engine"])]
    sizes: bool,
    /// With --placement: one size
    #[arg(long, requires = "placement")]
    quick: bool,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE", conflicts_with = "truth_only")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &GeigerArgs) -> Result<()> {
    if args.placement {
        let (place, json) = (args.place.clone(), args.json.clone());
        let asked = placement::Asked { place, quick: args.quick, check: args.check, json };
        return placement::run(&asked);
    }
    if args.sizes {
        return sizes::run(&args.place, args.check, args.json.as_ref());
    }
    let kit = args.place.kit(&kit::GuestArgs::with_disk())?;
    let disks = Disks::prepare(&kit, args.file_system)?;
    if args.place.is_in_lab() {
        let files = [disks.files(), vec![kit.disk()]].concat();
        return args.place.run_in_lab(&kit, &files, args.json.as_deref());
    }
    let logs = tempfile::tempdir()?;
    let log = logs.path().join("cache");
    let options = match args.truth_only {
        true => Vec::new(),
        false => vec!["--cache-log".to_owned(), log.display().to_string()],
    };
    let mut figures = Figures::default();
    for (number, load) in asked(args).iter().enumerate() {
        let program = programs::named(load);
        let command = match program {
            Some(program) => program.load(),
            None if args.program.is_empty() => load.replace(':', ","),
            None => format!("program {load}"),
        };
        let disk = programs::disk(program, &kit)?;
        let usual = if args.place.is_kvm() { KVM_MEMORY_MIB } else { MEMORY_MIB };
        let usual = args.memory.unwrap_or(usual);
        let memory_mib = program.map_or(usual, |program| program.memory_mib);
        let (load, command) = (load.as_str(), command.as_str());
        let (place, cpus, options) = (&args.place, args.cpus, options.as_slice());
        let run = Run { place, load: command, disk: &disk, memory_mib, cpus, options };
        let recording = place.attempt(|| truth::record(&kit, &disks, &run))?;
        if number == 0 {
            let columns = if args.truth_only { head(&recording) } else { scores_head(&recording) };
            println!("{columns}");
        }
        if args.truth_only {
            println!("{}", row(load, &recording));
        } else {
            let scores = score::score(&recording, &score::read(&log)?);
            println!("{}", scores_row(load, &scores));
            let [inserts, evictions] = scores.outside;
            if inserts + evictions > 0 {
                println!(
                    "  not judged: {inserts} inserts, {evictions} evictions of XFS's own blocks"
                );
            }
            figures.loads.push(LoadFigures::of(load, memory_mib, &scores));
            if args.faults {
                print!("{}", faults::counted(&recording, &scores));
            }
            if args.check {
                scores.check().with_context(|| format!("load {load}"))?;
            }
        }
    }
    match args.place.json(args.json.as_deref()) {
        Some(file) => write_json(file, &figures),
        None => Ok(()),
    }
}

/// Of all loads.
#[derive(Default, Serialize)]
struct Figures {
    loads: Vec<LoadFigures>,
}

#[derive(Serialize)]
struct LoadFigures {
    load: String,
    memory_mib: u64,
    inserts: KindFigures,
    evictions: KindFigures,
    /// Of the wrong evictions, those of blocks that nobody wanted any more.
    dropped: u64,
    /// Inserts and evictions of what the file system keeps outside the page cache, which are not judged.
    outside: [u64; 2],
}

/// See [`score::Score`].
#[derive(Serialize)]
struct KindFigures {
    right: u64,
    wrong: u64,
    missed: u64,
    late: u64,
    lag_50_seconds: Option<f64>,
    lag_95_seconds: Option<f64>,
}

impl LoadFigures {
    fn of(load: &str, memory_mib: u64, scores: &score::Scores) -> Self {
        let kind = |score: &score::Score| KindFigures {
            right: score.right,
            wrong: score.wrong,
            missed: score.missed,
            late: score.late,
            lag_50_seconds: score.lag(50),
            lag_95_seconds: score.lag(95),
        };
        let (inserts, evictions) = (kind(&scores.inserts), kind(&scores.evictions));
        let score::Scores { dropped, outside, .. } = *scores;
        Self { load: load.to_owned(), memory_mib, inserts, evictions, dropped, outside }
    }
}

fn scores_head(recording: &Recording) -> String {
    let mut head = format!("{}\n{:14}", recording.file_system, "");
    for what in [
        "inserts",
        "right",
        "found",
        "evictions",
        "right",
        "found",
        "late",
        "dropped",
        "lag 50",
        "lag 95 ms",
    ] {
        let _ = write!(head, "{what:>10}");
    }
    head
}

/// Counts of what there was, which percentage of what was inferred is right, and of what there was is found.
fn scores_row(load: &str, scores: &score::Scores) -> String {
    let mut row = format!("{load:14.14}");
    let percent = |part: Option<f64>| match part {
        Some(part) => format!("{:.2}", part * 100.0),
        None => "-".to_owned(),
    };
    for score in [&scores.inserts, &scores.evictions] {
        let [right, found] = [score.precision(), score.recall()].map(percent);
        let _ = write!(row, "{:>10}{right:>10}{found:>10}", score.right + score.missed);
    }
    let lag = |percent| match scores.evictions.lag(percent) {
        Some(lag) => format!("{:.1}", lag * 1e3),
        None => "-".to_owned(),
    };
    let (late, dropped) = (scores.evictions.late, scores.dropped);
    let _ = write!(row, "{late:>10}{dropped:>10}{:>10}{:>10}", lag(50), lag(95));
    row
}

/// Names of loads, or commands.
fn asked(args: &GeigerArgs) -> Vec<String> {
    let usual: &[&str] = if args.place.is_kvm() { &KVM_LOADS } else { &LOADS };
    match (args.program.as_slice(), args.loads.as_slice()) {
        ([], []) => usual.iter().map(|&load| load.to_owned()).collect(),
        ([], loads) => loads.to_vec(),
        (programs, _) => programs.to_vec(),
    }
}

/// How many events there were of which kind, and of what.
#[derive(Default)]
struct Counts {
    kinds: BTreeMap<&'static str, u64>,
    owners: BTreeMap<&'static str, u64>,
    nowhere: u64,
}

impl Counts {
    fn of(events: &[Truth]) -> Self {
        let mut counts = Self::default();
        for event in events {
            let kind = match event.kind {
                Kind::Insert => "insert",
                Kind::Evict => "evict",
                Kind::Drop => "drop",
                Kind::Move { .. } => "move",
            };
            let owner = match event.owner {
                Owner::File { .. } => "file",
                Owner::Metadata => "metadata",
                Owner::Swap => "swap",
            };
            *counts.kinds.entry(kind).or_default() += 1;
            *counts.owners.entry(owner).or_default() += 1;
            counts.nowhere += u64::from(event.block.is_none());
        }
        counts
    }
}

/// A row of the table: each figure with its name. Beside what was told one by one is what the kernel counted.
fn figures(recording: &Recording) -> [(&'static str, i64); 12] {
    let counts = Counts::of(&recording.events);
    let [kind, owner] = [&counts.kinds, &counts.owners]
        .map(|of| move |name| of.get(name).map_or(0, |count: &u64| count.cast_signed()));
    let stolen = recording.rise("pgsteal_file") + recording.rise("pgsteal_anon");
    [
        ("insert", kind("insert")),
        ("evict", kind("evict")),
        ("drop", kind("drop")),
        ("move", kind("move")),
        ("metadata", owner("metadata")),
        ("swap", owner("swap")),
        ("no block", counts.nowhere.cast_signed()),
        ("no disk", recording.elsewhere.cast_signed()),
        ("wrong", recording.contradictions.cast_signed()),
        ("pgsteal", stolen),
        ("pswp", recording.rise("pswpin") + recording.rise("pswpout")),
        ("cached", recording.rise("nr_file_pages")),
    ]
}

fn row(load: &str, recording: &Recording) -> String {
    let mut row = format!("{load:14.14}{:>8.2} s", recording.seconds());
    for (_, figure) in figures(recording) {
        let _ = write!(row, "{figure:>9}");
    }
    row
}

fn head(recording: &Recording) -> String {
    let mhz = recording.tsc_hz() / 1e6;
    let mut head = format!("{}, counter of {mhz:.0} MHz\n{:24}", recording.file_system, "");
    for (name, _) in figures(recording) {
        let _ = write!(head, "{name:>9}");
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use truth::Block;

    #[test]
    fn events_are_counted_by_kind_and_owner() {
        let block = Some(Block { disk: 1, block: 2 });
        let truth = |kind, owner, block| Truth { tsc: 1, kind, frame: 3, owner, block };
        let file = Owner::File { disk: 1, inode: 12, page: 0 };
        let counts = Counts::of(&[
            truth(Kind::Insert, file, None),
            truth(Kind::Evict, Owner::Swap, block),
            truth(Kind::Evict, file, block),
            truth(Kind::Move { to: 9 }, Owner::Metadata, block),
        ]);
        let kinds = ["insert", "evict", "drop", "move"].map(|kind| counts.kinds.get(kind).copied());
        assert_eq!(kinds, [Some(1), Some(2), None, Some(1)]);
        assert_eq!((counts.owners["file"], counts.owners["swap"], counts.nowhere), (2, 1, 1));
    }
}
