//! Row `wss`: how much memory a guest uses, by several methods at once, against a log of all its accesses.

mod above;
mod cost;
mod loads;
mod log;
mod plot;
mod run;
mod score;
mod toucher;
mod truth;

use super::place::Place;
use super::{folder, write_json};
use crate::kit::{self, Kit};
use crate::machine::MEMORY_MIB;
use above::Above;
use anyhow::{Context, Result, bail};
use cost::Cost;
use loads::{LOADS, Load};
pub(super) use plot::lines as draw_lines;
use score::Score;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
pub(super) use toucher::{FRAMES, SERIES, Step, touch};

const PAPER: &str = "errors: census of the guest's own tables 0.4-2.1 %, cost 0.8 % (Niu 2011); sampling of 100 pages +-5 \
     points (Waldspurger 2002); MRC by page protection cost 2 %, loss at most 4 % (Zhao 2011); SHARDS at a rate of \
     0.001 below 0.01 (Waldspurger 2015)";
const RUN: &str = "all methods at once in a guest without KVM, against a log of all accesses by 2 ms; cost in runs of \
     their own";

const RUN_ON_KVM: &str = "all methods at once in a guest on KVM, which tells of no access one by one: scan, sample and \
     known are against what the load says of itself, census and curves against nothing";

/// For the cost.
const RUNS: u64 = 5;

/// Of the curve above the allocation.
const ABOVE_MOST: f64 = 0.05;

#[derive(clap::Args)]
pub(crate) struct WssArgs {
    #[command(flatten)]
    place: Place,
    /// Loads, separated by commas. All if not said, and on KVM those that say how much they use
    #[arg(long, value_delimiter = ',', value_name = "LOAD")]
    loads: Vec<String>,
    /// Short phases of the loads that need no disk, and no cost
    #[arg(long)]
    quick: bool,
    /// Fail where an error is larger than it may be
    #[arg(long)]
    check: bool,
    /// Runs with and without each method, by turns, for the cost; 0: none, as on KVM if not said
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Also the curve above the allocation, against runs with more memory
    #[arg(long)]
    above: bool,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u64,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Figures<'a> {
    row: &'static str,
    paper: &'static str,
    run: &'static str,
    scores: &'a [Score],
    costs: &'a [Cost],
    above: &'a [Above],
}

pub(super) fn run(args: &WssArgs) -> Result<()> {
    let (loads, place) = (asked(args)?, &args.place);
    let kit = place.kit(&kit::GuestArgs::default())?;
    if place.is_in_lab() {
        return place.run_in_lab(&kit, &files(&kit, args, &loads)?, args.json.as_deref());
    }
    let (pictures, logs) = (folder()?, tempfile::tempdir()?);
    let how = if place.is_kvm() { RUN_ON_KVM } else { RUN };
    println!("wss\npaper: {PAPER}\nrun:   {how}\n\n{}", head());
    let mut scores = Vec::new();
    for load in loads {
        let record = || run::record(place, &kit, load, args.memory, args.quick, logs.path());
        let recording = place.attempt(record).with_context(|| format!("load {}", load.name))?;
        plot::draw(load.name, &recording, &pictures)?;
        let score = score::score(load.name, &recording);
        println!("{}", row(&score));
        scores.push(score);
    }
    let runs = args.runs.unwrap_or(if place.is_kvm() { 0 } else { RUNS });
    let runs = if args.quick { 0 } else { runs };
    let costs = if runs == 0 { Vec::new() } else { cost::measure(place, &kit, runs, logs.path())? };
    let above = if args.above { above::measure(place, &kit, logs.path())? } else { Vec::new() };
    print!("{}{}", cost_table(&costs), above::table(&above));
    println!("pictures: {}", pictures.join("wss-*.svg").display());
    if let Some(file) = place.json(args.json.as_deref()) {
        let figures = Figures {
            row: "wss",
            paper: PAPER,
            run: how,
            scores: &scores,
            costs: &costs,
            above: &above,
        };
        write_json(file, &figures)?;
    }
    let mut troubles: Vec<String> =
        scores.iter().flat_map(|score| score.troubles(args.quick, place.is_kvm())).collect();
    if let Some(off) = above::error(&above).filter(|off| *off > ABOVE_MOST) {
        troubles.push(format!("above the allocation: off by {off:.3}, not {ABOVE_MOST}"));
    }
    troubles.iter().for_each(|trouble| println!("! {trouble}"));
    if args.check && !troubles.is_empty() {
        bail!("{} figures miss their targets", troubles.len());
    }
    Ok(())
}

fn asked(args: &WssArgs) -> Result<Vec<&'static Load>> {
    if args.loads.is_empty() {
        let usual = |load: &&Load| match args.place.is_kvm() {
            true => load.is_for_kvm(),
            false => !(args.quick && load.needs_disk),
        };
        return Ok(LOADS.iter().filter(usual).collect());
    }
    let loads = args.loads.iter().map(|name| {
        Load::find(name).with_context(|| {
            format!("no load `{name}`: there are {}", LOADS.map(|load| load.name).join(", "))
        })
    });
    let mut loads = loads.collect::<Result<Vec<_>>>()?;
    loads.retain(|load| !(args.quick && load.needs_disk));
    Ok(loads)
}

/// What guests have beside kernel and initramfs.
fn files(kit: &Kit, args: &WssArgs, loads: &[&Load]) -> Result<Vec<PathBuf>> {
    if !args.above && !loads.iter().any(|load| load.needs_disk) {
        return Ok(Vec::new());
    }
    let disk = kit.loads_disk()?;
    Ok(vec![disk.with_extension("recipe"), disk])
}

fn head() -> String {
    let mut head = format!("{:9}", "");
    for column in [
        "epochs",
        "WSS MiB",
        "census %",
        "known %",
        "order %",
        "scan %",
        "sample pts",
        "averaged",
        "curve",
        "c. 2 ms",
        "rate %",
        "demand",
    ] {
        let _ = write!(head, "{column:>10}");
    }
    head
}

fn row(score: &Score) -> String {
    let mut row = format!("{:9}{:>10}{:>10.1}", score.load, score.epochs, score.largest_mib);
    let percents = [
        score.census,
        score.census_known,
        score.order,
        score.scan,
        score.sample_points,
        score.sampling_points,
    ];
    for figure in percents {
        let _ = write!(row, "{:>10}", shown(figure, 2));
    }
    let rate = score.rate.map(|rate| rate * 100.0);
    for figure in [score.curve, score.curve_fine] {
        let _ = write!(row, "{:>10}", shown(figure, 4));
    }
    let _ = write!(row, "{:>10}{:>10.1}", shown(rate, 2), score.demand_mib);
    row + &format!("  {} ({:.2})", score.demand_why, score.demand_confidence)
}

fn shown(figure: Option<f64>, digits: usize) -> String {
    figure.map_or("-".into(), |figure| format!("{figure:.digits$}"))
}

fn cost_table(costs: &[Cost]) -> String {
    let mut table = String::new();
    if !costs.is_empty() {
        table += "\ncost, %     integer     sweep  cpu time\n";
    }
    for cost in costs {
        let _ = write!(table, "{:9}", cost.methods);
        for figure in [cost.integer, cost.sweep, cost.cpu] {
            let _ = write!(table, "{:>10}", shown(figure, 2));
        }
        table += "\n";
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_figure_below_each_title() {
        let score = Score { load: "step".into(), census: Some(0.5), ..Score::default() };
        let (row, head) = (row(&score), head());
        let end = head.find("census %").expect("a column") + "census %".len();
        assert!(row[..end].ends_with("  0.50"), "{row}");
        assert!(row[end..].starts_with("         -"), "{row}");
    }

    #[test]
    fn costs_are_shown_where_they_were_measured() {
        assert_eq!(cost_table(&[]), "");
        let cost = Cost { methods: "curve", integer: Some(0.1), sweep: None, cpu: Some(-0.25) };
        let table = cost_table(&[cost]);
        assert!(table.ends_with("curve          0.10         -     -0.25\n"), "{table}");
    }
}
