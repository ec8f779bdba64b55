//! A few frames at random stand for all (Waldspurger: Memory resource management in VMware ESX server, OSDI 2002,
//! section 5.3).
//!
//! At the beginning of a period `frames` frames are chosen; at its end the part of them that was accessed is the part of
//! all memory that is active. Three averages of that are kept, and the largest counts, so that the estimate rises
//! quickly and falls slowly: a slow and a fast moving average of whole periods, and the fast one as it would be if the
//! period under way ended now. The paper has 100 frames and 30 s of the VM's time, and gives no weights; these are ours.

use std::sync::Arc;
use std::time::Duration;

use memory::{Epoch, FRAME_SIZE, Frame, GuestMemory};

use super::{Estimate, Estimator};
use crate::mix::{STEP, mix};

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingConfig {
    /// In a period.
    pub frames: usize,
    /// In time of the VM, a multiple of the epoch; else it ends with the epoch that exceeds it.
    pub period: Duration,
    /// Weight of the newest period in the slow average.
    pub slow: f64,
    /// In the fast one.
    pub fast: f64,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { frames: 100, period: Duration::from_secs(30), slow: 0.2, fast: 0.6, seed: 1 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Sampling {
    memory: Arc<GuestMemory>,
    config: SamplingConfig,
    random: u64,
    chosen: Vec<Frame>,
    /// The epoch with which the period began.
    since: Epoch,
    spent: Duration,
    /// Part of `chosen` accessed up to now.
    touched: f64,
    /// The same of the last finished period.
    finished: Option<f64>,
    /// Over finished periods.
    averages: Option<Averages>,
}

#[derive(Clone, Copy, Debug)]
struct Averages {
    slow: f64,
    fast: f64,
}

impl Sampling {
    /// Chooses the first frames, as from the next epoch on: the caller begins one.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, config: SamplingConfig) -> Self {
        let config = SamplingConfig { frames: config.frames.clamp(1, 1 << 16), ..config };
        let mut new = Self {
            memory,
            config,
            random: config.seed,
            chosen: Vec::new(),
            since: Epoch::NEVER,
            spent: Duration::ZERO,
            touched: 0.0,
            finished: None,
            averages: None,
        };
        new.begin();
        new
    }

    fn begin(&mut self) {
        let frames = u64::from(self.memory.layout().frames());
        let random = &mut self.random;
        self.chosen.clear();
        self.chosen.extend((0..self.config.frames).map(|_| Frame((next(random) % frames) as u32)));
        self.since = self.memory.epoch();
        (self.spent, self.touched) = (Duration::ZERO, 0.0);
    }

    fn end(&mut self) {
        let SamplingConfig { slow, fast, .. } = self.config;
        self.finished = Some(self.touched);
        self.averages = Some(match self.averages {
            None => Averages { slow: self.touched, fast: self.touched },
            Some(old) => Averages {
                slow: old.slow + slow * (self.touched - old.slow),
                fast: old.fast + fast * (self.touched - old.fast),
            },
        });
    }

    /// The part of the last finished period's frames that was accessed: no average.
    #[must_use]
    pub fn last_period(&self) -> Option<f64> {
        self.finished
    }

    /// The part of memory that is active, 0 to 1.
    #[must_use]
    pub fn active(&self) -> Option<f64> {
        let Averages { slow, fast } = self.averages?;
        let current = fast + self.config.fast * (self.touched - fast);
        Some(slow.max(fast).max(current))
    }
}

impl Estimator for Sampling {
    fn name(&self) -> &'static str {
        "sampling"
    }

    fn look(&mut self) {
        let since = self.since;
        let touched = |frame: &&Frame| {
            let facts = self.memory.facts(**frame);
            facts.is_some_and(|facts| facts.accessed != Epoch::NEVER && facts.accessed >= since)
        };
        let count = self.chosen.iter().filter(touched).count();
        self.touched = count as f64 / self.chosen.len() as f64;
    }

    fn tick(&mut self, elapsed: Duration) {
        self.spent += elapsed;
        // To within half an epoch: epochs are never quite as long as asked.
        if self.spent + elapsed / 2 >= self.config.period {
            self.end();
            self.begin();
        }
    }

    fn estimate(&self) -> Option<Estimate> {
        let active = self.active()?;
        let all = self.memory.bytes() as f64;
        // Of a binomial; of one frame at least, where none or all were accessed.
        let frames = self.config.frames as f64;
        let deviation = (active * (1.0 - active) / frames).max(0.0).sqrt().max(1.0 / frames);
        let bytes = (active * all) as u64 / FRAME_SIZE as u64 * FRAME_SIZE as u64;
        Some(Estimate { bytes, error_bytes: Some((deviation * all) as u64) })
    }
}

/// A random number.
fn next(state: &mut u64) -> u64 {
    let number = mix(*state);
    *state = state.wrapping_add(STEP);
    number
}

#[cfg(test)]
mod tests {
    use memory::Access;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// One period of a second in which the first `frames` are accessed.
    fn period(memory: &GuestMemory, sampling: &mut Sampling, frames: u32) {
        for frame in (0..frames).map(Frame) {
            memory.resolve(frame, Access::Read).unwrap();
        }
        memory.end_epoch_after(|| sampling.look());
        sampling.tick(SECOND);
    }

    #[test]
    fn it_finds_the_part_that_is_active_to_within_its_error() {
        let memory = Arc::new(GuestMemory::with_bytes(16 << 20).unwrap());
        let config = SamplingConfig { frames: 2000, period: SECOND, ..SamplingConfig::default() };
        for part in [0.1, 0.5, 0.9] {
            let mut sampling = Sampling::new(Arc::clone(&memory), config);
            assert_eq!(sampling.estimate(), None);
            memory.advance_epoch();
            sampling.begin();
            (0..3).for_each(|_| period(&memory, &mut sampling, (4096.0 * part) as u32));
            let found = sampling.estimate().unwrap();
            let off = found.bytes.abs_diff((f64::from(16 << 20) * part) as u64);
            assert!(off < 4 * found.error_bytes.unwrap(), "{off} at {part}");
        }
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let memory = Arc::new(GuestMemory::with_bytes(4 << 20).unwrap());
        memory.advance_epoch();
        let config = SamplingConfig { period: SECOND, ..SamplingConfig::default() };
        let mut sampling = Sampling::new(Arc::clone(&memory), config);
        (0..5).for_each(|_| period(&memory, &mut sampling, 0));
        assert_eq!(sampling.active(), Some(0.0));
        period(&memory, &mut sampling, 1024);
        assert!(sampling.active().unwrap() >= 0.6);
        (0..9).for_each(|_| period(&memory, &mut sampling, 1024));
        let high = sampling.active().unwrap();
        period(&memory, &mut sampling, 0);
        assert!(sampling.active().unwrap() > high * 0.7, "{high}");
        (0..20).for_each(|_| period(&memory, &mut sampling, 0));
        assert!(sampling.active().unwrap() < 0.02);
    }

    #[test]
    fn a_period_under_way_raises_the_estimate() {
        let memory = Arc::new(GuestMemory::with_bytes(4 << 20).unwrap());
        memory.advance_epoch();
        let config = SamplingConfig { period: 3 * SECOND, ..SamplingConfig::default() };
        let mut sampling = Sampling::new(Arc::clone(&memory), config);
        (0..3).for_each(|_| period(&memory, &mut sampling, 0));
        assert_eq!(sampling.active(), Some(0.0));
        period(&memory, &mut sampling, 1024);
        assert_eq!(sampling.active(), Some(0.6));
    }
}
