//! The miss-ratio curve below what the guest has, from a sample of its accesses, in memory that does not grow.
//!
//! A *reference* is a frame that is accessed in a short interval: however often, it is one. So the curve says which part
//! of these references would miss in a smaller memory, not which part of all accesses; what changes with the length of
//! the interval is the denominator, not the misses. Where a frame's next reference is in the next interval, the distance
//! is at most what is accessed in both, so below the working set of one interval the curve says little.
//!
//! A frame is in the sample by its number's hash (SHARDS: Waldspurger, Park, Garthwaite and Ahmad, FAST 2015). The
//! guest's translations to frames of the sample, and no others, are taken back at each interval's end, so that the cost
//! goes by the sample and not by what the guest uses. The sample has at most so many frames; and when more of them are
//! accessed in an interval than there is time to pay for, it is halved.
//!
//! A part of the frames is not the same part of the references: some frames are accessed in each interval. Once in each
//! epoch all references of an interval are known, because an epoch begins with it: by the table, the frames accessed
//! since. What the sample says of the same intervals corrects its weight (the paper's adjustment, with a number of all
//! references that is itself an estimate).

use std::sync::Arc;
use std::time::Duration;

use memory::{Frame, GuestMemory, Tracer};

use super::{Estimate, Estimator};
use crate::curve::{MissRatioCurve, Shards};

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccessCurveConfig {
    /// Frames in the sample, at most.
    pub frames: usize,
    /// Of these, accessed in an interval at most. Each costs some 3 us: a way out of generated code, a walk, and its place in the stack.
    pub per_interval: usize,
    /// Steps of the curve.
    pub steps: usize,
    /// What is older counts half. `None`: all of the past counts alike.
    pub half_life: Option<Duration>,
}

/// With intervals of 20 ms some 4 % of a vCPU's time where it uses all of the sample in each, and mostly far less.
impl Default for AccessCurveConfig {
    fn default() -> Self {
        Self {
            frames: 4096,
            per_interval: 256,
            steps: 1024,
            half_life: Some(Duration::from_secs(120)),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct AccessCurve {
    memory: Arc<GuestMemory>,
    config: AccessCurveConfig,
    shards: Shards,
    /// Of the running interval.
    told: Vec<Frame>,
    /// The running interval began with an epoch.
    counting: bool,
    /// References in intervals that were counted: by the sample, and all.
    counted: (f64, f64),
    elapsed: Duration,
}

/// Of references in the sample there must be so many before a curve is believed.
const ENOUGH: f64 = 200.0;

impl AccessCurve {
    /// Begins to follow its sample with the next epoch. Somebody must listen to the memory's events.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, config: AccessCurveConfig) -> Self {
        let frames = memory.layout().frames();
        let rate = config.frames.max(1) as f64 / f64::from(frames.max(1));
        let shards =
            Shards::with_rate(rate, config.frames, frames.into(), config.steps).of_no_more_pages();
        memory.open_trace(Tracer::Sample, config.frames.clamp(1, 1 << 24) * 2);
        let new = Self {
            memory,
            config,
            shards,
            told: Vec::new(),
            counting: false,
            counted: (0.0, 0.0),
            elapsed: Duration::ZERO,
        };
        new.memory.trace(new.sample());
        new.memory.arm(Tracer::Sample, new.sample());
        new
    }

    fn sample(&self) -> impl Iterator<Item = Frame> + '_ {
        let frames = 0..self.memory.layout().frames();
        frames.filter(|&frame| self.shards.samples(frame.into())).map(Frame)
    }

    /// By size of memory in pages. `None` while little was seen.
    #[must_use]
    pub fn curve(&self) -> Option<MissRatioCurve> {
        let enough = self.shards.sampled() * self.shards.rate() >= ENOUGH;
        let curve = || self.shards.curve_of(self.references());
        if enough { curve() } else { None }
    }

    /// All references up to now, older ones by their weight.
    #[must_use]
    pub fn references(&self) -> f64 {
        let (sampled, all) = self.counted;
        let factor = if sampled > 0.0 && all > 0.0 { all / sampled } else { 1.0 };
        self.shards.sampled() * factor
    }

    /// The same by second.
    #[must_use]
    pub fn references_per_second(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (seconds > 0.0).then(|| self.references() / seconds)
    }

    /// Which part of all frames is in the sample.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.shards.rate()
    }

    fn take(&mut self) {
        for _ in 0..self.config.frames.saturating_mul(2) {
            let Some(frame) = self.memory.take_touch(Tracer::Sample) else { break };
            if self.shards.samples(frame.0.into()) {
                self.shards.reference(frame.0.into());
                self.told.push(frame);
            } else {
                // The sample has become smaller.
                self.memory.untrace(Tracer::Sample, [frame]);
            }
        }
    }

    fn forget(&mut self, elapsed: Duration) {
        let Some(half_life) = self.config.half_life else { return };
        let factor = 0.5f64.powf(elapsed.as_secs_f64() / half_life.as_secs_f64().max(1e-3));
        self.shards.decay(factor);
        self.counted = (self.counted.0 * factor, self.counted.1 * factor);
        self.elapsed = self.elapsed.mul_f64(factor);
    }
}

impl Estimator for AccessCurve {
    fn name(&self) -> &'static str {
        "curve"
    }

    fn interval(&mut self, elapsed: Duration) {
        self.take();
        self.elapsed += elapsed;
        if std::mem::take(&mut self.counting) {
            let all: u32 = self.memory.accesses_by_age(1).iter().sum();
            self.counted.0 += self.told.len() as f64 / self.shards.rate();
            self.counted.1 += f64::from(all);
        }
        let too_many = self.told.len() > self.config.per_interval;
        if !self.told.is_empty() {
            self.memory.arm(Tracer::Sample, self.told.drain(..));
            self.memory.revoke_traced();
        }
        if too_many {
            self.shards.lower_rate(self.shards.rate() / 2.0);
        }
    }

    fn tick(&mut self, elapsed: Duration) {
        // The set ends an interval, then the epoch.
        self.counting = true;
        self.forget(elapsed);
    }

    /// The least memory in which but one in a hundred of the references hits that hit now.
    fn estimate(&self) -> Option<Estimate> {
        let curve = self.curve()?;
        let pages = curve.pages_for(curve.floor() + 0.01)?;
        let bytes = pages * memory::FRAME_SIZE as u64;
        let frames = (bytes as f64 / memory::FRAME_SIZE as f64 * self.rate()).max(1.0);
        Some(Estimate { bytes, error_bytes: Some((bytes as f64 / frames.sqrt()) as u64) })
    }
}

impl Drop for AccessCurve {
    fn drop(&mut self) {
        self.memory.untrace(Tracer::Sample, (0..self.memory.layout().frames()).map(Frame));
    }
}

#[cfg(test)]
mod tests {
    use memory::Access;
    use proptest::prelude::*;

    use super::*;
    use crate::curve::{DistanceHistogram, Stack};

    const INTERVAL: Duration = Duration::from_millis(20);

    fn all_of_it(frames: usize) -> AccessCurveConfig {
        AccessCurveConfig { frames, per_interval: usize::MAX, steps: 1024, half_life: None }
    }

    /// What an engine does that looks up each frame anew in each interval.
    fn access(memory: &GuestMemory, frame: u32) {
        memory.resolve(Frame(frame), Access::Read).unwrap();
        let events = memory.events().unwrap();
        events.note_access(Frame(frame), Access::Read, true, true);
    }

    fn memory(frames: u64) -> Arc<GuestMemory> {
        let memory = Arc::new(GuestMemory::with_bytes(frames * 4096).unwrap());
        memory.listen(1);
        memory
    }

    proptest! {
        /// With all frames in the sample it is the exact stack of frames by interval.
        #[test]
        fn all_frames_give_exact_distances(
            intervals in prop::collection::vec(prop::collection::vec(0u32..200, 1..60), 10..40)
        ) {
            let memory = memory(256);
            let mut curve = AccessCurve::new(Arc::clone(&memory), all_of_it(256));
            let (mut stack, mut exact) = (Stack::default(), DistanceHistogram::new(256, 1024));
            for interval in &intervals {
                let mut seen = std::collections::BTreeSet::new();
                for &frame in interval {
                    access(&memory, frame);
                    if seen.insert(frame) {
                        exact.note(stack.reference(frame), 1.0);
                    }
                }
                curve.interval(INTERVAL);
            }
            prop_assume!(exact.references() >= ENOUGH);
            prop_assert_eq!(curve.references(), exact.references());
            prop_assert_eq!(curve.curve(), exact.curve());
        }
    }

    /// A loop over `cold` frames, some in each interval, and `hot` ones in each; with or without epochs.
    fn run(curve: &mut AccessCurve, memory: &GuestMemory, hot: u32, cold: u32) -> f64 {
        let (mut references, mut at) = (0.0, 0);
        for interval in 0..1200 {
            (0..hot).for_each(|frame| access(memory, frame));
            for _ in 0..cold / 20 {
                access(memory, hot + at % cold);
                at += 1;
            }
            references += f64::from(hot + cold / 20);
            curve.interval(INTERVAL);
            // No part of the loop: else the same of it would be counted each time.
            if interval % 53 == 52 {
                memory.advance_epoch();
                curve.tick(INTERVAL * 53);
            }
        }
        references
    }

    #[test]
    fn a_sample_is_corrected_by_what_epochs_count() {
        let memory = memory(16_384);
        let config = AccessCurveConfig {
            half_life: None,
            frames: 1024,
            per_interval: 640,
            ..Default::default()
        };
        let mut curve = AccessCurve::new(Arc::clone(&memory), config);
        let references = run(&mut curve, &memory, 300, 8000);
        // 22 intervals with some 44 of the sample were counted.
        let off = curve.references() / references - 1.0;
        assert!(off.abs() < 0.1, "{off}");
        let found = curve.curve().unwrap();
        // Hot ones hit in 301 pages or so and more, the others in 8300.
        let cold_part = 400.0 / 700.0;
        let between = found.miss_ratio(4000);
        assert!((between - cold_part).abs() < 0.05, "{between}");
        assert!(found.miss_ratio(9000) < 0.05);
        let estimate = curve.estimate().unwrap();
        assert!(estimate.bytes.abs_diff(8300 * 4096) < 4 * estimate.error_bytes.unwrap());
    }

    #[test]
    fn what_costs_too_much_makes_the_sample_smaller() {
        let memory = memory(16_384);
        let config = AccessCurveConfig { per_interval: 64, half_life: None, ..Default::default() };
        let mut curve = AccessCurve::new(Arc::clone(&memory), config);
        assert!(curve.rate() > 0.2);
        run(&mut curve, &memory, 300, 8000);
        let before = curve.rate();
        assert!(before < 0.15, "{before}");
        assert!((curve.curve().unwrap().miss_ratio(4000) - 400.0 / 700.0).abs() < 0.06);
    }

    #[test]
    fn little_is_not_believed_and_the_past_is_forgotten() {
        let memory = memory(1024);
        let half_life = Some(Duration::from_secs(1));
        let config =
            AccessCurveConfig { half_life, frames: 1024, per_interval: 640, ..Default::default() };
        let mut curve = AccessCurve::new(Arc::clone(&memory), config);
        access(&memory, 1);
        curve.interval(INTERVAL);
        assert_eq!((curve.curve(), curve.estimate()), (None, None));
        (0..500).for_each(|frame| access(&memory, frame));
        curve.interval(INTERVAL);
        let before = curve.references();
        curve.tick(Duration::from_secs(1));
        assert!((curve.references() / before - 0.5).abs() < 1e-9);
    }
}
