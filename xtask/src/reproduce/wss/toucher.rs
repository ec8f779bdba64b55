//! The load `step`, phase by phase: what random frames say of it against the log of all its accesses.

use super::super::place::Place;
use super::loads::Load;
use super::run::{Phase, Recording, record};
use super::truth::Truth;
use crate::kit::Kit;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;

/// In a period of `--estimate-log` (`estimate_log.rs` of the crate `vmm`).
pub(in super::super) const FRAMES: u32 = 1000;

/// A phase. MiB, but for what is in points: percent of all memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in super::super) struct Step {
    /// What the load says it touches.
    pub(in super::super) touched_mib: f64,
    /// By the log, in the same periods as the sample; mean.
    pub(in super::super) used_mib: Option<f64>,
    /// By a period's sample; mean.
    pub(in super::super) sample_mib: Option<f64>,
    /// The largest of three averages, at the phase's end.
    pub(in super::super) largest_mib: Option<f64>,
    /// Periods whose end was in the phase.
    pub(in super::super) periods: usize,
    /// Of each of these against the log: mean of the absolute errors.
    pub(in super::super) sample_points: Option<f64>,
    /// Of the largest average at the end.
    pub(in super::super) largest_points: Option<f64>,
}

pub(in super::super) struct Toucher {
    pub(in super::super) steps: Vec<Step>,
    /// By seconds, MiB.
    pub(in super::super) series: [Vec<(f64, f64)>; 3],
    pub(in super::super) memory_mib: u64,
}

/// Names of [`Toucher::series`].
pub(in super::super) const SERIES: [&str; 3] =
    ["used in a period", "sample of a period", "largest of three averages"];

const MIB_PAGES: f64 = 256.0;

pub(in super::super) fn touch(
    place: &Place,
    kit: &Kit,
    memory_mib: u64,
    quick: bool,
    folder: &Path,
) -> Result<Toucher> {
    let load = Load::find("step").context("the load `step`")?;
    let recording = record(place, kit, load, memory_mib, quick, folder)?;
    let truth = recording.truth.as_ref().context("this engine has no log of accesses")?;
    let steps = recording.phases.iter().map(|phase| step(&recording, truth, *phase)).collect();
    Ok(Toucher { steps, series: series(&recording, truth), memory_mib })
}

/// What is known at the end of an epoch, in parts of all memory.
#[derive(Clone, Copy)]
struct At {
    unix_ns: u64,
    used: f64,
    sample: Option<f64>,
    /// A period has ended with this epoch.
    is_new: bool,
    largest: Option<f64>,
}

fn epochs(recording: &Recording, truth: &Truth) -> Vec<At> {
    let all = recording.memory_pages as f64;
    let mut before = None;
    let epochs = recording.lines.iter().zip(&truth.epochs).map(|(line, used)| {
        let is_new = line.last_sample != before;
        before = line.last_sample;
        At {
            unix_ns: line.unix_ns,
            used: f64::from(used[1]) / all,
            sample: line.last_sample,
            is_new,
            largest: line.pages("sampling").map(|pages| pages / all),
        }
    });
    epochs.collect()
}

fn step(recording: &Recording, truth: &Truth, phase: Phase) -> Step {
    let [begin, end] = phase.steady;
    let inside = |at: &At| (begin..=end).contains(&at.unix_ns);
    let epochs: Vec<At> = epochs(recording, truth).into_iter().filter(inside).collect();
    let mib = |part: f64| part * recording.memory_pages as f64 / MIB_PAGES;
    of_epochs(&epochs, phase.bytes as f64 / f64::from(1 << 20), mib)
}

fn of_epochs(epochs: &[At], touched_mib: f64, mib: impl Fn(f64) -> f64) -> Step {
    let ended: Vec<(f64, f64)> =
        epochs.iter().filter(|at| at.is_new).filter_map(|at| Some((at.sample?, at.used))).collect();
    let mean = |values: Vec<f64>| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let points = |found: f64, used: f64| 100.0 * (found - used).abs();
    let last = epochs.last().and_then(|at| Some((at.largest?, at.used)));
    Step {
        touched_mib,
        used_mib: mean(ended.iter().map(|(_, used)| *used).collect()).map(&mib),
        sample_mib: mean(ended.iter().map(|(sample, _)| *sample).collect()).map(&mib),
        largest_mib: last.map(|(largest, _)| mib(largest)),
        periods: ended.len(),
        sample_points: mean(ended.iter().map(|(sample, used)| points(*sample, *used)).collect()),
        largest_points: last.map(|(largest, used)| points(largest, used)),
    }
}

fn series(recording: &Recording, truth: &Truth) -> [Vec<(f64, f64)>; 3] {
    let zero = recording.lines.first().map_or(0, |line| line.unix_ns);
    let mib = |part: f64| part * recording.memory_pages as f64 / MIB_PAGES;
    let epochs = epochs(recording, truth);
    let line = |part: &dyn Fn(&At) -> Option<f64>| {
        let point = |at: &At| Some((at.unix_ns.saturating_sub(zero) as f64 / 1e9, mib(part(at)?)));
        epochs.iter().filter_map(point).collect()
    };
    [line(&|at| Some(at.used)), line(&|at| at.sample), line(&|at| at.largest)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_counts_once_and_beside_its_own_period() {
        let at = |used, sample, is_new| At {
            unix_ns: 0,
            used,
            sample: Some(sample),
            is_new,
            largest: Some(0.9),
        };
        let epochs = [at(0.5, 0.9, false), at(0.5, 0.4, true), at(0.5, 0.6, true)];
        let step = of_epochs(&epochs, 30.0, |part| part * 256.0);
        assert_eq!((step.periods, step.used_mib, step.sample_mib), (2, Some(128.0), Some(128.0)));
        assert!(step.sample_points.is_some_and(|points| (points - 10.0).abs() < 1e-9));
        assert!(step.largest_points.is_some_and(|points| (points - 40.0).abs() < 1e-9));
        let none = of_epochs(&[], 30.0, |part| part);
        assert_eq!((none.periods, none.sample_points, none.largest_mib), (0, None, None));
    }
}
