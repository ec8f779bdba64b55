//! Several methods at once, on the same epochs.

use std::sync::Arc;
use std::time::Duration;

use memory::GuestMemory;

use super::{
    AccessCurve, AccessCurveConfig, AccessOrder, Census, Estimator, Sampling, SamplingConfig, Scan,
};

/// Which methods, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EstimatorSetConfig {
    /// Of the census and all that look at the table.
    pub epoch: Duration,
    /// The census' estimate is of so long.
    pub window: Duration,
    /// Of random frames.
    pub sampling: Option<SamplingConfig>,
    /// Between two scans.
    pub scan: Option<Duration>,
    /// Frames of an epoch's order, at most.
    pub order: Option<usize>,
    /// Of sampled accesses.
    pub curve: Option<AccessCurveConfig>,
}

/// What costs least: the census, the scan, sampling, which look at what is there anyway, and the curve.
impl Default for EstimatorSetConfig {
    fn default() -> Self {
        Self {
            epoch: Duration::from_secs(1),
            window: Duration::from_secs(1),
            sampling: Some(SamplingConfig::default()),
            scan: Some(Duration::from_secs(10)),
            order: None,
            curve: Some(AccessCurveConfig::default()),
        }
    }
}

/// See the module. It alone ends the memory's epochs.
#[derive(Debug)]
pub struct EstimatorSet {
    memory: Arc<GuestMemory>,
    epoch: Duration,
    spent: Duration,
    census: Census,
    sampling: Option<Sampling>,
    scan: Option<Scan>,
    order: Option<AccessOrder>,
    curve: Option<AccessCurve>,
}

impl EstimatorSet {
    /// How often [`EstimatorSet::tick`] is to be called.
    pub const INTERVAL: Duration = Duration::from_millis(20);

    /// Starts all: begins an epoch. Listens to the memory's events, with room for one, unless somebody does.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, config: EstimatorSetConfig) -> Self {
        if config.order.is_some() || config.curve.is_some() {
            memory.listen(1);
        }
        let of = || Arc::clone(&memory);
        let curve = config.curve.map(|config| AccessCurve::new(of(), config));
        let order = config.order.map(|most| AccessOrder::new(of(), most));
        // Begins an epoch, after the frames are armed.
        let census = Census::new(of(), config.epoch, config.window);
        let sampling = config.sampling.map(|config| Sampling::new(of(), config));
        let scan = config.scan.map(|interval| Scan::new(of(), interval));
        let (epoch, spent) = (config.epoch, Duration::ZERO);
        Self { memory, epoch, spent, census, sampling, scan, order, curve }
    }

    /// `elapsed` of the VM's time went by since the last call: an interval is over, and an epoch where it was due. True
    /// if an epoch ended.
    pub fn tick(&mut self, elapsed: Duration) -> bool {
        self.each().for_each(|estimator| estimator.interval(elapsed));
        self.spent += elapsed;
        if self.spent < self.epoch {
            return false;
        }
        let spent = std::mem::take(&mut self.spent);
        let memory = Arc::clone(&self.memory);
        memory.end_epoch_after(|| self.each().for_each(Estimator::look));
        self.each().for_each(|estimator| estimator.tick(spent));
        true
    }

    /// How long epochs last from now on, the running one too.
    pub fn set_epoch(&mut self, epoch: Duration) {
        self.epoch = epoch;
    }

    /// When [`EstimatorSet::tick`] is to be called next, counted from the last time.
    #[must_use]
    pub fn next_tick(&self) -> Duration {
        let rest = self.epoch.saturating_sub(self.spent);
        let in_intervals = self.order.is_some() || self.curve.is_some();
        if in_intervals { rest.min(Self::INTERVAL) } else { rest }
    }

    /// All that run.
    pub fn estimators(&self) -> impl Iterator<Item = &dyn Estimator> {
        let some = [
            Some(&self.census as &dyn Estimator),
            self.sampling.as_ref().map(|estimator| estimator as &dyn Estimator),
            self.scan.as_ref().map(|estimator| estimator as &dyn Estimator),
            self.order.as_ref().map(|estimator| estimator as &dyn Estimator),
            self.curve.as_ref().map(|estimator| estimator as &dyn Estimator),
        ];
        some.into_iter().flatten()
    }

    /// The census.
    #[must_use]
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// Sampling, if it runs.
    #[must_use]
    pub fn sampling(&self) -> Option<&Sampling> {
        self.sampling.as_ref()
    }

    /// The scan, if it runs.
    #[must_use]
    pub fn scan(&self) -> Option<&Scan> {
        self.scan.as_ref()
    }

    /// The order of first accesses, if it is traced.
    #[must_use]
    pub fn order(&self) -> Option<&AccessOrder> {
        self.order.as_ref()
    }

    /// The curve below what the guest has, if it is followed.
    #[must_use]
    pub fn curve(&self) -> Option<&AccessCurve> {
        self.curve.as_ref()
    }

    fn each(&mut self) -> impl Iterator<Item = &mut dyn Estimator> {
        let some = [
            Some(&mut self.census as &mut dyn Estimator),
            self.sampling.as_mut().map(|estimator| estimator as &mut dyn Estimator),
            self.scan.as_mut().map(|estimator| estimator as &mut dyn Estimator),
            self.order.as_mut().map(|estimator| estimator as &mut dyn Estimator),
            self.curve.as_mut().map(|estimator| estimator as &mut dyn Estimator),
        ];
        some.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use memory::{Access, Frame};

    use super::*;

    #[test]
    fn all_agree_where_all_memory_is_used() {
        let memory = Arc::new(GuestMemory::with_bytes(4 << 20).unwrap());
        memory.listen(1);
        let config = EstimatorSetConfig {
            sampling: Some(SamplingConfig {
                period: Duration::from_secs(2),
                ..SamplingConfig::default()
            }),
            scan: Some(Duration::from_secs(2)),
            order: Some(4096),
            curve: Some(AccessCurveConfig { per_interval: 640, ..AccessCurveConfig::default() }),
            ..EstimatorSetConfig::default()
        };
        let mut set = EstimatorSet::new(Arc::clone(&memory), config);
        assert!(set.estimators().all(|estimator| estimator.estimate().is_none()));
        let mut epochs = 0;
        for _ in 0..300 {
            for frame in (0..1024).map(Frame) {
                memory.resolve(frame, Access::Read).unwrap();
                memory.events().unwrap().note_access(frame, Access::Read, true, true);
            }
            epochs += u32::from(set.tick(EstimatorSet::INTERVAL));
        }
        assert_eq!(epochs, 6);
        let found: Vec<_> = set
            .estimators()
            .map(|estimator| (estimator.name(), estimator.estimate().expect("seconds went by")))
            .collect();
        assert_eq!(found.len(), 5);
        for (name, estimate) in found {
            assert!(estimate.bytes.abs_diff(4 << 20) <= 4096 * 4, "{name}: {estimate:?}");
        }
        assert_eq!(set.order().unwrap().order().len(), 1024);
    }
}
