//! How long ago an epoch was.

use std::collections::VecDeque;
use std::time::Duration;

use memory::Epoch;

/// Bounds of idle ages, in seconds.
pub const IDLE_SECONDS: [u64; 8] = [1, 2, 5, 10, 30, 60, 120, 300];

/// Epochs kept at most, however short.
const EPOCHS: usize = 4096;

/// When a frame was last accessed, by the epoch of that.
#[derive(Clone, Debug)]
pub struct EpochAges {
    /// The first that was watched.
    first: Epoch,
    /// The one that has not ended.
    running: Epoch,
    /// Where each ended one is in `IDLE_SECONDS`, the latest first; as long as any is below the last bound.
    lengths: VecDeque<Duration>,
    watched: Duration,
}

impl EpochAges {
    /// Watching begins with the epoch that runs.
    #[must_use]
    pub fn new(running: Epoch) -> Self {
        Self { first: running, running, lengths: VecDeque::new(), watched: Duration::ZERO }
    }

    /// The epoch before `running` has ended and had lasted so long.
    pub fn ended(&mut self, lasted: Duration, running: Epoch) {
        // Somebody else may have ended some besides: as if they had had no length.
        let missed = running.0.saturating_sub(self.running.0).saturating_sub(1);
        for _ in 0..(missed as usize).min(EPOCHS) {
            self.lengths.push_front(Duration::ZERO);
        }
        self.lengths.push_front(lasted);
        self.lengths.truncate(EPOCHS);
        self.running = running;
        self.watched += lasted;
    }

    /// How long accesses have been watched.
    #[must_use]
    pub fn watched(&self) -> Duration {
        self.watched
    }

    /// By how many epochs ago: places in [`IDLE_SECONDS`], which has one more for all that is older.
    pub(super) fn places(&self) -> Places {
        let mut places = vec![0];
        let mut ago = Duration::ZERO;
        for &length in &self.lengths {
            // What was accessed in the middle of the epoch.
            let middle = (ago + length / 2).as_secs_f64();
            let place = IDLE_SECONDS.partition_point(|&bound| (bound as f64) < middle);
            places.push(place as u8);
            ago += length;
        }
        let longest = Duration::from_secs(IDLE_SECONDS[IDLE_SECONDS.len() - 1]);
        Places {
            first: self.first,
            running: self.running,
            places,
            all_known: self.watched > longest,
        }
    }
}

/// See [`EpochAges::places`].
pub(super) struct Places {
    first: Epoch,
    running: Epoch,
    places: Vec<u8>,
    all_known: bool,
}

impl Places {
    /// Where a frame belongs that was last accessed in `epoch`; `None`: before anybody watched.
    pub(super) fn of(&self, epoch: Epoch) -> Option<usize> {
        if epoch < self.first && !self.all_known {
            return None;
        }
        let ago = self.running.0.saturating_sub(epoch.0) as usize;
        Some(self.places.get(ago).map_or(IDLE_SECONDS.len(), |&place| place.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_by_epoch() {
        let mut ages = EpochAges::new(Epoch(10));
        for epoch in 11..=80 {
            // Clocks are never exact.
            ages.ended(Duration::from_millis(1003), Epoch(epoch));
        }
        let places = ages.places();
        let of = |epoch| places.of(Epoch(epoch));
        assert_eq!((of(80), of(79), of(78), of(77)), (Some(0), Some(0), Some(1), Some(2)));
        assert_eq!((of(70), of(69)), (Some(3), Some(4)));
        assert_eq!((of(20), of(10)), (Some(5), Some(6)));
        assert_eq!((of(9), of(0)), (None, None));
        // A vCPU may already be in the next.
        assert_eq!(of(81), Some(0));
    }

    #[test]
    fn all_is_known_after_a_long_time() {
        let mut ages = EpochAges::new(Epoch(2));
        ages.ended(Duration::from_secs(301), Epoch(3));
        assert_eq!(ages.places().of(Epoch(1)), Some(8));
        assert_eq!(ages.watched(), Duration::from_secs(301));
        for epoch in 4..10_000 {
            ages.ended(Duration::ZERO, Epoch(epoch));
        }
        assert_eq!(ages.lengths.len(), EPOCHS);
        assert_eq!(ages.places().of(Epoch(3)), Some(8));
    }

    #[test]
    fn epochs_that_others_end_count() {
        let mut ages = EpochAges::new(Epoch(5));
        ages.ended(Duration::from_secs(20), Epoch(8));
        let places = ages.places();
        assert_eq!((places.of(Epoch(8)), places.of(Epoch(7))), (Some(0), Some(3)));
        ages.ended(Duration::ZERO, Epoch(u32::MAX));
        assert_eq!(ages.lengths.len(), EPOCHS);
    }
}
