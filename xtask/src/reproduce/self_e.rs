//! Row `self-e`: what each frame of a guest is for, seen from outside, against what its kernel says.

mod plot;
mod score;

use super::place::Place;
use super::{folder, write_json};
use crate::kit::{self, Kit};
use crate::machine::{Guest, Next, Running, fathom_program};
use anyhow::{Context, Result, bail};
use score::{Scores, Sums};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A load of the guest program, and how long it goes on at most.
struct Load {
    name: &'static str,
    words: &'static str,
    /// Has a swap area.
    swaps: bool,
}

const LOADS: [Load; 8] = [
    Load { name: "idle", words: "fathom.run=boot", swaps: false },
    Load {
        name: "files",
        words: "\"fathom.run=disk:/bin/bash -c 'cat /usr/bin/* /usr/lib/x86_64-linux-gnu/* >/dev/null'\"",
        swaps: false,
    },
    Load { name: "anonymous", words: "fathom.run=phases:60,20,100 fathom.seconds=4", swaps: false },
    Load {
        name: "processes",
        words: "fathom.run=bench:fork,exec,python3-start fathom.scale=300",
        swaps: false,
    },
    Load { name: "build", words: "fathom.run=bench:gcc fathom.scale=400", swaps: false },
    Load { name: "sqlite", words: "fathom.run=bench:sqlite3,shell fathom.scale=400", swaps: false },
    // 240 of 256 MiB, some pages far more often than others.
    Load { name: "swap", words: "fathom.run=reuse:skew,240 fathom.seconds=60", swaps: true },
    // Files in memory: one written by calls, one that two programs map, and one that a program maps, writes and leaves.
    // And a program's own file, which two map.
    Load {
        name: "shared",
        words: "\"fathom.run=disk:/usr/bin/python3 -c 'import os,sys,time,mmap; from tempfile import TemporaryFile as T; \
                g=os.urandom(1<<20); a=T(); a.write(g*20); a.flush(); b=T(); b.truncate(20<<20); c=T(); \
                c.truncate(20<<20); x=mmap.mmap(os.open(sys.executable,0),0,1,1); m=mmap.mmap(b.fileno(),20<<20); \
                p=os.fork(); n=mmap.mmap(c.fileno(),20<<20); w=lambda f:[f.__setitem__(slice(i<<20,i+1<<20),g) \
                for i in range(20)]; [(w(m),p or w(n),len(x[:]),time.sleep(.3)) for k in range(20)]; \
                p or os._exit(0); n.close(); os.wait(); time.sleep(90)'\"",
        swaps: false,
    },
];

/// Those that run on KVM unless others are asked for.
const KVM_LOADS: [&str; 4] = ["idle", "files", "anonymous", "processes"];
/// The one that needs a compiler's disk.
const BUILD: &str = "build";

/// Has the guest's kernel report single free pages, where it would report blocks of 2 MiB.
const REPORT_PAGES: &str = "\"fathom.run=exec:/bin/busybox sh -c 'echo 0 >/sys/module/page_reporting/parameters/page_reporting_order'\" ";
/// Makes the second disk a swap area.
const SWAP: &str = "\"fathom.run=exec:/bin/busybox sh -c 'until test -b /dev/vdb; do sleep 1; done; \
    mkswap /dev/vdb && swapon /dev/vdb'\" ";
const SWAP_BYTES: u64 = 256 << 20;
/// Throws away what is in memory for the start only, as a distribution does when it goes over to its disk.
const LEAVE_START: &str = "\"fathom.run=exec:/bin/busybox rm -rf /modules /bin\" ";
/// In which the figure of a load is measured for the cost.
const TIMED: &str = "fathom.run=bench:gcc fathom.scale=200";
const NAME: &str = "self-e";
/// Of runs, for the cost.
const PAIRS: u64 = 5;
const FIRST_WORD: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub(crate) struct SelfEArgs {
    /// Fail where a used page is called free, or the score is low
    #[arg(long)]
    check: bool,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Loads, separated by commas. All if not said, and some on KVM
    #[arg(long, value_delimiter = ',', value_name = "LOAD")]
    loads: Vec<String>,
    /// Looks at each load, 6 if not said, on KVM 2
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    looks: Option<u64>,
    /// Between two looks, 3 if not said, on KVM 20: epochs are long in the lab
    #[arg(long, value_name = "SECONDS")]
    every: Option<u64>,
    /// Which free memory the guest reports: blocks of 2 MiB, Linux's default, or every page
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["pages", "blocks"])]
    report: Vec<Report>,
    /// Pairs of runs with and without, for the cost; on KVM none if not said
    #[arg(long)]
    pairs: Option<u64>,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u64,
}

impl SelfEArgs {
    fn looks(&self) -> u64 {
        self.looks.unwrap_or(if self.place.is_kvm() { 2 } else { 6 })
    }

    fn every(&self) -> Duration {
        let usual = if self.place.is_kvm() { 20 } else { 3 };
        Duration::from_secs(self.every.unwrap_or(usual))
    }

    fn pairs(&self) -> u64 {
        self.pairs.unwrap_or(if self.place.is_kvm() { 0 } else { PAIRS })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Pages,
    Blocks,
}

#[derive(Serialize)]
struct Outcome {
    paper: &'static str,
    runs: Vec<Row>,
    cost: Option<Cost>,
}

#[derive(Serialize)]
struct Row {
    report: Report,
    load: &'static str,
    sums: Sums,
    scores: Scores,
}

/// Nanoseconds of the guest's work, run by run.
#[derive(Serialize)]
struct Cost {
    without: Vec<u64>,
    with: Vec<u64>,
}

const PAPER: &str = "SELF-e (BigComp 2019): classes and sharing by page-access tracing, \"without significant\" \
     slowdown; no accuracy and no cost were published. Antfarm (USENIX 2006): processes by address space";

pub(super) fn run(args: &SelfEArgs) -> Result<()> {
    let loads = chosen(args)?;
    let kit = args.place.kit(&kit::GuestArgs::with_disk())?;
    let disk = disk(&kit, args, &loads)?;
    if args.place.is_in_lab() {
        let files = [disk.clone(), disk.with_extension("recipe")];
        return args.place.run_in_lab(&kit, &files, args.json.as_deref());
    }
    println!("self-e\npaper: {PAPER}");
    let mut outcome = Outcome { paper: PAPER, runs: Vec::new(), cost: None };
    for &report in &args.report {
        println!("\nthe guest reports free {report:?}, {} looks at each load", args.looks());
        println!("{}", Scores::head());
        let mut all = Sums::default();
        for load in &loads {
            let sums = args.place.attempt(|| look(&kit, args, &disk, load, report));
            let sums = sums.with_context(|| format!("load {}", load.name))?;
            let scores = sums.scores();
            println!("{}", scores.row(load.name, &sums));
            all.add(&sums);
            outcome.runs.push(Row { report, load: load.name, sums, scores });
        }
        let scores = all.scores();
        println!("{}\n{}", scores.row("all", &all), scores.inferred_row());
        println!("\n{}", score::table(&all.matrix));
        println!("\nwithout the kernel's word\n{}\n", score::table(&all.inferred));
        let picture = folder()?.join(format!("self-e-{report:?}.svg").to_lowercase());
        plot::draw(&picture, &format!("What is reported: free {report:?}"), &all)?;
        println!("{}\npicture: {}", all.costs(), picture.display());
        if args.check {
            scores.check(&all, report == Report::Pages)?;
        }
    }
    if args.pairs() > 0 {
        outcome.cost = Some(cost(&kit, args, &disk)?);
    }
    if let Some(file) = args.place.json(args.json.as_deref()) {
        write_json(file, &outcome)?;
    }
    Ok(())
}

/// With the programs of these loads.
fn disk(kit: &Kit, args: &SelfEArgs, loads: &[&Load]) -> Result<PathBuf> {
    let has_build = args.pairs() > 0 || loads.iter().any(|load| load.name == BUILD);
    if args.place.is_kvm() && !has_build { Ok(kit.disk()) } else { kit.compiler_disk() }
}

fn chosen(args: &SelfEArgs) -> Result<Vec<&'static Load>> {
    let on_kvm = |load: &&Load| !args.place.is_kvm() || KVM_LOADS.contains(&load.name);
    let names = &args.loads;
    if names.is_empty() {
        return Ok(LOADS.iter().filter(on_kvm).collect());
    }
    let known = || LOADS.map(|load| load.name).join(" ");
    let find = |name: &String| {
        LOADS
            .iter()
            .find(|load| load.name == name)
            .with_context(|| format!("load {name}: there is none such: choose among {}", known()))
    };
    names.iter().map(find).collect()
}

/// Looks at a load while it runs, and after it.
fn look(kit: &Kit, args: &SelfEArgs, disk: &Path, load: &Load, report: Report) -> Result<Sums> {
    let prepare = if report == Report::Pages { REPORT_PAGES } else { "" };
    let swap = if load.swaps { SWAP } else { "" };
    let words = format!("quiet {prepare}{swap}{LEAVE_START}{} fathom.end=stay", load.words);
    let mut guest = guest(kit, args, disk, &words, true);
    let area = folder()?.join("self-e-swap.img");
    if load.swaps {
        let made = File::create(&area).and_then(|file| file.set_len(SWAP_BYTES));
        made.with_context(|| format!("make {}", area.display()))?;
        guest = guest.writable_disk(&area);
    }
    let mut running = guest.start(args.place.vmm())?;
    await_first_word(&mut running, args.place.patience(FIRST_WORD))?;
    let mut sums = Sums::default();
    for _ in 0..args.looks() {
        await_time(&mut running, args.every())?;
        tell("pause")?;
        let answer = fathom(&["inspect", NAME, "--classes"]);
        tell("resume")?;
        sums.take(&serde_json::from_str(&answer?)?)?;
    }
    tell("stop")?;
    Ok(sums)
}

fn guest(kit: &Kit, args: &SelfEArgs, disk: &Path, words: &str, classes: bool) -> Guest {
    let mut options = vec!["--name".to_owned(), NAME.to_owned()];
    if classes {
        options.push("--classes".to_owned());
    }
    let guest = Guest::new(kit, words).memory(args.memory).cpus(args.cpus).options(&options);
    guest.disk(disk)
}

fn await_first_word(running: &mut Running, patience: Duration) -> Result<()> {
    match running.next(patience) {
        Next::Event(_) => Ok(()),
        Next::Quiet | Next::Ended => bail!(running.complaint("said nothing")),
    }
}

/// Reads what the guest says for so long.
fn await_time(running: &mut Running, time: Duration) -> Result<()> {
    let until = running.elapsed() + time;
    while running.elapsed() < until {
        if matches!(running.next(until.saturating_sub(running.elapsed())), Next::Ended) {
            bail!(running.complaint("ended"));
        }
    }
    Ok(())
}

fn tell(verb: &str) -> Result<()> {
    fathom(&[verb, NAME]).map(|_| ())
}

fn fathom(words: &[&str]) -> Result<String> {
    let output = Command::new(fathom_program()).args(words).output()?;
    if !output.status.success() {
        bail!("fathom {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The same work with and without, by turns.
fn cost(kit: &Kit, args: &SelfEArgs, disk: &Path) -> Result<Cost> {
    let mut cost = Cost { without: Vec::new(), with: Vec::new() };
    let timed = |classes| -> Result<u64> {
        let guest = guest(kit, args, disk, &format!("quiet {TIMED}"), classes);
        let running = guest.start(args.place.vmm())?;
        let events = running.finish(args.place.patience(LONGEST))?;
        let ended = events.iter().find(|event| event.is("bench") && event.text("state") == "end");
        Ok(ended.context("the guest has not said how long it took")?.number("nanoseconds"))
    };
    for _ in 0..args.pairs() {
        cost.without.push(timed(false)?);
        cost.with.push(timed(true)?);
    }
    let [without, with] = [&cost.without, &cost.with].map(|times| score::median(times));
    println!(
        "a build of {:.2} s takes {:.2} s while frames are classified, the medians of {} runs each: {:+.1} %",
        without / 1e9,
        with / 1e9,
        args.pairs(),
        (with / without - 1.0) * 100.0
    );
    Ok(cost)
}
