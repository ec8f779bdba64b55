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
//! Two things are known of all frames, and correct what the sample says:
//!
//! - How many were last accessed in each of the last epochs, by the table. With those of the sample this tells how deep its
//!   pages lie among all (`Depths`), better than the part of frames that is in it, from which a sample differs by chance.
//! - The frames accessed in one interval of each epoch, since the epoch begins with it. Some frames are accessed in every
//!   interval, of which a small sample has too many or too few: their weight follows (`Counted`). The paper's adjustment puts
//!   what is missing at the shortest distance.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use memory::{Epoch, Frame, GuestMemory, Tracer};

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
    /// Of the one before.
    told_before: HashSet<Frame>,
    waiting: Waiting,
    /// As of the last epoch's end.
    depths: Depths,
    /// References of the running interval, by the sample: of frames that the one before had not, and that it had.
    in_interval: [f64; 2],
    /// The running interval began with an epoch.
    counting: bool,
    /// Of intervals that were counted.
    counted: Counted,
    elapsed: Duration,
}

/// References that are not placed yet.
#[derive(Clone, Debug, Default)]
struct Waiting {
    /// By distance among the sample: those of frames that were not accessed in the interval before, and that were.
    again: Vec<[u32; 2]>,
    first: u32,
    count: f64,
}

impl Waiting {
    fn note(&mut self, among: Option<u64>, is_hot: bool) {
        self.count += 1.0;
        let Some(among) = among else { return self.first += 1 };
        let among = among as usize;
        if self.again.len() <= among {
            self.again.resize(among + 1, [0; 2]);
        }
        self.again[among][usize::from(is_hot)] += 1;
    }

    fn place(&self, depths: &Depths, hot: f64, shards: &mut Shards) {
        for (among, &counts) in (0u64..).zip(&self.again).filter(|(_, counts)| **counts != [0; 2]) {
            let count = f64::from(counts[0]) + hot * f64::from(counts[1]);
            shards.note(Some(depths.of(among)), count * depths.weight(Some(among)));
        }
        if self.first > 0 {
            shards.note(None, f64::from(self.first) * depths.weight(None));
        }
    }
}

/// References of whole intervals beside what the sample said of the same ones.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    intervals: f64,
    sampled: f64,
    /// Of these, to frames that had been accessed in the interval before.
    hot: f64,
    all: f64,
    /// What the sample lacked, squared.
    squares: f64,
}

impl Counted {
    fn note(&mut self, [others, hot]: [f64; 2], all: f64) {
        self.intervals += 1.0;
        self.sampled += others + hot;
        self.hot += hot;
        self.all += all;
        self.squares += (all - others - hot).powi(2);
    }

    fn decay(&mut self, factor: f64) {
        let Self { intervals, sampled, hot, all, squares } = self;
        [intervals, sampled, hot, all, squares].into_iter().for_each(|sum| *sum *= factor);
    }

    /// What references to frames that are accessed in each interval are to be multiplied by: of those a sample has too many or
    /// too few. What it lacks in one interval and not in the next is chance: only what is left behind that counts (James
    /// and Stein, 1961).
    fn hot_factor(&self) -> f64 {
        if self.hot <= 0.0 || self.intervals <= 1.0 {
            return 1.0;
        }
        let lacking = (self.all - self.sampled) / self.intervals;
        let spread = (self.squares / self.intervals - lacking.powi(2)).max(0.0);
        let sure = 1.0 - spread / (self.intervals - 1.0) / lacking.powi(2);
        let sure = if sure > 0.0 { sure } else { 0.0 };
        (1.0 + sure * lacking * self.intervals / self.hot).clamp(0.25, 4.0)
    }
}

/// How deep pages lie in the stack of all that lie so deep in the sample's: after the frames of one epoch, of two, and so
/// on it is known. Between two such depths they lie evenly; beyond, by the part of frames that is in the sample.
#[derive(Clone, Debug)]
struct Depths {
    /// In the sample and of all, from the top on.
    known: Vec<(f64, f64)>,
    rate: f64,
}

/// Epochs that are looked at.
const AGES: usize = 64;
/// Fewer frames of the sample than that say little of how many there are.
const FEW: u32 = 16;

impl Depths {
    fn new(memory: &GuestMemory, shards: &Shards) -> Self {
        let now = memory.epoch();
        let mut sampled = [0u32; AGES];
        for page in shards.followed() {
            let facts = memory.facts(Frame(page as u32));
            let accessed = facts.map_or(Epoch::NEVER, |facts| facts.accessed);
            let age = now.0.saturating_sub(accessed.0) as usize;
            if accessed != Epoch::NEVER && age < AGES {
                sampled[age] += 1;
            }
        }
        let (mut known, mut of_sample, mut all, mut since) = (Vec::new(), 0, 0, 0);
        for (sampled, of_all) in sampled.into_iter().zip(memory.accesses_by_age(AGES)) {
            (of_sample, all, since) = (of_sample + sampled, all + of_all, since + sampled);
            if since >= FEW {
                // The page itself is in both.
                known.push((f64::from(of_sample - 1), f64::from(all) - 1.0));
                since = 0;
            }
        }
        Self { known, rate: shards.rate() }
    }

    /// Depth among all.
    fn of(&self, among: u64) -> u64 {
        let (from, at, each) = self.piece(among);
        (at + (among as f64 - from) * each) as u64
    }

    /// For how many a reference stands that was so deep in the sample.
    fn weight(&self, among: Option<u64>) -> f64 {
        among.map_or(1.0 / self.rate, |among| self.piece(among).2)
    }

    /// What is known last before `among`, and how many pages each of the sample stands for from there on.
    fn piece(&self, among: u64) -> (f64, f64, f64) {
        let among = among as f64;
        let next = self.known.partition_point(|(sampled, _)| *sampled < among);
        let (from, at) = if next == 0 { (0.0, 0.0) } else { self.known[next - 1] };
        let end = self.known.get(next);
        (from, at, end.map_or(1.0 / self.rate, |(to, end)| (end - at) / (to - from)))
    }
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
            told_before: HashSet::new(),
            waiting: Waiting::default(),
            depths: Depths { known: Vec::new(), rate },
            in_interval: [0.0; 2],
            counting: false,
            counted: Counted::default(),
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
        if self.sampled() * self.shards.rate() < ENOUGH {
            return None;
        }
        let mut shards = self.shards.clone();
        let depths = Depths::new(&self.memory, &shards);
        self.waiting.place(&depths, self.counted.hot_factor(), &mut shards);
        shards.curve_by_weight()
    }

    /// All references up to now, older ones by their weight.
    #[must_use]
    pub fn references(&self) -> f64 {
        let Counted { sampled, all, .. } = self.counted;
        let factor = if sampled > 0.0 && all > 0.0 { all / sampled } else { 1.0 };
        self.sampled() * factor
    }

    fn sampled(&self) -> f64 {
        self.shards.sampled() + self.waiting.count / self.shards.rate()
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
            match self.shards.follow(frame.0.into()) {
                // The sample has become smaller.
                None => self.memory.untrace(Tracer::Sample, [frame]),
                Some(among) => {
                    let is_hot = self.told_before.contains(&frame);
                    self.in_interval[usize::from(is_hot)] += self.depths.weight(among);
                    self.waiting.note(among, is_hot);
                    self.told.push(frame);
                }
            }
        }
    }

    /// Places what waits by how deep the sample's pages lie among all.
    fn settle(&mut self) {
        self.depths = Depths::new(&self.memory, &self.shards);
        let hot = self.counted.hot_factor();
        std::mem::take(&mut self.waiting).place(&self.depths, hot, &mut self.shards);
    }

    fn forget(&mut self, elapsed: Duration) {
        let Some(half_life) = self.config.half_life else { return };
        let factor = 0.5f64.powf(elapsed.as_secs_f64() / half_life.as_secs_f64().max(1e-3));
        self.settle();
        self.shards.decay(factor);
        self.counted.decay(factor);
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
            self.counted.note(self.in_interval, f64::from(all));
        }
        self.in_interval = [0.0; 2];
        let too_many = self.told.len() > self.config.per_interval;
        self.told_before = self.told.iter().copied().collect();
        if !self.told.is_empty() {
            self.memory.arm(Tracer::Sample, self.told.drain(..));
            self.memory.revoke_traced();
        }
        if too_many {
            // Distances among a smaller sample are others.
            self.settle();
            self.shards.lower_rate(self.shards.rate() / 2.0);
        }
    }

    fn look(&mut self) {
        self.settle();
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
                memory.end_epoch_after(|| curve.look());
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

    /// What is accessed in an interval, by load.
    fn accessed(load: &str, interval: u32, random: &mut impl FnMut() -> f64) -> Vec<u32> {
        let lap =
            |each: u32, of: u32| (interval * each..(interval + 1) * each).map(move |n| n % of);
        match load {
            "all" => (0..20_000).collect(),
            "steps" => (0..[2000, 20_000, 500][interval as usize / 75 % 3]).collect(),
            "lap of 10 intervals" => lap(1600, 16_000).collect(),
            "lap of 100" => lap(100, 10_000).collect(),
            "lap, some at each" => (0..300).chain(lap(400, 8000).map(|n| 300 + n)).collect(),
            "lap, few at each" => (0..16).chain(lap(700, 9000).map(|n| 16 + n)).collect(),
            "most at each" => (0..2000).chain(lap(300, 8000).map(|n| 2000 + n)).collect(),
            _ => (0..2000).map(|_| (random().powi(3) * 24_000.0) as u32).collect(),
        }
    }

    #[test]
    fn a_sample_tells_the_curve_of_any_load() {
        let loads = [
            "all",
            "steps",
            "lap of 10 intervals",
            "lap of 100",
            "lap, some at each",
            "lap, few at each",
            "most at each",
            "skew",
        ];
        for (load, seed) in loads.into_iter().flat_map(|load| [(load, 1), (load, 2)]) {
            let memory = memory(32_768);
            let config = AccessCurveConfig { half_life: None, ..AccessCurveConfig::default() };
            let mut curve = AccessCurve::new(Arc::clone(&memory), config);
            let mut stack = Stack::default();
            let mut exact = DistanceHistogram::new(32_768, 1024);
            let mut state = u64::from(seed);
            let mut random = || {
                state = crate::mix::mix(state);
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            for interval in 0..300 {
                let mut seen = HashSet::new();
                for frame in accessed(load, interval, &mut random) {
                    if seen.insert(frame) {
                        access(&memory, seed * 2003 + frame);
                        exact.note(stack.reference(frame), 1.0);
                    }
                }
                curve.interval(INTERVAL);
                if interval % 50 == 49 {
                    memory.end_epoch_after(|| curve.look());
                    curve.tick(INTERVAL * 50);
                }
            }
            let (found, exact) = (curve.curve().unwrap(), exact.curve().unwrap());
            let off = found.mean_difference(&exact, 32_768);
            assert!(off < 0.02, "{load}, {seed}: {off}");
        }
    }
}
