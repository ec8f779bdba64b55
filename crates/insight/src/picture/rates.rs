//! How often lately.

use std::collections::VecDeque;
use std::time::Duration;

/// What rates are averages over.
const WINDOW: Duration = Duration::from_secs(10);

/// Over less than that a few events look like many.
const SAMPLE: Duration = Duration::from_secs(1);

/// Rates of `N` counters that only rise, over the last ten seconds.
#[derive(Clone, Debug)]
pub struct Rates<const N: usize> {
    samples: VecDeque<(Duration, [u64; N])>,
    peaks: [f64; N],
}

impl<const N: usize> Default for Rates<N> {
    fn default() -> Self {
        Self { samples: VecDeque::new(), peaks: [0.0; N] }
    }
}

impl<const N: usize> Rates<N> {
    /// Notes what the counters say `at` this time, unless it did less than a second before.
    pub fn note(&mut self, at: Duration, counters: [u64; N]) {
        if let Some((before, of_then)) = self.samples.back() {
            let elapsed = at.saturating_sub(*before);
            if elapsed < SAMPLE {
                return;
            }
            for (n, peak) in self.peaks.iter_mut().enumerate() {
                *peak = peak.max(rate(of_then[n], counters[n], elapsed));
            }
        }
        self.samples.push_back((at, counters));
        let out = |sample: &(Duration, _)| at.saturating_sub(sample.0) >= WINDOW;
        // One stays that is as old as the window, for the difference.
        while self.samples.get(1).is_some_and(out) {
            self.samples.pop_front();
        }
    }

    /// Per second.
    #[must_use]
    pub fn per_second(&self) -> [f64; N] {
        match (self.samples.front(), self.samples.back()) {
            (Some((begun, before)), Some((at, now))) => {
                let elapsed = at.saturating_sub(*begun);
                std::array::from_fn(|n| rate(before[n], now[n], elapsed))
            }
            _ => [0.0; N],
        }
    }

    /// The highest between two samples, per second.
    #[must_use]
    pub fn peaks(&self) -> [f64; N] {
        self.peaks
    }
}

fn rate(before: u64, now: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_ten_seconds() {
        let mut rates = Rates::<2>::default();
        assert_eq!(rates.per_second(), [0.0, 0.0]);
        for second in 0..=20 {
            let fast = if second > 15 { (second - 15) * 100 } else { 0 };
            rates.note(Duration::from_secs(second), [second * 5, fast]);
        }
        assert_eq!(rates.per_second(), [5.0, 50.0]);
        assert_eq!(rates.peaks(), [5.0, 100.0]);
    }

    #[test]
    fn time_that_stands_or_rushes_does_no_harm() {
        let mut rates = Rates::<1>::default();
        for _ in 0..1000 {
            rates.note(Duration::ZERO, [7]);
        }
        assert_eq!((rates.samples.len(), rates.per_second()), (1, [0.0]));
        rates.note(Duration::from_secs(1 << 40), [1 << 60]);
        assert_eq!(rates.samples.len(), 2);
    }
}
