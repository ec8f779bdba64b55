//! When a restored VM responds as if it had never been saved (Zhang and others, VEE 2011).
//!
//! Restore latency stops when the VM starts and so hides the storm of faults behind a lazy start. *Time to
//! responsiveness* does not: with `busy(t)` the time in `[t, t + window)` that a vCPU could run,
//!
//! ```text
//!   utilization(t) = busy(t) / window
//!   TTR(window, x) = the smallest T such that utilization(t) >= x for every t >= T
//! ```
//!
//! The clock begins with the command to restore. It is a suffix that counts, not the first window that is good enough:
//! what stalls after a good start moves TTR behind the stall. The same is computed from inside, by the times that a
//! vCPU waited for pages ([`Stalls`]), and from outside, by the beats of a guest that counts ([`Heartbeat`]), so that
//! a monitor that tells nothing can be measured, too.

use std::time::Duration;

/// Windows that are shown.
pub const WINDOWS: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];

/// Utilizations that are asked for.
pub const UTILIZATIONS: [f64; 3] = [0.9, 0.95, 0.99];

/// The times, since the command, in which a vCPU could not run because of the restore: before its first instruction,
/// and while it waited for a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Beginnings and ends in nanoseconds: each after the last.
    stalls: Vec<(u64, u64)>,
}

impl Stalls {
    /// Of stalls in any order, some of which may overlap.
    #[must_use]
    pub fn new(stalls: impl IntoIterator<Item = (Duration, Duration)>) -> Self {
        let mut sorted: Vec<(u64, u64)> =
            stalls.into_iter().map(|(begin, end)| (nanoseconds(begin), nanoseconds(end))).collect();
        sorted.retain(|(begin, end)| begin < end);
        sorted.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
        for (begin, end) in sorted {
            match joined.last_mut() {
                Some(last) if begin <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((begin, end)),
            }
        }
        Self { stalls: joined }
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.stalls.iter().map(|(begin, end)| end - begin).sum())
    }

    /// Zero where no window is ever below `utilization`.
    #[must_use]
    pub fn time_to_responsiveness(&self, window: Duration, utilization: f64) -> Duration {
        let idle = Steps::of_stalls(&self.stalls);
        let allowed = nanoseconds(window) as f64 * (1.0 - utilization);
        idle.last_above(nanoseconds(window), allowed)
    }

    /// The least utilization of any window from a time on: falls never, and is 1 at the end. One point for each time
    /// at which it changes its direction, and one at 0.
    #[must_use]
    pub fn curve(&self, window: Duration) -> Vec<(Duration, f64)> {
        Steps::of_stalls(&self.stalls).curve(nanoseconds(window))
    }
}

/// The beats of a guest: each after the same piece of its own work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// In nanoseconds since the command, in their order.
    beats: Vec<u64>,
    /// Between two beats of the guest before it was saved.
    usual: u64,
}

impl Heartbeat {
    /// Of a guest that beat once in `usual` before it was saved, and at these times since the command.
    #[must_use]
    pub fn new(usual: Duration, beats: impl IntoIterator<Item = Duration>) -> Self {
        let mut beats: Vec<u64> = beats.into_iter().map(nanoseconds).collect();
        beats.sort_unstable();
        Self { beats, usual: nanoseconds(usual).max(1) }
    }

    /// When the first beat was seen.
    #[must_use]
    pub fn first(&self) -> Option<Duration> {
        self.beats.first().copied().map(Duration::from_nanos)
    }

    /// What of the time between two beats is more than usual passes for a stall, at its end. It is exact to `usual`.
    #[must_use]
    pub fn stalls(&self) -> Stalls {
        let before = std::iter::once(0).chain(self.beats.iter().copied());
        let late = before.zip(&self.beats).filter_map(|(last, &beat)| {
            let begin = last + self.usual;
            (begin < beat).then_some((Duration::from_nanos(begin), Duration::from_nanos(beat)))
        });
        Stalls::new(late)
    }
}

/// The means and the worst of several vCPUs' times.
#[must_use]
pub fn mean_and_worst(times: &[Duration]) -> Option<(Duration, Duration)> {
    let worst = *times.iter().max()?;
    Some((times.iter().sum::<Duration>() / times.len() as u32, worst))
}

/// Time lost up to `t`: grows by 1 within stalls, and stands outside.
struct Steps<'a> {
    stalls: &'a [(u64, u64)],
    /// Lost before each stall.
    before: Vec<u64>,
}

impl<'a> Steps<'a> {
    fn of_stalls(stalls: &'a [(u64, u64)]) -> Self {
        let sums = stalls.iter().scan(0, |sum, (begin, end)| {
            *sum += end - begin;
            Some(*sum)
        });
        Self { stalls, before: std::iter::once(0).chain(sums).collect() }
    }

    fn lost_before(&self, at: u64) -> u64 {
        let begun = self.stalls.partition_point(|&(begin, _)| begin < at);
        match begun.checked_sub(1) {
            Some(last) => self.before[last] + at.min(self.stalls[last].1) - self.stalls[last].0,
            None => 0,
        }
    }

    fn lost_in(&self, at: u64, window: u64) -> u64 {
        self.lost_before(at.saturating_add(window)) - self.lost_before(at)
    }

    /// Where `lost_in` bends, in falling order; it is linear in between, and nothing after the first.
    fn bends(&self, window: u64) -> Vec<u64> {
        let ends = self.stalls.iter().flat_map(|&(begin, end)| [begin, end]);
        let mut bends: Vec<u64> =
            ends.flat_map(|at| [Some(at), at.checked_sub(window)]).flatten().collect();
        bends.push(0);
        bends.sort_unstable_by(|a, b| b.cmp(a));
        bends.dedup();
        bends
    }

    /// The end of the last time at which more than `allowed` was lost in the window that begins there.
    fn last_above(&self, window: u64, allowed: f64) -> Duration {
        let mut after = None;
        for at in self.bends(window) {
            let lost = self.lost_in(at, window) as f64;
            if lost > allowed {
                // It falls to what is allowed on the way to the next bend.
                let Some((next, then)) = after else { return Duration::from_nanos(at) };
                let part: f64 = (lost - allowed) / (lost - then);
                let way: u64 = next - at;
                return Duration::from_nanos(at + (way as f64 * part).ceil() as u64);
            }
            after = Some((at, lost));
        }
        Duration::ZERO
    }

    fn curve(&self, window: u64) -> Vec<(Duration, f64)> {
        let mut least = 1.0f64;
        let points = self.bends(window).into_iter().map(|at| {
            least = least.min(1.0 - self.lost_in(at, window) as f64 / window as f64);
            (Duration::from_nanos(at), least)
        });
        let mut points: Vec<_> = points.collect();
        points.reverse();
        points
    }
}

/// Some 580 years at most.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_stall_after_a_good_start_counts() {
        let early = Stalls::new([(ms(0), ms(50))]);
        assert_eq!(early.time_to_responsiveness(ms(100), 0.9), ms(40));
        let late = Stalls::new([(ms(0), ms(50)), (ms(3000), ms(3050))]);
        assert_eq!(late.time_to_responsiveness(ms(100), 0.9), ms(3040));
        assert_eq!(late.time_to_responsiveness(ms(5000), 0.9), ms(0));
        assert_eq!(late.total(), ms(100));
        assert_eq!(Stalls::default().time_to_responsiveness(ms(100), 0.99), ms(0));
    }

    #[test]
    fn overlapping_stalls_are_one() {
        let stalls = [(ms(5), ms(9)), (ms(0), ms(6)), (ms(9), ms(10)), (ms(20), ms(20))];
        assert_eq!(Stalls::new(stalls), Stalls::new([(ms(0), ms(10))]));
    }

    #[test]
    fn a_heart_that_beats_late_has_stalled() {
        let beats = [30, 40, 50, 75, 85].map(ms);
        let stalls = Stalls::new([(ms(10), ms(30)), (ms(60), ms(75))]);
        assert_eq!(Heartbeat::new(ms(10), beats).stalls(), stalls);
        assert_eq!(Heartbeat::new(ms(10), []).first(), None);
    }

    #[test]
    fn the_curve_never_falls() {
        let stalls = Stalls::new([(ms(0), ms(50)), (ms(3000), ms(3020))]);
        let curve = stalls.curve(ms(100));
        assert_eq!(curve[0], (ms(0), 0.5));
        assert_eq!(curve.last(), Some(&(ms(3020), 1.0)));
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{curve:?}");
    }

    #[test]
    fn several_vcpus_have_a_mean_and_a_worst() {
        assert_eq!(mean_and_worst(&[ms(10), ms(30)]), Some((ms(20), ms(30))));
        assert_eq!(mean_and_worst(&[]), None);
    }

    proptest! {
        /// Against the definition, for times of a few nanoseconds.
        #[test]
        fn it_is_what_the_definition_says(
            stalls in prop::collection::vec((0u64..60, 0u64..12), 0..8),
            window in 1u64..25,
            percent in 50u64..100,
        ) {
            let ns = Duration::from_nanos;
            let stalls = stalls.into_iter().map(|(begin, len)| (begin, begin + len));
            let stalls: Vec<_> = stalls.collect();
            let stalled = |t: u64| stalls.iter().any(|&(begin, end)| (begin..end).contains(&t));
            let good = |t: u64| {
                let lost = (t..t + window).filter(|&t| stalled(t)).count() as u64;
                lost * 100 <= window * (100 - percent)
            };
            let expected = (0..200).rev().find(|&t| !good(t)).map_or(0, |t| t + 1);
            let of = Stalls::new(stalls.iter().map(|&(begin, end)| (ns(begin), ns(end))));
            let utilization = percent as f64 / 100.0 - 1e-9;
            let found = of.time_to_responsiveness(ns(window), utilization);
            prop_assert_eq!(found, ns(expected));
        }
    }
}
