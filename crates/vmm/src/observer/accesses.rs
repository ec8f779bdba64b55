//! Accesses while they are watched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use insight::estimate::{AccessCurve, EstimatorSetConfig};
use insight::picture::{EpochAges, Recommendation};
use insight::{DemandFacts, EstimatorSet, MissRatioCurve, WorkingSetSample, demand, splice};
use memory::{FRAME_SIZE, GuestMemory};

/// Estimators, ages and when they are to be told next. It alone ends the memory's epochs.
#[derive(Debug)]
pub(super) struct Accesses {
    set: EstimatorSet,
    ages: EpochAges,
    /// The interval that runs, and the epoch.
    interval_begun: Instant,
    epoch_begun: Instant,
    latest: Option<WorkingSetSample>,
}

impl Accesses {
    /// Begins an epoch. Accesses are told one by one only where vCPUs do so and somebody listens to the memory already.
    pub(super) fn begin(memory: &Arc<GuestMemory>, epoch: Duration, tells_accesses: bool) -> Self {
        let told = tells_accesses && memory.events().is_some();
        let mut config = EstimatorSetConfig { epoch, ..EstimatorSetConfig::default() };
        config.curve = config.curve.filter(|_| told);
        // Nobody looks at what these find.
        (config.sampling, config.scan) = (None, None);
        let set = EstimatorSet::new(Arc::clone(memory), config);
        let ages = EpochAges::new(memory.epoch());
        let now = Instant::now();
        Self { set, ages, interval_begun: now, epoch_begun: now, latest: None }
    }

    pub(super) fn next_tick(&self) -> Instant {
        self.interval_begun + self.set.next_tick()
    }

    /// An interval is over; what was accessed, if an epoch is.
    pub(super) fn tick(&mut self, memory: &GuestMemory, now: Instant) -> Option<WorkingSetSample> {
        let ended = self.set.tick(now - self.interval_begun);
        self.interval_begun = now;
        if !ended {
            return None;
        }
        self.ages.ended(now - self.epoch_begun, memory.epoch());
        self.epoch_begun = now;
        self.latest = self.set.census().latest();
        self.latest
    }

    /// How long the running epoch is to last, and those after it.
    pub(super) fn set_epoch(&mut self, epoch: Duration) {
        self.set.set_epoch(epoch);
    }

    pub(super) fn ages(&self) -> &EpochAges {
        &self.ages
    }

    pub(super) fn latest(&self) -> Option<WorkingSetSample> {
        self.latest
    }

    /// For all sizes, once enough was seen: `above` the allocation by blocks that were read again, of `misses` in a
    /// second.
    pub(super) fn curve(
        &self,
        allocation_bytes: u64,
        above: Option<&MissRatioCurve>,
        misses: f64,
    ) -> Option<MissRatioCurve> {
        let of_accesses = self.set.curve()?;
        let below = of_accesses.curve()?;
        let references = of_accesses.references_per_second().unwrap_or(0.0);
        let misses_per_reference = if references > 0.0 { misses / references } else { 0.0 };
        let pages = allocation_bytes / FRAME_SIZE as u64;
        Some(splice(&below, above, pages, misses_per_reference))
    }

    /// What the VM would use well. `None` before an epoch has ended. `again`: evicted blocks read again in a second.
    pub(super) fn demand(
        &self,
        allocation_bytes: u64,
        resident_bytes: u64,
        curve: Option<&MissRatioCurve>,
        again: f64,
    ) -> Option<Recommendation> {
        let of_accesses = self.set.curve();
        let references = of_accesses.and_then(AccessCurve::references_per_second);
        let facts = DemandFacts {
            allocation_bytes,
            resident_bytes,
            working_set_bytes: self.latest?.working_set_60s_bytes,
            observed_seconds: self.ages.watched().as_secs_f64(),
            curve,
            references_per_second: references.unwrap_or(0.0),
            sampled_references: of_accesses.map_or(0.0, |curve| curve.references() * curve.rate()),
            refaults_per_second: again,
        };
        Some(demand(&facts).into())
    }
}
