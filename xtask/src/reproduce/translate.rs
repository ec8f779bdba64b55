//! Row `translate`: what sensitive operations cost as a trap, as a call-out and in line.

use super::{Outcome, RowArgs, digits};
use crate::bench::{agree, median};
use crate::command;
use crate::dots::{DotRow, Dots};
use crate::machine::{Event, Running};
use crate::workspace;
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

/// A round of all operations that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(300);
/// Of the work, for `--quick`.
const QUICK_PERCENT: u64 = 5;
/// Clocks may differ by so much, and by what the way in and out of the guest takes.
const CLOCK_TOLERANCE: f64 = 0.05;
const CLOCK_SLACK_SECONDS: f64 = 0.0005;
/// From so many calls an operation on, it is not done in line.
const OUTSIDE_MIN: f64 = 0.5;

/// An operation as the measuring program calls it, as the table does, and what was published: native, trap,
/// call-out, in line. Adams and Agesen, ASPLOS 2006, on a Pentium 4 672 of 3.8 GHz; a trap is an exit of its VT
/// but for rdtsc.
struct Known {
    operation: &'static str,
    name: &'static str,
    published: [Option<u32>; 4],
}

const fn known(operation: &'static str, name: &'static str, published: [Option<u32>; 4]) -> Known {
    Known { operation, name, published }
}

const OPERATIONS: [Known; 11] = [
    known("Rdtsc", "rdtsc", [None, Some(2030), Some(1254), Some(216)]),
    known("CliSti", "cli, sti", [None; 4]),
    known("Syscall", "system call", [Some(242), None, None, Some(2300)]),
    known("PageTable", "page-table entry", [Some(1), Some(9570), None, Some(391)]),
    known("Remap", "entry, invlpg, load", [None; 4]),
    known("PageFault", "page fault", [Some(1093), Some(11242), None, Some(3927)]),
    known("Port", "in", [Some(3209), None, None, Some(200)]),
    known("Switch", "address space", [None; 4]),
    known("Arithmetic", "arithmetic", [None; 4]),
    known("Memory", "memory", [None; 4]),
    known("Calls", "calls", [None; 4]),
];
/// The published figures of the others are quoted from memory.
const CHECKED: &str = "rdtsc";
/// From here on what ordinary code does.
const INNOCUOUS: usize = 8;
/// The loop around all others.
const NOTHING: &str = "Nothing";

const WAYS: [&str; 5] = ["native", "trap", "call-out", "in line", "interpreted"];

/// Cycles, medians.
#[derive(Serialize)]
pub(super) struct Costs {
    runs: u64,
    tsc_mhz: f64,
    rows: Vec<Row>,
    troubles: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    cycles: BTreeMap<&'static str, f64>,
    published: BTreeMap<&'static str, u32>,
}

pub(super) fn measure(args: &RowArgs) -> Result<Costs> {
    eprintln!("building the measuring program (release)");
    command::run(workspace::cargo().args(BUILD))?;
    let mut figures = Figures::default();
    for run in 1..=args.runs() {
        let mut command = Command::new(workspace::target().join("release/examples/costs"));
        command.arg(if args.quick { QUICK_PERCENT } else { 100 }.to_string());
        let events = Running::start("costs", command)?.finish(LONGEST)?;
        events.iter().for_each(|event| figures.notice(event));
        eprintln!("run {run} of {}", args.runs());
    }
    let Some(mhz) = median(figures.mhz.clone()) else { bail!("the program measured nothing") };
    Ok(figures.costs(args.runs(), mhz))
}

const BUILD: [&str; 6] =
    ["build", "--release", "--package", "engine-translate", "--example", "costs"];

/// As they come.
#[derive(Default)]
struct Figures {
    mhz: Vec<f64>,
    /// Cycles an operation, by operation and way.
    cycles: BTreeMap<(String, &'static str), Vec<f64>>,
    troubles: Vec<String>,
}

impl Figures {
    fn notice(&mut self, event: &Event) {
        if event.is("clock") {
            self.mhz.push(event.number("ticks") as f64 * 1e3 / event.number("ns").max(1) as f64);
        } else if event.is("cost") {
            let (operation, count) = (event.text("operation"), event.number("count").max(1) as f64);
            let outside = event.number("outside") as f64 / count;
            let way = way(event.text("way"), outside);
            let cycles = event.number("ticks") as f64 / count;
            self.cycles.entry((operation.to_owned(), way)).or_default().push(cycles);
            self.check_clocks(event);
        }
    }

    fn check_clocks(&mut self, event: &Event) {
        let Some(mhz) = self.mhz.last() else { return };
        let seconds = |name| event.number(name) as f64 / mhz / 1e6;
        let (guest, host) = (seconds("ticks"), seconds("host_ticks"));
        if !agree(guest, host, CLOCK_TOLERANCE, CLOCK_SLACK_SECONDS) {
            let (operation, way) = (event.text("operation"), event.text("way"));
            self.troubles.push(format!(
                "{operation}, {way}: {:.3} ms by its clock, {:.3} ms by ours",
                guest * 1e3,
                host * 1e3
            ));
        }
    }

    fn costs(&self, runs: u64, tsc_mhz: f64) -> Costs {
        let row = |known: &Known| {
            let cycles =
                WAYS.iter().filter_map(|&way| Some((way, self.net(known.operation, way)?)));
            let published = WAYS.iter().zip(known.published);
            let published = published.filter_map(|(way, figure)| Some((*way, figure?)));
            Row { name: known.name, cycles: cycles.collect(), published: published.collect() }
        };
        let rows = OPERATIONS.iter().map(row).collect();
        Costs { runs, tsc_mhz, rows, troubles: self.troubles.clone() }
    }

    /// Without the loop around it.
    fn net(&self, operation: &str, way: &'static str) -> Option<f64> {
        let of =
            |operation: &str, way| median(self.cycles.get(&(operation.to_owned(), way))?.clone());
        let around = match way {
            "trap" => of(NOTHING, "native"),
            "call-out" => of(NOTHING, "in line"),
            way => of(NOTHING, way),
        };
        Some((of(operation, way)? - around.unwrap_or(0.0)).max(0.0))
    }
}

/// What generated code calls out for is not in line.
fn way(named: &str, outside: f64) -> &'static str {
    match named {
        "Native" => "native",
        "Trap" => "trap",
        "Interpreted" => "interpreted",
        "Translated" if outside < OUTSIDE_MIN => "in line",
        _ => "call-out",
    }
}

impl Outcome for Costs {
    const NAME: &'static str = "translate";
    const PAPER: &'static str = "Adams and Agesen, \"A comparison of software and hardware techniques for x86 \
        virtualization\" (2006): rdtsc costs 2030 cycles as a trap, 1254 as a call-out, 216 in line; innocuous code \
        runs as it is";
    const RUN: &'static str = "loops of one operation: in a guest without a kernel (translated, interpreted), in an \
        ordinary process (native), and there with a signal for each operation (trap). The loop itself is taken off. \
        Natively a system call is getppid, a page fault the first access to a page, an address space a switch of \
        processes through a pipe";

    fn table(&self) -> String {
        let mut table = format!(
            "cycles of the time-stamp counter ({:.0} MHz), median of {} runs; in brackets as published, Pentium 4 (~: quoted \
             from memory)\n\n{:20}",
            self.tsc_mhz, self.runs, ""
        );
        WAYS.iter().for_each(|way| {
            let _ = write!(table, "{way:>16}");
        });
        for (number, row) in self.rows.iter().enumerate() {
            table += if number == INNOCUOUS { "\n\n" } else { "\n" };
            let _ = write!(table, "{:20}", row.name);
            for way in WAYS {
                let ours = digits(row.cycles.get(way).copied());
                let about = if row.name == CHECKED { "" } else { "~" };
                let theirs = row.published.get(way).map(|cycles| format!(" ({about}{cycles})"));
                let _ = write!(table, "{:>16}", ours + &theirs.unwrap_or_default());
            }
        }
        table + "\n\n" + &self.sentences()
    }

    fn picture(&self) -> Dots {
        let row = |row: &Row| DotRow {
            name: row.name.to_owned(),
            figures: WAYS.iter().map(|way| row.cycles.get(way).copied()).collect(),
        };
        Dots {
            title: "What an operation costs, in cycles".into(),
            unit: "logarithmic; left is cheaper".into(),
            series: WAYS.map(str::to_owned).to_vec(),
            rows: self.rows.iter().map(row).collect(),
        }
    }

    fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

impl Costs {
    /// What the table comes down to.
    fn sentences(&self) -> String {
        let mut text = String::new();
        for row in &self.rows[..INNOCUOUS] {
            let of = |way| row.cycles.get(way).copied().filter(|&cycles: &f64| cycles > 0.0);
            let best = of("in line").or_else(|| of("call-out"));
            if let (Some(trap), Some(best)) = (of("trap"), best) {
                let how = if of("in line").is_some() { "in line" } else { "called out" };
                let times = digits(Some(trap / best));
                let _ =
                    writeln!(text, "{}: {how}, a trap would cost {times} times as much", row.name);
            }
        }
        for row in &self.rows[INNOCUOUS..] {
            if let (Some(ours), Some(native)) =
                (row.cycles.get("in line"), row.cycles.get("native"))
            {
                let _ =
                    writeln!(text, "{}: {} times native", row.name, digits(Some(ours / native)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let mut figures = Figures { mhz: vec![2000.0], ..Figures::default() };
        let mut notice = |operation: &str, way: &str, ticks: u64, host: u64, outside: u64| {
            let line = format!(
                "@fathom {{\"event\":\"cost\",\"operation\":\"{operation}\",\"way\":\"{way}\",\"count\":1000,\
                 \"ticks\":{ticks},\"host_ticks\":{host},\"outside\":{outside}}}"
            );
            figures.notice(&Event::parse(Duration::ZERO, &line).expect("an event"));
        };
        notice("Nothing", "Translated", 1_000, 1_000, 0);
        notice("Nothing", "Native", 500, 500, 0);
        notice("Rdtsc", "Translated", 41_000, 42_000, 0);
        notice("Rdtsc", "CallOut", 201_000, 201_000, 1000);
        notice("Rdtsc", "Trap", 4_000_500, 4_000_500, 0);
        notice("Port", "Translated", 9_001_000, 30_001_000, 2000);
        notice("Calls", "Translated", 3_000, 3_000, 0);
        notice("Calls", "Native", 1_500, 1_500, 0);
        figures
    }

    #[test]
    fn what_is_called_out_for_is_not_in_line_and_the_loop_is_taken_off() {
        let costs = figures().costs(1, 2000.0);
        let row = |name| costs.rows.iter().find(|row| row.name == name).expect("a row");
        let rdtsc = &row("rdtsc").cycles;
        let of = |way: &str| rdtsc.get(way).copied();
        assert_eq!(
            (of("in line"), of("call-out"), of("trap")),
            (Some(40.0), Some(200.0), Some(4000.0))
        );
        assert_eq!(row("in").cycles.get("in line"), None);
        assert_eq!(row("in").cycles.get("call-out"), Some(&9000.0));
        let table = costs.table();
        assert!(table.contains("40.0 (216)") && table.contains("4000 (2030)"), "{table}");
        assert!(table.contains("rdtsc: in line, a trap would cost 100 times as much"), "{table}");
        assert!(table.contains("calls: 2.00 times native"), "{table}");
    }

    #[test]
    fn clocks_that_disagree_are_complained_of() {
        let troubles = figures().troubles;
        assert_eq!(troubles, ["Port, Translated: 4.500 ms by its clock, 15.001 ms by ours"]);
    }
}
