//! Row `paths`: the same work in a guest under each policy of paths, with as much memory for code as it takes and with
//! little.

use super::profile::processor_seconds;
use super::{Outcome, RowArgs, digits, folder};
use crate::bench::median;
use crate::dots::{DotRow, Dots};
use crate::kit::{self, Kit};
use crate::machine::{Event, Guest, Next, Running, Vmm, build_fathom};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

/// A guest that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(300);

/// Ours, and what it is measured by.
const OURS: &str = "fathom";
const MODEL: &str = "pin";
const POLICIES: [&str; 5] = [OURS, MODEL, "dynamorio", "net", "blocks"];
/// Ours in less room.
const LESS: &str = "fathom in 80 %";

/// Memory for code, stubs and bookkeeping.
struct Bound {
    name: &'static str,
    /// How it is asked for.
    switch: &'static str,
    /// What is tried there in other room: 80 % of it.
    less: Option<&'static str>,
}

const BOUNDS: [Bound; 2] = [
    Bound { name: "unbounded", switch: "", less: None },
    Bound { name: "1 MiB", switch: ",code=1M", less: Some(",code=819K") },
];

impl Bound {
    /// What is compared, by name, with its switches.
    fn columns(&self) -> Vec<(&'static str, String)> {
        let own = POLICIES.map(|policy| (policy, format!("paths={policy}{}", self.switch)));
        let less = self.less.map(|switch| (LESS, format!("paths={OURS}{switch}")));
        less.into_iter().chain(own).collect()
    }
}

/// Work of the guest program; nothing but the boot for the first.
const WORK: [&str; 8] =
    ["boot", "sort", "crc", "fib", "interpreter", "null-syscall", "pipe", "fork"];

/// All figures.
#[derive(Serialize)]
pub(super) struct Paths {
    runs: u64,
    /// By the memory for code.
    rooms: BTreeMap<&'static str, Room>,
    troubles: Vec<String>,
}

#[derive(Serialize)]
struct Room {
    /// By work and policy.
    work: BTreeMap<&'static str, BTreeMap<&'static str, Medians>>,
    /// What ours saves, by policy.
    saved: BTreeMap<&'static str, Saved>,
    /// What it saves beside the model in less room.
    less: Option<Saved>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Medians {
    /// Processor time of the work; of the boot, to /init.
    seconds: f64,
    /// Code, stubs and bookkeeping at most at a time.
    bytes: f64,
}

/// Geometric means over all work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Saved {
    memory_percent: f64,
    time_percent: f64,
}

/// One guest.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: f64,
    bytes: f64,
}

/// Of the report, what is shown.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Translation {
    memory_peak_bytes: u64,
}

#[derive(Deserialize)]
struct Report {
    translation: Translation,
}

type Samples = BTreeMap<(&'static str, &'static str, &'static str), Vec<Sample>>;

pub(super) fn measure(args: &RowArgs) -> Result<Paths> {
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    build_fathom()?;
    let work = if args.quick { &WORK[..1] } else { &WORK[..] };
    let mut samples = Samples::new();
    for run in 0..args.runs() as usize {
        for bound in &BOUNDS {
            let (room, columns) = (bound.name, bound.columns());
            for &work in work {
                for turn in 0..columns.len() {
                    let (policy, ref switches) = columns[(run + turn) % columns.len()];
                    let sample = sample(&kit, work, switches)?;
                    eprintln!(
                        "run {} of {}: {room:9} {work:12} {policy:14} {:.3} s, {:.2} MB",
                        run + 1,
                        args.runs(),
                        sample.seconds,
                        sample.bytes / 1e6
                    );
                    samples.entry((room, work, policy)).or_default().push(sample);
                }
            }
        }
    }
    Ok(Paths::of(args.runs(), &samples))
}

fn sample(kit: &Kit, work: &str, switches: &str) -> Result<Sample> {
    let report = folder()?.join("paths-report.json");
    let words = match work {
        "boot" => "quiet fathom.modules=none fathom.run=boot".to_owned(),
        work => format!("quiet fathom.modules=none fathom.run=bench:{work}"),
    };
    let guest = Guest::new(kit, &words).named("reproduce-paths", &report).translate(switches);
    let seconds = follow(guest.start(Vmm::Fathom)?, work)?;
    let text = fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    let made = serde_json::from_str::<Report>(&text)?.translation;
    Ok(Sample { seconds, bytes: made.memory_peak_bytes as f64 })
}

/// The VMM's processor time from the begin of the work to its end: who else uses the processors is not in it.
fn follow(mut running: Running, work: &str) -> Result<f64> {
    let (mut began, mut ended) = (0.0, None);
    loop {
        match running.next(LONGEST.saturating_sub(running.elapsed())) {
            Next::Event(event) if begins(&event, work) => {
                began = processor_seconds(running.pid())?;
            }
            Next::Event(event) if ends(&event, work) => {
                ended = Some(processor_seconds(running.pid())?);
            }
            Next::Event(_) => {}
            Next::Quiet => bail!(running.complaint("is still at work")),
            Next::Ended => {
                running.check_end()?;
                let ended = ended.with_context(|| format!("the guest did not do {work}"))?;
                return Ok(ended - began);
            }
        }
    }
}

fn begins(event: &Event, work: &str) -> bool {
    work != "boot" && event.is("bench") && event.text("state") == "begin"
}

fn ends(event: &Event, work: &str) -> bool {
    match work {
        "boot" => event.is("init"),
        _ => event.is("bench") && event.text("state") == "end",
    }
}

impl Paths {
    fn of(runs: u64, samples: &Samples) -> Self {
        let rooms = BOUNDS.map(|bound| (bound.name, Room::of(bound.name, samples)));
        Self { runs, rooms: rooms.into(), troubles: Vec::new() }
    }
}

impl Room {
    fn of(room: &str, samples: &Samples) -> Self {
        let mut work: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (&(_, name, policy), samples) in samples.iter().filter(|(key, _)| key.0 == room) {
            work.entry(name).or_default().insert(policy, Medians::of(samples));
        }
        let beside = |policy: &'static str| Some((policy, saved(&work, OURS, policy)?));
        let savings = POLICIES[1..].iter().filter_map(|&policy| beside(policy)).collect();
        let less = saved(&work, LESS, MODEL);
        Self { work, saved: savings, less }
    }
}

/// What `ours` saves beside `policy`. `None`: it was not tried.
fn saved(
    work: &BTreeMap<&str, BTreeMap<&str, Medians>>,
    ours: &str,
    policy: &str,
) -> Option<Saved> {
    let part = |figure: fn(&Medians) -> f64| {
        let ratio = |medians: &BTreeMap<&str, Medians>| {
            Some(figure(medians.get(ours)?) / figure(medians.get(policy)?))
        };
        Some((1.0 - mean(work.values().filter_map(ratio))?) * 100.0)
    };
    let (memory_percent, time_percent) = (part(|m| m.bytes)?, part(|m| m.seconds)?);
    Some(Saved { memory_percent, time_percent })
}

/// Geometric.
fn mean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = ratios.fold((0, 0.0), |(count, sum), ratio| (count + 1, sum + ratio.ln()));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

impl Medians {
    fn of(samples: &[Sample]) -> Self {
        let of = |figure: fn(&Sample) -> f64| {
            median(samples.iter().map(figure).collect()).unwrap_or(0.0)
        };
        Self { seconds: of(|sample| sample.seconds), bytes: of(|sample| sample.bytes) }
    }
}

impl Outcome for Paths {
    const NAME: &'static str = "paths";
    const PAPER: &'static str = "Guha, Hazelwood and Soffa, \"Balancing memory and performance through selective \
        flushing and path selection\" (VEE 2010): code, stubs and bookkeeping chosen together take 20 % less memory \
        than in Pin and are 5 to 20 % faster where memory is short";
    const RUN: &'static str = "a guest to /init and pieces of work in it, each under five policies of paths: Fathom's \
        own, those of Pin, DynamoRIO and Dynamo's next-executing tail, and each block by itself; with as much memory \
        for code, stubs and bookkeeping as these take, and with 1 MiB, of which ours is tried with 80 %, too. Time is \
        Fathom's processor time; memory is what was taken at most";

    fn table(&self) -> String {
        let mut table = format!("medians of {} runs; ms, and MB\n", self.runs);
        for (name, room) in &self.rooms {
            let _ = write!(table, "\n{name:13}");
            let columns: Vec<_> = room.less.iter().map(|_| LESS).chain(POLICIES).collect();
            columns.iter().for_each(|policy| table += &format!("{policy:>17}"));
            table.push('\n');
            for (work, medians) in &room.work {
                let _ = write!(table, "{work:13}");
                for &policy in &columns {
                    let shown = medians.get(policy).copied().unwrap_or_default();
                    let _ = write!(table, "{:>9.1}{:>8.2}", shown.seconds * 1e3, shown.bytes / 1e6);
                }
                table.push('\n');
            }
            let less = room.less.iter().map(|saved| (LESS, MODEL, saved));
            let saved = room.saved.iter().map(|(policy, saved)| (OURS, *policy, saved));
            for (ours, policy, saved) in less.chain(saved) {
                let _ = writeln!(
                    table,
                    "{ours} beside {policy}: {} % less memory, {} % less time{}",
                    digits(Some(saved.memory_percent)),
                    digits(Some(saved.time_percent)),
                    if policy == MODEL { " (goal: 20 and 5)" } else { "" }
                );
            }
        }
        table
    }

    fn picture(&self) -> Dots {
        let row = |room: &str, work: &str, medians: &BTreeMap<&str, Medians>| {
            let ours = medians.get(OURS).map(|m| m.seconds);
            let ratio = |policy| Some(medians.get(policy)?.seconds / ours?);
            let figures = POLICIES[1..].iter().map(|policy| ratio(*policy)).collect();
            DotRow { name: format!("{work}, {room}"), figures }
        };
        let rows = self.rooms.iter().flat_map(|(room, figures)| {
            figures.work.iter().map(move |(work, medians)| row(room, work, medians))
        });
        Dots {
            title: "Time under other policies of paths, times ours".into(),
            unit: "logarithmic; right is slower".into(),
            series: POLICIES[1..].iter().map(|policy| (*policy).to_owned()).collect(),
            rows: rows.collect(),
        }
    }

    fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_a_mean_over_all_work() {
        let mut samples = Samples::new();
        let mut add = |work, policy, seconds, bytes| {
            samples.entry(("1 MiB", work, policy)).or_default().push(Sample { seconds, bytes });
        };
        add("boot", OURS, 1.0, 1e6);
        add("boot", MODEL, 2.0, 4e6);
        add("sort", OURS, 3.0, 1e6);
        add("sort", MODEL, 3.0, 1e6);
        add("sort", LESS, 2.4, 0.8e6);
        let paths = Paths::of(1, &samples);
        let saved = paths.rooms["1 MiB"].saved[MODEL];
        assert!((saved.memory_percent - 50.0).abs() < 1e-9, "{saved:?}");
        assert!((saved.time_percent - (1.0 - 0.5f64.sqrt()) * 100.0).abs() < 1e-9, "{saved:?}");
        assert!(paths.rooms["unbounded"].saved.is_empty());
        assert!(paths.table().contains("fathom beside pin: 50.0 % less memory, 29.3 % less time"));
        assert!(
            paths
                .table()
                .contains("fathom in 80 % beside pin: 20.0 % less memory, 20.0 % less time")
        );
    }
}
