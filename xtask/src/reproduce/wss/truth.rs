//! What there was to estimate, by the log of all accesses.

use super::log::{Accesses, Line, Moment};
use anyhow::{Context, Result};
use insight::{DistanceHistogram, MissRatioCurve, Stack};
use std::fs::File;
use std::io::{BufReader, Read};

const STEPS: usize = 1024;

/// Exact, but that what a vCPU does again within two milliseconds shows once.
pub(super) struct Truth {
    /// Frames accessed in the epoch that ends with each line, and in the last three.
    pub(super) epochs: Vec<[u32; 2]>,
    /// Of frames by the intervals that the estimator had, 20 ms or more, from exact stack distances.
    pub(super) curve: MissRatioCurve,
    /// The same misses as seen by 2 ms, by the references of those intervals.
    pub(super) fine: MissRatioCurve,
}

pub(super) fn replay(
    accesses: Accesses<BufReader<File>>,
    lines: &[Line],
    frames: u32,
) -> Result<Truth> {
    let ends: Vec<u64> = lines.iter().map(|line| line.unix_ns).collect();
    Replay::new(frames).run(accesses, &ends)
}

struct Replay {
    frames: u32,
    coarse: Curve,
    fine: Curve,
    /// Of each frame, the interval and the epoch of its last access; from 1 on.
    in_interval: Vec<u32>,
    in_epoch: Vec<u32>,
    epochs: Vec<[u32; 2]>,
}

struct Curve {
    stack: Stack<u32>,
    histogram: DistanceHistogram,
}

impl Curve {
    fn new(frames: u32) -> Self {
        let histogram = DistanceHistogram::new(frames.into(), STEPS);
        Self { stack: Stack::default(), histogram }
    }

    fn reference(&mut self, frame: u32) {
        self.histogram.note(self.stack.reference(frame), 1.0);
    }

    fn curve(&self) -> Result<MissRatioCurve> {
        self.histogram.curve().context("the log has no accesses")
    }
}

impl Replay {
    fn new(frames: u32) -> Self {
        let nothing = || vec![0; frames as usize];
        Self {
            frames,
            coarse: Curve::new(frames),
            fine: Curve::new(frames),
            in_interval: nothing(),
            in_epoch: nothing(),
            epochs: Vec::new(),
        }
    }

    fn run<R: Read>(mut self, mut accesses: Accesses<R>, ends: &[u64]) -> Result<Truth> {
        let mut interval = 1;
        let mut told = Vec::new();
        while let Some(Moment { time, begins }) = accesses.next(&mut told, self.frames)? {
            interval += u32::from(begins);
            while ends.get(self.epochs.len()).is_some_and(|&end| end < time) {
                self.end_epoch();
            }
            let epoch = self.epochs.len() as u32 + 1;
            for &frame in &told {
                self.fine.reference(frame);
                self.in_epoch[frame as usize] = epoch;
                if std::mem::replace(&mut self.in_interval[frame as usize], interval) != interval {
                    self.coarse.reference(frame);
                }
            }
        }
        while self.epochs.len() < ends.len() {
            self.end_epoch();
        }
        let references = self.coarse.histogram.references();
        let scale = self.fine.histogram.references() / references.max(1.0);
        let fine = self.fine.curve()?;
        let step = fine.points().nth(1).map_or(1, |(size, _)| size);
        let ratios = fine.points().map(|(_, ratio)| (ratio * scale).min(1.0)).collect();
        Ok(Truth {
            epochs: self.epochs,
            curve: self.coarse.curve()?,
            fine: MissRatioCurve::from_ratios(step, ratios),
        })
    }

    fn end_epoch(&mut self) {
        let epoch = self.epochs.len() as u32 + 1;
        let within = |epochs: u32| {
            let since = epoch.saturating_sub(epochs - 1).max(1);
            self.in_epoch.iter().filter(|last| **last >= since).count() as u32
        };
        self.epochs.push([within(1), within(3)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(moments: &[(&[u32], u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (frames, time) in moments {
            if frames.is_empty() {
                bytes.extend((u32::MAX - 1).to_le_bytes());
                continue;
            }
            frames.iter().for_each(|frame| bytes.extend(frame.to_le_bytes()));
            bytes.extend(u32::MAX.to_le_bytes());
            bytes.extend(time.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn epochs_and_intervals_have_each_frame_once() {
        const MS: u64 = 1_000_000;
        let bytes = log(&[
            (&[1, 2], 2 * MS),
            (&[2, 3], 4 * MS),
            (&[], 0),
            (&[1], 30 * MS),
            (&[], 0),
            (&[5], 1000 * MS),
            (&[], 0),
            (&[6], 2100 * MS),
        ]);
        let ends = [1001 * MS, 2101 * MS, 3101 * MS];
        let accesses = Accesses::of(bytes.as_slice());
        let truth = Replay::new(16).run(accesses, &ends).unwrap();
        assert_eq!(truth.epochs, [[4, 4], [1, 5], [0, 5]]);
        // 1, 2, 3 in the first interval, then 1 at distance 2, then 5 and 6.
        assert_eq!(truth.curve.miss_ratio(2), 1.0);
        assert_eq!(truth.curve.miss_ratio(3), 5.0 / 6.0);
        // 2 again at distance 0, which is no miss even in one page.
        assert_eq!(truth.fine.miss_ratio(1), 1.0);
        assert_eq!(truth.fine.miss_ratio(3), 5.0 / 6.0);
    }
}
