//! All figures, and how they are shown.

use super::super::digits;
use super::beats::{Outside, Usual};
use super::cache::Cache;
use super::fathom::Inside;
use super::guests::Subject;
use super::monitor::{Sample, Saved};
use crate::bench::median;
use anyhow::{Result, bail};
use serde::Serialize;
use std::fmt::Write as _;

const PAPER: &str = "Zhang and others, \"Fast restore of checkpointed memory using working set estimation\" (VEE 2011): \
    time to responsiveness; restore by the working set is more than 89 % better for some loads";
const RUN: &str = "a guest that beats after each piece of its work, saved and restored. Times since the command; a beat \
    that comes later than 95 % did before the save is a stall. TTR(window, x): from when on no window has less than x of \
    its time to itself; lost: all stalls of the first seconds. Rows `undisturbed`: the same of the guest before it was \
    saved, by monitor";
/// Of lazy's demand faults, so many may be left with the working set: on a small guest a few that come before its pages do
/// are much of lazy's two hundred.
const FAULTS_MAX: f64 = 0.1;

#[derive(Serialize)]
pub(super) struct Figures {
    row: &'static str,
    paper: &'static str,
    run: &'static str,
    runs: u64,
    pub(super) guests: Vec<GuestFigures>,
}

#[derive(Serialize)]
pub(super) struct GuestFigures {
    pub(super) guest: String,
    memory_mib: u64,
    /// Processors of this host that others kept busy meanwhile.
    pub(super) others_processors: f64,
    pub(super) saved: Vec<SavedFigures>,
    pub(super) restores: Vec<RestoreFigures>,
    /// What was not done, and why.
    troubles: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct SavedFigures {
    pub(super) monitor: &'static str,
    pub(super) usual: Usual,
    undisturbed: Outside,
    bytes: u64,
    seconds: f64,
}

/// Restores of one kind.
#[derive(Serialize)]
pub(super) struct RestoreFigures {
    pub(super) monitor: &'static str,
    pub(super) mode: &'static str,
    pub(super) cache: Cache,
    pub(super) samples: Vec<Sample>,
}

impl Figures {
    pub(super) fn new(runs: u64) -> Self {
        Self { row: "restore", paper: PAPER, run: RUN, runs, guests: Vec::new() }
    }

    pub(super) fn head(&self) -> String {
        let runs = self.runs;
        format!(
            "restore\npaper: {PAPER}\nrun:   {RUN}\n\nmedians of {runs} runs; ms where a column names no unit\n"
        )
    }
}

/// A column of a table: how it is called, and what is in it.
type Column<R> = (&'static str, fn(&R) -> Option<f64>);

/// What is seen from outside.
const OUTSIDE: [Column<Outside>; 7] = [
    ("1st beat", |outside| Some(outside.first_beat_seconds * 1e3)),
    ("0.1s 90%", |outside| Some(outside.ttr(0.1, 0.9)? * 1e3)),
    ("1s 90%", |outside| Some(outside.ttr(1.0, 0.9)? * 1e3)),
    ("1s 95%", |outside| Some(outside.ttr(1.0, 0.95)? * 1e3)),
    ("5s 95%", |outside| Some(outside.ttr(5.0, 0.95)? * 1e3)),
    ("5s 99%", |outside| Some(outside.ttr(5.0, 0.99)? * 1e3)),
    ("lost", |outside| Some(outside.degradation_seconds * 1e3)),
];
/// What a report says; those that no report has are left out.
const INSIDE: [Column<Sample>; 12] = [
    ("1st instr", |sample| Some(sample.inside()?.first_instruction_seconds? * 1e3)),
    ("complete", |sample| Some(sample.inside()?.complete_seconds? * 1e3)),
    ("blocked", |sample| {
        let blocked = sample.inside()?.blocked_seconds.as_ref()?;
        blocked.iter().copied().reduce(f64::max).map(|seconds| seconds * 1e3)
    }),
    ("in 1s 95%", |sample| Some(sample.inside()?.ttr(1.0, 0.95)? * 1e3)),
    ("demand", Sample::demand),
    ("neighbours", |sample| Some(sample.inside()?.faults.as_ref()?.neighbours as f64)),
    ("waited", |sample| Some(sample.inside()?.faults.as_ref()?.waited as f64)),
    ("device", |sample| Some(sample.inside()?.faults.as_ref()?.device as f64)),
    ("in set", |sample| Some(sample.inside()?.working_set_frames? as f64)),
    ("prefetched", |sample| Some(sample.inside()?.frames_prefetched? as f64)),
    ("read MiB", |sample| Some(sample.inside()?.bytes_read? as f64 / f64::from(1 << 20))),
    ("disk MiB", |sample| Some(sample.bytes_from_disk as f64 / f64::from(1 << 20))),
];

impl Sample {
    fn inside(&self) -> Option<&Inside> {
        self.inside.as_ref()
    }

    fn demand(&self) -> Option<f64> {
        Some(self.inside()?.faults.as_ref()?.demand as f64)
    }
}

impl RestoreFigures {
    pub(super) fn median(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(figure).collect())
    }

    /// The run in the middle, by what was lost.
    pub(super) fn middle(&self) -> Option<&Sample> {
        let mut samples: Vec<&Sample> = self.samples.iter().collect();
        let lost = |sample: &Sample| sample.outside.degradation_seconds;
        samples.sort_by(|a, b| lost(a).total_cmp(&lost(b)));
        samples.get(samples.len() / 2).copied()
    }
}

impl GuestFigures {
    pub(super) fn new(subject: &Subject) -> Self {
        Self {
            guest: subject.load.to_owned(),
            memory_mib: subject.memory_mib,
            others_processors: 0.0,
            saved: Vec::new(),
            restores: Vec::new(),
            troubles: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.guest, self.memory_mib)
    }

    pub(super) fn add_saved(&mut self, monitor: &'static str, saved: &Saved) {
        self.saved.push(SavedFigures {
            monitor,
            usual: saved.usual,
            undisturbed: saved.undisturbed.clone(),
            bytes: saved.bytes,
            seconds: saved.seconds,
        });
    }

    /// `kind`: monitor and mode.
    pub(super) fn add(&mut self, kind: [&'static str; 2], cache: Cache, sample: Sample) {
        let [monitor, mode] = kind;
        let same = |row: &&mut RestoreFigures| row.mode == mode && row.cache == cache;
        if let Some(row) = self.restores.iter_mut().find(same) {
            row.samples.push(sample);
            return;
        }
        self.restores.push(RestoreFigures { monitor, mode, cache, samples: vec![sample] });
        self.restores.sort_by_key(|row| row.cache);
    }

    /// At once, and again below the table.
    pub(super) fn trouble(&mut self, mode: &str, error: &anyhow::Error) {
        let trouble = format!("{mode}: {error:#}");
        eprintln!("! {trouble}");
        self.troubles.push(trouble.lines().next().unwrap_or_default().to_owned());
    }

    /// Each restore was proven before it came here.
    pub(super) fn check(&self) -> Result<()> {
        for lazy in self.restores.iter().filter(|row| row.mode == "lazy") {
            let same = |row: &&RestoreFigures| row.mode == "learnt" && row.cache == lazy.cache;
            let Some(learnt) = self.restores.iter().find(same) else { continue };
            let demand = |row: &RestoreFigures| row.median(Sample::demand);
            match (demand(lazy), demand(learnt)) {
                (Some(lazy), Some(learnt)) if lazy > 0.0 && learnt <= FAULTS_MAX * lazy => {}
                (lazy, learnt) => {
                    bail!("{}: demand faults: {learnt:?} learnt, {lazy:?} lazy", self.guest)
                }
            }
        }
        Ok(())
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "\n{}, {} MiB; others kept {:.1} processors busy\n",
            self.guest, self.memory_mib, self.others_processors
        );
        let inside: Vec<_> = INSIDE
            .iter()
            .filter(|column| self.has(column.1))
            .map(|(name, of)| (*name, *of))
            .collect();
        let _ = write!(text, "{:26}", "");
        for name in OUTSIDE.iter().map(|(name, _)| name).chain(inside.iter().map(|(name, _)| name))
        {
            let _ = write!(text, "{name:>11}");
        }
        text.push('\n');
        for saved in &self.saved {
            let _ = write!(text, "{:12} {:12} ", saved.monitor, "undisturbed");
            for (_, of) in OUTSIDE {
                // It has always run.
                let _ = write!(text, "{:>11}", digits(of(&saved.undisturbed)));
            }
            text.push('\n');
        }
        for row in &self.restores {
            let _ = write!(text, "{:12} {:12} ", row.mode, row.cache.name());
            for (_, of) in OUTSIDE {
                let _ = write!(text, "{:>11}", digits(row.median(|sample| of(&sample.outside))));
            }
            for (_, of) in &inside {
                let _ = write!(text, "{:>11}", digits(row.median(of)));
            }
            text.push('\n');
        }
        for saved in &self.saved {
            let _ = writeln!(
                text,
                "saved by {}: {:.1} MiB on the disk in {:.2} s; beats {:.2} ms apart, {} of them at most {:.1}",
                saved.monitor,
                saved.bytes as f64 / f64::from(1 << 20),
                saved.seconds,
                saved.usual.mean_seconds * 1e3,
                saved.usual.group,
                saved.usual.interval_seconds * 1e3
            );
        }
        for trouble in &self.troubles {
            let _ = writeln!(text, "! {trouble}");
        }
        text
    }

    fn has(&self, of: fn(&Sample) -> Option<f64>) -> bool {
        self.restores.iter().flat_map(|row| &row.samples).any(|sample| of(sample).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fathom::Faults;
    use super::*;
    use std::time::Duration;

    const USUAL: Usual = Usual { interval_seconds: 0.01, mean_seconds: 0.01, group: 1 };

    fn sample(first_ms: u64, demand: Option<u64>) -> Sample {
        let beats = [first_ms, first_ms + 10].map(Duration::from_millis);
        let faults = demand.map(|demand| Faults { demand, ..Faults::default() });
        Sample {
            outside: Outside::of(USUAL, &beats),
            beats_seconds: Vec::new(),
            bytes_from_disk: 0,
            inside: faults.map(|faults| Inside { faults: Some(faults), ..Inside::default() }),
        }
    }

    pub(in super::super) fn guest(rows: &[(&'static str, u64, Option<u64>)]) -> GuestFigures {
        let mut guest = GuestFigures::new(&Subject::smallest());
        for &(mode, first, demand) in rows {
            guest.add(["fathom", mode], Cache::Warm, sample(first, demand));
        }
        guest
    }

    #[test]
    fn medians_are_shown_and_what_nobody_tells_is_not() {
        let rows = [("eager", 30, None), ("eager", 500, None), ("eager", 40, None)];
        let text = guest(&rows).text();
        let line = text.lines().find(|line| line.starts_with("eager")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..3], ["eager", "warm", "40.0"], "{text}");
        assert!(!text.contains("demand") && text.contains("disk MiB"), "{text}");
    }

    #[test]
    fn a_working_set_that_is_not_there_in_time_fails() {
        let of = |ours| guest(&[("lazy", 1, Some(1000)), ("learnt", 1, ours)]).check();
        assert!(of(Some(100)).is_ok());
        assert!(of(Some(101)).is_err() && of(None).is_err());
        assert!(guest(&[("eager", 1, None)]).check().is_ok());
    }
}
