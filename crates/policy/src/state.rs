//! How short of memory the host is.

use serde::{Deserialize, Serialize};

/// By which means memory is taken (OSDI 2002, section 6.3), from none to all.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum MemoryState {
    /// Enough: nothing is taken.
    #[default]
    High,
    /// Balloons take what is over the targets.
    Soft,
    /// The host takes it, too, without asking the guests.
    Hard,
    /// And VMs that are over their targets stand until they are not.
    Low,
}

impl MemoryState {
    /// In the order in which memory runs out.
    pub const ALL: [Self; 4] = [Self::High, Self::Soft, Self::Hard, Self::Low];
}

/// Below how much free memory a state begins, in hundredths of the host's limit. A state is left for a better one only when
/// what is free is beyond its threshold by a quarter (it must not be entered again by what leaving it gives out).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Published: 6 is what is to be free, 4 where balloons begin.
    pub high: f64,
    /// Balloons. Published: 4.
    pub soft: f64,
    /// Published: 2.
    pub hard: f64,
    /// Published: 1.
    pub low: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { high: 6.0, soft: 4.0, hard: 2.0, low: 1.0 }
    }
}

/// What is free must be so many times a threshold for the state to get better.
const BETTER: f64 = 1.25;

impl Thresholds {
    pub(crate) fn descend(&self) -> bool {
        let Self { high, soft, hard, low } = *self;
        low > 0.0 && hard > low && soft > hard && high >= BETTER * soft && high < 50.0
    }

    /// Bytes that are to be free once targets are kept.
    pub(crate) fn reserve(&self, limit: u64) -> u64 {
        (self.high / 100.0 * limit as f64) as u64
    }

    /// What of `free` bytes can be given away before balloons take.
    pub(crate) fn free_of_balloons(&self, free: u64, limit: u64) -> u64 {
        free.saturating_sub((self.soft / 100.0 * limit as f64) as u64)
    }

    /// The state with `free` of `limit` bytes, after `before`.
    pub(crate) fn state(&self, before: MemoryState, free: u64, limit: u64) -> MemoryState {
        let percent = free as f64 * 100.0 / (limit as f64).max(1.0);
        let begins = [self.soft, self.hard, self.low];
        let by = |factor: f64| {
            let worse = begins.iter().take_while(|begin| percent < **begin * factor).count();
            MemoryState::ALL[worse]
        };
        // Worse at once; better only beyond the margin.
        by(1.0).max(by(BETTER).min(before))
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryState::{Hard, High, Low, Soft};
    use super::*;

    #[test]
    fn states_worsen_at_once_and_better_with_a_margin() {
        let thresholds = Thresholds::default();
        let state =
            |before, percent: f64| thresholds.state(before, (percent * 1e6) as u64, 100_000_000);
        let cases = [
            (High, 7.0, High),
            (High, 4.0, High),
            (High, 3.9, Soft),
            (High, 1.9, Hard),
            (High, 0.9, Low),
            (Low, 1.1, Low),
            (Low, 1.3, Hard),
            (Low, 2.6, Soft),
            (Soft, 4.9, Soft),
            (Soft, 5.0, High),
            (Hard, 2.4, Hard),
            (Hard, 9.0, High),
            (Soft, 0.0, Low),
        ];
        for (before, percent, expected) in cases {
            assert_eq!(state(before, percent), expected, "{before:?} with {percent} %");
        }
        // No host at all is a host without memory.
        assert_eq!(thresholds.state(High, 0, 0), Low);
    }

    #[test]
    fn thresholds_that_cannot_be() {
        let with = |high, soft, hard, low| Thresholds { high, soft, hard, low }.descend();
        assert!(with(6.0, 4.0, 2.0, 1.0));
        assert!(!with(4.0, 4.0, 2.0, 1.0), "balloons would never be done");
        assert!(
            !with(6.0, 2.0, 2.0, 1.0) && !with(6.0, 4.0, 2.0, 0.0) && !with(60.0, 4.0, 2.0, 1.0)
        );
        assert!(!with(f64::NAN, 4.0, 2.0, 1.0));
    }
}
