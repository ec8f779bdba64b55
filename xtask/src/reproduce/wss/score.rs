//! Estimates beside what there was.

use super::run::Recording;
use crate::bench::median;
use serde::Serialize;

/// Of one load. Errors in percent of what there was; of sampling in points: percent of all memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Score {
    pub(super) load: String,
    /// Epochs that were compared.
    pub(super) epochs: usize,
    /// The largest working set of a second, MiB.
    pub(super) largest_mib: f64,
    /// Against the log of accesses: mean of the absolute errors.
    pub(super) census: Option<f64>,
    pub(super) order: Option<f64>,
    pub(super) scan: Option<f64>,
    /// Of each period's sample against that period.
    pub(super) sample_points: Option<f64>,
    /// Of the largest of three averages, which is slow to fall.
    pub(super) sampling_points: Option<f64>,
    /// Of the census against what the load says it touches, with page tables and what an idle guest touches, worst
    /// phase.
    pub(super) census_known: Option<f64>,
    /// Mean distance of the sampled curve from the exact one of the same references.
    pub(super) curve: Option<f64>,
    /// And from that of intervals of 2 ms.
    pub(super) curve_fine: Option<f64>,
    /// Part of all frames in the sample.
    pub(super) rate: Option<f64>,
    pub(super) demand_mib: f64,
    pub(super) demand_confidence: f64,
    pub(super) demand_why: String,
}

/// What [`Score::troubles`] accepts.
const EXACT_MOST: f64 = 2.0;
const POINTS_MOST: f64 = 5.0;
const CURVE_MOST: f64 = 0.02;

/// Working sets below this are not judged: two milliseconds at an epoch's end are a large part of them.
const LEAST_PAGES: f64 = 512.0;

pub(super) fn score(load: &str, recording: &Recording) -> Score {
    let judged = judged(recording);
    let truth = |epoch: usize| recording.truth.epochs[epoch].map(f64::from);
    let errors = |method: &str, column: usize| {
        let errors = judged.iter().filter_map(|&epoch| {
            let (found, there) = (recording.lines[epoch].pages(method)?, truth(epoch)[column]);
            Some(100.0 * (found - there).abs() / there)
        });
        mean(errors.collect())
    };
    let points = judged.iter().filter_map(|&epoch| {
        let found = recording.lines[epoch].pages("sampling")?;
        Some(100.0 * (found - truth(epoch)[1]).abs() / recording.memory_pages as f64)
    });
    let last = recording.lines.last();
    let curve = last.and_then(super::log::Line::curve);
    let off = |truth| {
        let curve = curve.as_ref()?;
        Some(curve.mean_difference(truth, recording.memory_pages))
    };
    let largest = judged.iter().map(|&epoch| truth(epoch)[0]).fold(0.0, f64::max);
    let demand = last.map(|line| line.demand.clone());
    Score {
        load: load.to_owned(),
        epochs: judged.len(),
        largest_mib: largest / 256.0,
        census: errors("census", 0),
        order: errors("order", 0),
        scan: scan_error(recording, &judged),
        sample_points: sample_error(recording, &judged),
        sampling_points: mean(points.collect()),
        census_known: known(recording),
        curve: off(&recording.truth.curve),
        curve_fine: off(&recording.truth.fine),
        rate: last.and_then(|line| line.rate),
        demand_mib: demand.as_ref().map_or(0.0, |demand| demand.bytes as f64 / f64::from(1 << 20)),
        demand_confidence: demand.as_ref().map_or(0.0, |demand| demand.confidence),
        demand_why: demand.map_or_else(String::new, |demand| demand.why),
    }
}

impl Score {
    /// What misses its target; a `quick` run is so short a sample that what samples say may be off four times as far.
    pub(super) fn troubles(&self, quick: bool) -> Vec<String> {
        let slack = if quick { 4.0 } else { 1.0 };
        let limits = [
            ("census", self.census, EXACT_MOST),
            ("order", self.order, EXACT_MOST),
            ("sampling", self.sample_points, POINTS_MOST * slack),
            ("curve", self.curve, CURVE_MOST * slack),
        ];
        let over = limits.iter().filter_map(|(what, found, most)| match found {
            Some(found) if found <= most => None,
            Some(found) => Some(format!("{}: {what} is off by {found:.3}, not {most}", self.load)),
            None => Some(format!("{}: {what} found nothing", self.load)),
        });
        over.collect()
    }
}

/// Epochs of the work, large enough; the first one is the boot's.
fn judged(recording: &Recording) -> Vec<usize> {
    let [begin, end] = recording.work;
    let inside = |epoch: &usize| {
        let before = epoch.checked_sub(1).map(|before| recording.lines[before].unix_ns);
        let at = recording.lines[*epoch].unix_ns;
        before.is_some_and(|before| before >= begin)
            && at <= end
            && f64::from(recording.truth.epochs[*epoch][0]) >= LEAST_PAGES
    };
    // The last line is of the end, not of an epoch.
    (0..recording.lines.len().saturating_sub(1)).filter(inside).collect()
}

/// A scan's estimate stands until the next: where it has just changed, it is of the last three epochs.
fn scan_error(recording: &Recording, judged: &[usize]) -> Option<f64> {
    let fresh = judged.iter().filter_map(|&epoch| {
        let found = recording.lines[epoch].pages("scan")?;
        let before = recording.lines[epoch.checked_sub(1)?].pages("scan");
        let there = f64::from(recording.truth.epochs[epoch][1]);
        (before != Some(found)).then(|| 100.0 * (found - there).abs() / there)
    });
    mean(fresh.collect())
}

/// A sample's as well: of the last three epochs.
fn sample_error(recording: &Recording, judged: &[usize]) -> Option<f64> {
    let fresh = judged.iter().filter_map(|&epoch| {
        let found = recording.lines[epoch].last_sample?;
        let before = recording.lines[epoch.checked_sub(1)?].last_sample;
        let there = f64::from(recording.truth.epochs[epoch][1]) / recording.memory_pages as f64;
        (before != Some(found)).then(|| 100.0 * (found - there).abs())
    });
    mean(fresh.collect())
}

/// By what the load says: the middle of each phase's seconds beside its bytes, its page tables and the idle phase.
fn known(recording: &Recording) -> Option<f64> {
    let found = |[begin, end]: [u64; 2]| {
        let inside = recording
            .lines
            .windows(2)
            .filter(|two| two[0].unix_ns >= begin && two[1].unix_ns <= end);
        median(inside.filter_map(|two| two[1].pages("census")).collect())
    };
    let idle = recording.phases.iter().find(|phase| phase.bytes == 0)?;
    let base = found(idle.steady)?;
    let off = recording.phases.iter().filter(|phase| phase.bytes != 0).map(|phase| {
        let pages = phase.bytes / 4096;
        let there = (pages + pages.div_ceil(512)) as f64 + base;
        found(phase.steady).map(|found| 100.0 * (found - there).abs() / there)
    });
    off.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
}

fn mean(values: Vec<f64>) -> Option<f64> {
    let count = values.len();
    (count != 0).then(|| values.into_iter().sum::<f64>() / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_and_what_is_missing_is_told() {
        let good = Score {
            census: Some(0.1),
            order: Some(2.0),
            sample_points: Some(4.9),
            curve: Some(0.01),
            ..Score::default()
        };
        assert!(good.troubles(false).is_empty());
        let bad = Score { census: Some(2.1), curve: None, ..good };
        assert_eq!(bad.troubles(false).len(), 2);
    }
}
