//! Estimates beside what there was.

use super::log::Line;
use super::run::Recording;
use super::truth::Truth;
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
/// Of what the load says, beside which an idle guest does not always use the same.
const KNOWN_MOST: f64 = 5.0;

/// Working sets below this are not judged: two milliseconds at an epoch's end are a large part of them.
const LEAST_PAGES: f64 = 512.0;

pub(super) fn score(load: &str, recording: &Recording) -> Score {
    match &recording.truth {
        Some(truth) => by_log(load, recording, truth),
        None => by_word(load, recording),
    }
}

/// Where there is no log of accesses: by what the load says.
fn by_word(load: &str, recording: &Recording) -> Score {
    let lines = inside(recording, recording.work);
    let sampled = known(recording, |line| Some(line.last_sample? * recording.memory_pages as f64));
    let of_memory = sampled.map(|known| known.off / recording.memory_pages as f64);
    let census = |line: &Line| line.pages("census");
    Score {
        load: load.to_owned(),
        epochs: lines.len(),
        largest_mib: lines.iter().filter_map(|line| census(line)).fold(0.0, f64::max) / 256.0,
        census_known: known(recording, census).map(Known::percent),
        scan: known(recording, |line| line.pages("scan")).map(Known::percent),
        sample_points: of_memory.map(|off| 100.0 * off),
        ..demanded(recording)
    }
}

/// What is recommended at the end.
fn demanded(recording: &Recording) -> Score {
    let Some(last) = recording.lines.last() else { return Score::default() };
    Score {
        rate: last.rate,
        demand_mib: last.demand.bytes as f64 / f64::from(1 << 20),
        demand_confidence: last.demand.confidence,
        demand_why: last.demand.why.clone(),
        ..Score::default()
    }
}

fn by_log(load: &str, recording: &Recording, log: &Truth) -> Score {
    let judged = judged(recording, log);
    let truth = |epoch: usize| log.epochs[epoch].map(f64::from);
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
    let curve = recording.lines.last().and_then(Line::curve);
    let off = |truth| {
        let curve = curve.as_ref()?;
        Some(curve.mean_difference(truth, recording.memory_pages))
    };
    let largest = judged.iter().map(|&epoch| truth(epoch)[0]).fold(0.0, f64::max);
    Score {
        load: load.to_owned(),
        epochs: judged.len(),
        largest_mib: largest / 256.0,
        census: errors("census", 0),
        order: errors("order", 0),
        scan: scan_error(recording, log, &judged),
        sample_points: sample_error(recording, log, &judged),
        sampling_points: mean(points.collect()),
        census_known: known(recording, |line| line.pages("census")).map(Known::percent),
        curve: off(&log.curve),
        curve_fine: off(&log.fine),
        ..demanded(recording)
    }
}

impl Score {
    /// What misses its target; a `quick` run is so short a sample that what samples say may be off four times as far.
    /// On KVM by what the load says.
    pub(super) fn troubles(&self, quick: bool, on_kvm: bool) -> Vec<String> {
        let slack = if quick { 4.0 } else { 1.0 };
        let on_kvms = [
            ("census", self.census_known, KNOWN_MOST),
            ("scan", self.scan, KNOWN_MOST),
            ("sampling", self.sample_points, POINTS_MOST * slack),
        ];
        let others = [
            ("census", self.census, EXACT_MOST),
            ("order", self.order, EXACT_MOST),
            ("sampling", self.sample_points, POINTS_MOST * slack),
            ("curve", self.curve, CURVE_MOST * slack),
        ];
        let limits: Vec<_> = if on_kvm { on_kvms.to_vec() } else { others.to_vec() };
        let over = limits.into_iter().filter_map(|(what, found, most)| match found {
            Some(found) if found <= most => None,
            Some(found) => Some(format!("{}: {what} is off by {found:.3}, not {most}", self.load)),
            None => Some(format!("{}: {what} found nothing", self.load)),
        });
        over.collect()
    }
}

/// Epochs of the work, large enough; the first one is the boot's.
fn judged(recording: &Recording, log: &Truth) -> Vec<usize> {
    let [begin, end] = recording.work;
    let inside = |epoch: &usize| {
        let before = epoch.checked_sub(1).map(|before| recording.lines[before].unix_ns);
        let at = recording.lines[*epoch].unix_ns;
        before.is_some_and(|before| before >= begin)
            && at <= end
            && f64::from(log.epochs[*epoch][0]) >= LEAST_PAGES
    };
    // The last line is of the end, not of an epoch.
    (0..recording.lines.len().saturating_sub(1)).filter(inside).collect()
}

/// A scan's estimate stands until the next: where it has just changed, it is of the last three epochs.
fn scan_error(recording: &Recording, log: &Truth, judged: &[usize]) -> Option<f64> {
    let fresh = judged.iter().filter_map(|&epoch| {
        let found = recording.lines[epoch].pages("scan")?;
        let before = recording.lines[epoch.checked_sub(1)?].pages("scan");
        let there = f64::from(log.epochs[epoch][1]);
        (before != Some(found)).then(|| 100.0 * (found - there).abs() / there)
    });
    mean(fresh.collect())
}

/// A sample's as well: of the last three epochs.
fn sample_error(recording: &Recording, log: &Truth, judged: &[usize]) -> Option<f64> {
    let fresh = judged.iter().filter_map(|&epoch| {
        let found = recording.lines[epoch].last_sample?;
        let before = recording.lines[epoch.checked_sub(1)?].last_sample;
        let there = f64::from(log.epochs[epoch][1]) / recording.memory_pages as f64;
        (before != Some(found)).then(|| 100.0 * (found - there).abs())
    });
    mean(fresh.collect())
}

/// How far an estimate is from what a load says, in the phase where that is farthest; pages.
#[derive(Clone, Copy)]
struct Known {
    off: f64,
    there: f64,
}

impl Known {
    fn percent(self) -> f64 {
        100.0 * self.off / self.there
    }
}

/// By what the load says: the middle of each phase's seconds beside its bytes, its page tables and the idle phase.
fn known(recording: &Recording, pages: impl Fn(&Line) -> Option<f64>) -> Option<Known> {
    let found = |steady| median(inside(recording, steady).into_iter().filter_map(&pages).collect());
    let idle = recording.phases.iter().find(|phase| phase.bytes == 0)?;
    let base = found(idle.steady)?;
    let off = recording.phases.iter().filter(|phase| phase.bytes != 0).map(|phase| {
        let own = phase.bytes / 4096;
        let there = (own + own.div_ceil(512)) as f64 + base;
        found(phase.steady).map(|found| Known { off: (found - there).abs(), there })
    });
    let off = off.collect::<Option<Vec<Known>>>()?;
    off.into_iter().max_by(|one, other| one.percent().total_cmp(&other.percent()))
}

/// Ends of the epochs that lie in this time.
fn inside(recording: &Recording, [begin, end]: [u64; 2]) -> Vec<&Line> {
    let epochs = recording.lines.windows(2);
    let epochs = epochs.filter(|two| two[0].unix_ns >= begin && two[1].unix_ns <= end);
    epochs.map(|two| &two[1]).collect()
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
        assert!(good.troubles(false, false).is_empty());
        let bad = Score { census: Some(2.1), curve: None, ..good.clone() };
        assert_eq!(bad.troubles(false, false).len(), 2);
        let on_kvm = Score { census_known: Some(1.0), scan: Some(5.1), ..good };
        assert_eq!(on_kvm.troubles(false, true).len(), 1);
    }
}
