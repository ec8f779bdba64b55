//! What was inferred beside what the guest's kernel says.
//!
//! An inference is right if the kernel says the same of the same block and frame, before: an inference shows later than
//! what it tells of. The two clocks are put together by blocks that were read, which the kernel adds to its cache
//! before the disk has them: the least difference is that of the clocks, but for the time that the quickest read took.
//!
//! What shows only after the load's end counts as right if the kernel said so before. A page of a new file that moves
//! before it is first written to its block came, for whom looks from outside, to where it moved.

use super::truth::{Block, Kind, Recording, Truth};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// The disk that the kernel's events are written to.
const TRACE: u32 = 2;

/// By so much an inference may be before what it tells of: the clocks are not exactly together.
const SLACK: f64 = 0.002;

/// Of what is right and found, with [`Scores::check`].
const LEAST: f64 = 0.97;

/// A line of `fathom run --cache-log`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Inferred {
    at_ns: u64,
    pub(super) change: Change,
    frame: u64,
    pub(super) disk: u32,
    pub(super) block: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Change {
    Insert,
    Evict,
    Drop,
    Move,
}

/// Inferences of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Score {
    /// The kernel says so, too.
    pub(super) right: u64,
    /// It does not.
    pub(super) wrong: u64,
    /// It says so, and nothing was inferred.
    pub(super) missed: u64,
    /// Of what the kernel says and was not inferred, what nobody could see: the frame was left, and is free at the end.
    pub(super) late: u64,
    /// How much later than the kernel, in seconds, of those that are right; rising.
    pub(super) lags: Vec<f64>,
    /// What was wrong, and what was missed.
    pub(super) faults: Vec<Fault>,
}

/// One inference that is wrong, or an event without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) block: Block,
    pub(super) frame: u64,
    /// In seconds of the guest's time-stamp counter.
    pub(super) at: f64,
    pub(super) missed: bool,
}

/// Of one load.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scores {
    pub(super) inserts: Score,
    pub(super) evictions: Score,
    /// Of the wrong evictions, those of blocks that nobody wanted any more.
    pub(super) dropped: u64,
    /// Inserts and evictions that are not judged.
    pub(super) outside: [u64; 2],
}

impl Score {
    /// Which part of what was inferred is right.
    pub(super) fn precision(&self) -> Option<f64> {
        part(self.right, self.wrong)
    }

    /// Which part of what there was was inferred.
    pub(super) fn recall(&self) -> Option<f64> {
        part(self.right, self.missed)
    }

    /// The lag that so many of a hundred do not exceed.
    pub(super) fn lag(&self, percent: usize) -> Option<f64> {
        let last = self.lags.len().checked_sub(1)?;
        Some(self.lags[last * percent / 100])
    }
}

impl Scores {
    /// Whether it is as good as it has to be.
    pub(super) fn check(&self) -> Result<()> {
        for (what, score) in [("inserts", &self.inserts), ("evictions", &self.evictions)] {
            for (how, part) in [("right", score.precision()), ("found", score.recall())] {
                if let Some(part) = part.filter(|&part| part < LEAST) {
                    bail!("of {what} {:.2} % are {how}, not {:.0}", part * 100.0, LEAST * 100.0);
                }
            }
        }
        Ok(())
    }
}

fn part(right: u64, others: u64) -> Option<f64> {
    (right + others > 0).then(|| right as f64 / (right + others) as f64)
}

pub(super) fn read(path: &Path) -> Result<Vec<Inferred>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().with_context(|| format!("read {}", path.display()))
}

/// Those from the load's begin to its end, but for the disk of what is traced.
pub(super) fn during(recording: &Recording, inferred: &[Inferred]) -> Vec<Inferred> {
    let end = recording.end.tsc as f64 / recording.tsc_hz();
    let timed = timed(recording, inferred).into_iter();
    timed.filter(|(at, _)| *at < end).map(|(_, line)| line).collect()
}

/// From the load's begin on, with times by the guest's clock.
fn timed(recording: &Recording, inferred: &[Inferred]) -> Vec<(f64, Inferred)> {
    let begin = recording.begin.tsc as f64 / recording.tsc_hz();
    let ahead = clocks(recording, inferred).unwrap_or(0.0);
    let timed = inferred.iter().map(|line| (line.at_ns as f64 / 1e9 - ahead, *line));
    timed.filter(|(at, line)| line.disk != TRACE && *at >= begin).collect()
}

/// Both for each block and frame, in the order of time.
#[derive(Default)]
struct Place {
    truth: Vec<(f64, Kind)>,
    inferred: Vec<(f64, Change)>,
}

/// Compares them from the load's begin to its end.
pub(super) fn score(recording: &Recording, inferred: &[Inferred]) -> Scores {
    let hz = recording.tsc_hz();
    let seconds = |tsc: u64| tsc as f64 / hz;
    let mut places: HashMap<(Block, u64), Place> = HashMap::new();
    let mut outside = recording.outside.clone();
    for block in recording.events.iter().filter_map(|truth| truth.block) {
        outside.remove(&block);
    }
    let mut scores = Scores::default();
    for (at, line) in timed(recording, inferred) {
        let block = Block { disk: line.disk, block: line.block };
        if outside.contains(&block) {
            let [inserts, evictions] = &mut scores.outside;
            *inserts += u64::from(line.change == Change::Insert);
            *evictions += u64::from(line.change == Change::Evict);
            continue;
        }
        let place = places.entry((block, line.frame)).or_default();
        place.inferred.push((at, line.change));
    }
    for truth in &recording.events {
        let Some(block) = truth.block else { continue };
        let at = seconds(truth.tsc);
        let place = places.entry((block, truth.frame)).or_default();
        place.truth.push((at, truth.kind));
        if let Kind::Move { to } = truth.kind
            && let Some(insert) = place.take_unseen_insert(at)
        {
            places.entry((block, to)).or_default().truth.push(insert);
        }
    }
    let mut last: HashMap<u64, u64> = HashMap::new();
    for truth in &recording.events {
        last.insert(truth.frame, truth.tsc);
    }
    let left = |frame: u64, at: f64| {
        recording.is_free(frame) && last.get(&frame).is_some_and(|&tsc| seconds(tsc) <= at)
    };
    for (&(block, frame), place) in &places {
        place.add_to(&mut scores, block, frame, seconds(recording.end.tsc), &left);
    }
    for score in [&mut scores.inserts, &mut scores.evictions] {
        score.lags.sort_by(f64::total_cmp);
    }
    scores
}

/// How far the clock of the inferences is ahead of the guest's.
fn clocks(recording: &Recording, inferred: &[Inferred]) -> Option<f64> {
    let hz = recording.tsc_hz();
    let mut added: HashMap<(Block, u64), f64> = HashMap::new();
    for Truth { tsc, kind, frame, block, .. } in &recording.events {
        if let (Kind::Insert, Some(block)) = (kind, block) {
            added.entry((*block, *frame)).or_insert(*tsc as f64 / hz);
        }
    }
    let differences =
        inferred.iter().filter(|line| line.change == Change::Insert).filter_map(|line| {
            let block = Block { disk: line.disk, block: line.block };
            // The first of each only.
            let at = added.remove(&(block, line.frame))?;
            Some(line.at_ns as f64 / 1e9 - at)
        });
    let mut differences: Vec<f64> = differences.collect();
    differences.sort_by(f64::total_cmp);
    // A few are of something else.
    differences.get(differences.len() / 100).copied()
}

impl Place {
    /// The last insert, if nothing was inferred of it until now: it shows only elsewhere.
    fn take_unseen_insert(&mut self, now: f64) -> Option<(f64, Kind)> {
        let last = self.truth.iter().rposition(|(_, kind)| *kind == Kind::Insert)?;
        let came = self.truth[last].0 - SLACK;
        let seen = self
            .inferred
            .iter()
            .any(|&(at, change)| change == Change::Insert && (came..now + SLACK).contains(&at));
        (!seen).then(|| self.truth.remove(last))
    }

    fn add_to(
        &self,
        scores: &mut Scores,
        block: Block,
        frame: u64,
        end: f64,
        left: &impl Fn(u64, f64) -> bool,
    ) {
        let of =
            |kind| self.truth.iter().filter(move |&&(_, found)| found == kind).map(|&(at, _)| at);
        let by = |change| {
            self.inferred.iter().filter(move |&&(_, found)| found == change).map(|&(at, _)| at)
        };
        let [inserted, evicted, dropped]: [Vec<f64>; 3] =
            [Kind::Insert, Kind::Evict, Kind::Drop].map(|kind| of(kind).collect());
        let before = |at: f64| dropped.iter().any(|&dropped| dropped <= at + SLACK);
        let (inserts, evictions) = (
            matched(&inserted, by(Change::Insert), end),
            matched(&evicted, by(Change::Evict), end),
        );
        scores.dropped += evictions.wrong.iter().filter(|&&at| before(at)).count() as u64;
        // A frame that is free had its last page only.
        let fault = |at, missed| Fault { block, frame, at, missed };
        for (score, found, ends) in
            [(&mut scores.inserts, inserts, false), (&mut scores.evictions, evictions, true)]
        {
            score.right += found.lags.len() as u64;
            score.wrong += found.wrong.len() as u64;
            score.lags.extend(found.lags);
            score.faults.extend(found.wrong.into_iter().map(|at| fault(at, false)));
            for at in found.missed {
                if ends && left(frame, at) {
                    score.late += 1;
                } else {
                    score.missed += 1;
                    score.faults.push(fault(at, true));
                }
            }
        }
    }
}

/// Of one kind, at one place.
#[derive(Default)]
struct Matched {
    /// Of those that are right, how much later they were.
    lags: Vec<f64>,
    /// Inferences without an event, and events without an inference.
    wrong: Vec<f64>,
    missed: Vec<f64>,
}

/// Each inference with the latest event before it that no other one told of.
fn matched(events: &[f64], inferred: impl Iterator<Item = f64>, end: f64) -> Matched {
    let mut found = Matched::default();
    let mut open: Vec<f64> = Vec::new();
    let mut events = events.iter().copied().peekable();
    for at in inferred {
        while let Some(event) = events.next_if(|&event| event <= at + SLACK) {
            open.push(event);
        }
        match open.pop() {
            Some(event) => {
                found.lags.push((at - event).max(0.0));
                // Earlier ones were missed.
                found.missed.append(&mut open);
            }
            None if at < end => found.wrong.push(at),
            // The kernel no longer tells.
            None => {}
        }
    }
    found.missed.extend(open.into_iter().chain(events));
    found
}

#[cfg(test)]
mod tests {
    use super::super::truth::{Moment, Owner};
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    const HZ: u64 = 1_000_000_000;
    const BLOCK: Block = Block { disk: 1, block: 7 };

    /// Events of frame 3 at these milliseconds of the guest's time.
    fn recording(events: &[(u64, Kind)]) -> Recording {
        let moment = |ms: u64| Moment { tsc: ms * HZ / 1000, nanoseconds: ms * 1_000_000 };
        let owner = Owner::Metadata;
        let truth = |&(ms, kind): &(u64, Kind)| {
            let block = Some(BLOCK);
            Truth { tsc: ms * HZ / 1000, kind, frame: 3, owner, block }
        };
        Recording {
            begin: moment(100),
            end: moment(10_000),
            events: events.iter().map(truth).collect(),
            file_system: String::new(),
            counters: BTreeMap::new(),
            contradictions: 0,
            elsewhere: 0,
            outside: HashSet::new(),
            free: Vec::new(),
        }
    }

    /// The same by another clock, which is 5 s ahead.
    fn inferred(events: &[(u64, Change)]) -> Vec<Inferred> {
        let line = |&(ms, change): &(u64, Change)| {
            let at_ns = (ms + 5000) * 1_000_000;
            Inferred { at_ns, change, frame: 3, disk: BLOCK.disk, block: BLOCK.block }
        };
        events.iter().map(line).collect()
    }

    #[test]
    fn what_shows_later_is_right() {
        let truth = [(200, Kind::Insert), (300, Kind::Evict), (400, Kind::Insert)];
        let seen = [(200, Change::Insert), (390, Change::Evict), (401, Change::Insert)];
        let scores = score(&recording(&truth), &inferred(&seen));
        assert_eq!((scores.inserts.right, scores.evictions.right), (2, 1));
        assert!((scores.evictions.lag(95).unwrap() - 0.09).abs() < 1e-6, "{scores:?}");
        scores.check().unwrap();
    }

    #[test]
    fn what_was_not_or_not_yet_is_wrong_and_what_was_not_seen_is_missed() {
        let truth = [(200, Kind::Insert), (300, Kind::Evict), (400, Kind::Insert)];
        let seen = [(200, Change::Insert), (290, Change::Evict), (500, Change::Insert)];
        let scores = score(&recording(&truth), &inferred(&seen));
        assert_eq!((scores.evictions.wrong, scores.evictions.missed, scores.dropped), (1, 1, 0));
        assert!(scores.check().is_err());
    }

    #[test]
    fn of_two_before_one_inference_one_was_missed() {
        let truth =
            [(200, Kind::Insert), (300, Kind::Evict), (400, Kind::Insert), (500, Kind::Evict)];
        let seen = [(200, Change::Insert), (600, Change::Evict)];
        let scores = score(&recording(&truth), &inferred(&seen));
        assert_eq!((scores.evictions.right, scores.evictions.missed), (1, 1));
        assert_eq!((scores.inserts.right, scores.inserts.missed), (1, 1));
    }

    #[test]
    fn what_shows_after_the_end_is_right_and_never_wrong() {
        let truth = [(200, Kind::Insert), (9_900, Kind::Evict)];
        let seen = [(200, Change::Insert), (10_500, Change::Evict), (10_600, Change::Evict)];
        let scores = score(&recording(&truth), &inferred(&seen));
        let evictions = scores.evictions;
        assert_eq!((evictions.right, evictions.wrong, evictions.missed), (1, 0, 0));
    }

    #[test]
    fn a_page_that_moves_before_it_is_written_comes_to_where_it_moves() {
        let moved = |moved_at, to| {
            let mut recording = recording(&[(200, Kind::Insert), (moved_at, Kind::Move { to })]);
            // Another page, by which the clocks are put together.
            let other =
                Truth { frame: 9, block: Some(Block { disk: 1, block: 8 }), ..recording.events[0] };
            recording.events.push(other);
            let mut seen = inferred(&[(200, Change::Insert), (400, Change::Insert)]);
            (seen[0].frame, seen[0].block) = (9, 8);
            seen[1].frame = to;
            (recording, seen)
        };
        let (recording, seen) = moved(300, 4);
        let inserts = score(&recording, &seen).inserts;
        assert_eq!((inserts.right, inserts.wrong, inserts.missed), (2, 0, 0));
        // It did not move to where it is said to be.
        let (recording, mut seen) = moved(300, 4);
        seen[1].frame = 5;
        let inserts = score(&recording, &seen).inserts;
        assert_eq!((inserts.right, inserts.wrong, inserts.missed), (1, 1, 1));
    }

    #[test]
    fn a_dropped_block_was_not_evicted() {
        let truth = [(200, Kind::Insert), (300, Kind::Drop)];
        let seen = [(200, Change::Insert), (400, Change::Evict)];
        let scores = score(&recording(&truth), &inferred(&seen));
        assert_eq!((scores.evictions.wrong, scores.dropped), (1, 1));
    }

    #[test]
    fn what_the_kernel_says_nothing_of_is_not_judged() {
        let seen = inferred(&[(200, Change::Insert), (300, Change::Evict)]);
        let mut recording = recording(&[]);
        // By which the clocks are put together, and another block.
        recording.events = vec![Truth {
            tsc: HZ / 5,
            kind: Kind::Insert,
            frame: 3,
            owner: Owner::Metadata,
            block: Some(Block { block: 8, ..BLOCK }),
        }];
        let both = [seen.clone(), vec![Inferred { block: 8, ..seen[0] }]].concat();
        assert_eq!(score(&recording, &both).inserts.wrong, 1);
        recording.outside = HashSet::from([BLOCK, Block { block: 8, ..BLOCK }]);
        let scores = score(&recording, &both);
        assert_eq!((scores.inserts.wrong, scores.inserts.right, scores.outside), (0, 1, [1, 1]));
        // The page cache has had it, too.
        recording.events[0].block = Some(BLOCK);
        let scores = score(&recording, &seen);
        assert_eq!((scores.inserts.right, scores.evictions.wrong, scores.outside), (1, 1, [0, 0]));
    }

    #[test]
    fn what_lies_free_at_the_end_nobody_can_see() {
        let truth = [(200, Kind::Insert), (300, Kind::Evict)];
        let seen = inferred(&[(200, Change::Insert)]);
        let mut recording = recording(&truth);
        assert_eq!(score(&recording, &seen).evictions.missed, 1);
        recording.free = vec![0..2, 3..4];
        let evictions = score(&recording, &seen).evictions;
        assert_eq!((evictions.missed, evictions.late, evictions.faults.len()), (0, 1, 0));
        // Had it been used again meanwhile, it would have shown.
        recording.events.push(Truth { tsc: HZ, frame: 3, block: None, ..recording.events[0] });
        assert_eq!(score(&recording, &seen).evictions.missed, 1);
    }
}
