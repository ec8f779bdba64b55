//! All figures, and how they are shown.

use super::super::digits;
use super::Template;
use super::docked::{Cluster, Docked};
use super::guests::Subject;
use super::process::Memory;
use crate::bench::median;
use crate::dots::{DotRow, Dots};
use anyhow::{Result, bail};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

const PAPER: &str = "Wang, Rao and Xu, \"Rethink the virtual machine template\" (VEE 2011): a VM or a cluster in a few seconds; \
    more substrates docked in memory than templates on the disk of a typical server. \
    2026, by their authors: zeroboot 0.79 ms, 1000 in 815 ms, 265 KB each; forkd 100 in 101 ms, 0.12 MiB each; \
    mitos 67 ms to the first exec, 1.27 MiB each";
const RUN: &str = "a guest whose service does a piece of work ten times a second, saved while it waits; VMs made of it, so many \
    with one command. Times since the command, ms: all run: it says so; output: the first line of a guest on its console. MiB that \
    each VM has to itself (Private_* of smaps_rollup): stands: before its guest does anything; then 1 and 5 s after the command; \
    dirty: what of that is in no file; all: what they have together at 5 s (sum of Pss)";
/// Of ours, before the guest does anything.
// The goal, too. Some 1.6 it is: 0.4 of that are tables of addresses that the loader has written into.
const PRIVATE_MAX: f64 = 2.0 * MIB;
const MIB: f64 = 1048576.0;

#[derive(Serialize)]
pub(super) struct Figures {
    row: &'static str,
    paper: &'static str,
    run: &'static str,
    runs: u64,
    pub(super) guests: Vec<GuestFigures>,
    docked: Vec<Docked>,
    cluster: Option<Cluster>,
    /// What was not done, and why.
    troubles: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct GuestFigures {
    guest: String,
    memory_mib: u64,
    /// Kernel, initial RAM disk and image of the disk.
    disk_template_bytes: u64,
    /// Processors of this host that others kept busy meanwhile, with VMs of ours, which nobody waits for.
    pub(super) others_processors: f64,
    templates: Vec<TemplateFigures>,
    rows: Vec<Row>,
    /// What was not done, and why.
    troubles: Vec<String>,
}

#[derive(Serialize)]
struct TemplateFigures {
    monitor: &'static str,
    bytes: u64,
    save_seconds: f64,
}

/// Activations of one kind.
#[derive(Serialize)]
struct Row {
    monitor: &'static str,
    at_once: u32,
    samples: Vec<Sample>,
}

/// One activation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) running_seconds: f64,
    /// Of each VM, sorted.
    output_seconds: Vec<f64>,
    /// While they stand, then at 1 and 5 s: medians over VMs.
    memory: Vec<Memory>,
    /// The same moments: all together.
    all_bytes: Vec<f64>,
}

impl Sample {
    pub(super) fn new(running_seconds: f64, first: &[Duration], looks: &[Vec<Memory>]) -> Self {
        let mut output_seconds: Vec<f64> = first.iter().map(Duration::as_secs_f64).collect();
        output_seconds.sort_by(f64::total_cmp);
        let middle = |look: &Vec<Memory>| {
            let of = |part: fn(&Memory) -> f64| median(look.iter().map(part).collect());
            Memory {
                private: of(|memory| memory.private).unwrap_or(0.0),
                dirty: of(|memory| memory.dirty).unwrap_or(0.0),
                proportional: of(|memory| memory.proportional).unwrap_or(0.0),
            }
        };
        let all = |look: &Vec<Memory>| look.iter().map(|memory| memory.proportional).sum();
        Self {
            running_seconds,
            output_seconds,
            memory: looks.iter().map(middle).collect(),
            all_bytes: looks.iter().map(all).collect(),
        }
    }

    /// The time within which so many of a hundred had said something.
    fn output(&self, percent: usize) -> Option<f64> {
        let last = self.output_seconds.len().checked_sub(1)?;
        self.output_seconds.get((self.output_seconds.len() * percent / 100).min(last)).copied()
    }

    fn memory(&self, look: usize, of: fn(&Memory) -> f64) -> Option<f64> {
        self.memory.get(look).map(|memory| of(memory) / MIB)
    }
}

type Column = (&'static str, fn(&Sample) -> Option<f64>);

const COLUMNS: [Column; 8] = [
    ("all run", |sample| Some(sample.running_seconds * 1e3)),
    ("output p50", |sample| Some(sample.output(50)? * 1e3)),
    ("output p99", |sample| Some(sample.output(99)? * 1e3)),
    ("stands", |sample| sample.memory(0, |memory| memory.private)),
    ("1 s", |sample| sample.memory(1, |memory| memory.private)),
    ("5 s", |sample| sample.memory(2, |memory| memory.private)),
    ("dirty 5 s", |sample| sample.memory(2, |memory| memory.dirty)),
    ("all 5 s", |sample| sample.all_bytes.get(2).map(|bytes| bytes / MIB)),
];

impl Figures {
    pub(super) fn new(runs: u64) -> Self {
        let (guests, docked, troubles) = (Vec::new(), Vec::new(), Vec::new());
        let row = "substrate";
        Self { row, paper: PAPER, run: RUN, runs, guests, docked, cluster: None, troubles }
    }

    pub(super) fn add_docked(&mut self, docked: Result<Vec<Docked>>) {
        match docked {
            Ok(docked) => self.docked = docked,
            Err(error) => self.troubles.push(format!("docked: {error:#}")),
        }
    }

    pub(super) fn add_cluster(&mut self, cluster: Result<Cluster>) {
        match cluster {
            Ok(cluster) => self.cluster = Some(cluster),
            Err(error) => self.troubles.push(format!("cluster: {error:#}")),
        }
    }

    /// What went wrong at last.
    pub(super) fn check(&self) -> Result<()> {
        match self.troubles.first() {
            Some(trouble) => bail!("{trouble}"),
            None => Ok(()),
        }
    }

    /// The pool and the cluster.
    pub(super) fn docked_text(&self) -> String {
        let mut text = String::new();
        for docked in &self.docked {
            let mib = |bytes: u64| bytes as f64 / MIB;
            let _ = writeln!(
                text,
                "{} docked, the last of them {} in {:.2} s: {:.1} MiB, {:.1} if nothing were stored once, {:.1} a GiB; \
                 their disk templates {:.1} MiB",
                docked.count,
                docked.guest,
                docked.seconds,
                mib(docked.bytes),
                mib(docked.apart_bytes),
                docked.count as f64 * 1024.0 / mib(docked.bytes.max(1)),
                mib(docked.template_bytes)
            );
        }
        if let Some(cluster) = &self.cluster {
            let _ = writeln!(
                text,
                "a cluster of {}: {:.0} ms until all have answered with their names",
                cluster.members,
                cluster.seconds * 1e3
            );
        }
        for trouble in &self.troubles {
            let _ = writeln!(text, "! {trouble}");
        }
        text
    }

    pub(super) fn head(&self) -> String {
        format!("substrate\npaper: {PAPER}\nrun:   {RUN}\n\nmedians of {} runs\n", self.runs)
    }

    /// Times to the first output of the middle VM.
    pub(super) fn draw(&self, file: &Path) -> Result<()> {
        let mut series: Vec<&'static str> = Vec::new();
        for row in self.guests.iter().flat_map(|guest| &guest.rows) {
            if !series.contains(&row.monitor) {
                series.push(row.monitor);
            }
        }
        let mut rows = Vec::new();
        for guest in &self.guests {
            let mut counts: Vec<u32> = guest.rows.iter().map(|row| row.at_once).collect();
            counts.dedup();
            for count in counts {
                let of = |monitor: &&'static str| {
                    let row = guest.row(monitor, count)?;
                    row.median(|sample| Some(sample.output(50)? * 1e3))
                };
                let figures = series.iter().map(of).collect();
                rows.push(DotRow { name: format!("{} {count} at once", guest.guest), figures });
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let dots = Dots {
            title: "From the command to the first output of the middle VM, ms".into(),
            unit: "logarithmic; left is sooner".into(),
            series: series.iter().map(|&name| name.to_owned()).collect(),
            rows,
        };
        dots.draw(file)
    }
}

impl Row {
    fn median(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(figure).collect())
    }
}

impl GuestFigures {
    pub(super) fn new(subject: &Subject, disk_template_bytes: u64) -> Self {
        Self {
            guest: subject.load.to_owned(),
            memory_mib: subject.memory_mib,
            disk_template_bytes,
            others_processors: 0.0,
            templates: Vec::new(),
            rows: Vec::new(),
            troubles: Vec::new(),
        }
    }

    pub(super) fn add_template(&mut self, monitor: &'static str, template: &Template) {
        let (bytes, save_seconds) = (template.bytes, template.seconds);
        self.templates.push(TemplateFigures { monitor, bytes, save_seconds });
    }

    pub(super) fn add(&mut self, monitor: &'static str, at_once: u32, sample: Sample) {
        let same = |row: &&mut Row| row.monitor == monitor && row.at_once == at_once;
        if let Some(row) = self.rows.iter_mut().find(same) {
            row.samples.push(sample);
            return;
        }
        self.rows.push(Row { monitor, at_once, samples: vec![sample] });
        self.rows.sort_by_key(|row| row.at_once);
    }

    fn row(&self, monitor: &str, at_once: u32) -> Option<&Row> {
        self.rows.iter().find(|row| row.monitor == monitor && row.at_once == at_once)
    }

    /// At once, and again below the table.
    pub(super) fn trouble(&mut self, monitor: &str, error: &anyhow::Error) {
        let trouble = format!("{monitor}: {error:#}");
        eprintln!("! {trouble}");
        self.troubles.push(trouble.lines().next().unwrap_or_default().to_owned());
    }

    /// That each goes on from where it was saved has been seen before it came here.
    pub(super) fn check(&self) -> Result<()> {
        for row in self.rows.iter().filter(|row| row.monitor == "fathom" && row.at_once > 1) {
            match row.median(|sample| sample.memory(0, |memory| memory.private)) {
                Some(private) if private < PRIVATE_MAX / MIB => {}
                private => bail!("{}: {private:?} MiB of each VM that stands", self.guest),
            }
        }
        Ok(())
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "\n{}, {} MiB; others kept {:.1} processors busy\n{:14} {:>7}",
            self.guest, self.memory_mib, self.others_processors, "", "at once"
        );
        for (name, _) in COLUMNS {
            let _ = write!(text, "{name:>12}");
        }
        text.push('\n');
        for row in &self.rows {
            let _ = write!(text, "{:14} {:>7}", row.monitor, row.at_once);
            for (_, of) in COLUMNS {
                let _ = write!(text, "{:>12}", digits(row.median(of)));
            }
            text.push('\n');
        }
        let per_gib = |bytes: u64| 1024.0 * MIB / bytes.max(1) as f64;
        for template in &self.templates {
            let bytes = template.bytes;
            let _ = writeln!(
                text,
                "saved by {}: {:.1} MiB in {:.2} s, {:.1} a GiB",
                template.monitor,
                bytes as f64 / MIB,
                template.save_seconds,
                per_gib(bytes)
            );
        }
        let bytes = self.disk_template_bytes;
        let _ = writeln!(
            text,
            "its disk template (kernel, initial RAM disk, image): {:.1} MiB, {:.1} a GiB",
            bytes as f64 / MIB,
            per_gib(bytes)
        );
        for trouble in &self.troubles {
            let _ = writeln!(text, "! {trouble}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(private: f64) -> Sample {
        let memory = Memory { private: private * MIB, dirty: MIB, proportional: 3.0 * MIB };
        let first: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        Sample::new(0.05, &first, &[vec![memory; 2], vec![memory], vec![memory; 3]])
    }

    fn guest(private: f64) -> GuestFigures {
        let mut guest = GuestFigures::new(&Subject::smallest(), 1 << 28);
        guest.add("fathom", 10, sample(private));
        guest
    }

    #[test]
    fn the_table_says_when_and_how_much() {
        let text = guest(1.5).text();
        let line = text.lines().find(|line| line.starts_with("fathom")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected =
            ["fathom", "10", "50.0", "51.0", "100", "1.50", "1.50", "1.50", "1.00", "9.00"];
        assert_eq!(words, expected, "{text}");
        assert!(text.contains("256.0 MiB, 4.0 a GiB"), "{text}");
    }

    #[test]
    fn a_vm_with_much_to_itself_fails() {
        assert!(guest(1.9).check().is_ok() && guest(2.1).check().is_err());
    }
}
