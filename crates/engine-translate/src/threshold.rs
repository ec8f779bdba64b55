//! After how many runs code is translated: more where memory is short.
//!
//! When memory is full all code goes, and what is still needed is counted and translated again. Where that takes a good
//! part of the time, too much is translated for the memory there is, and only what runs oftener should be.

use std::sync::atomic::{AtomicU32, Ordering};

use translator::paths::Policy;

/// Shared by the vCPUs of a VM.
#[derive(Debug)]
pub(crate) struct Threshold {
    /// What was asked for.
    least: u32,
    most: u32,
    now: AtomicU32,
}

/// Of the time from one eviction to the next, parts of it spent on translating above which the count doubles, and below
/// which it is halved.
const MUCH: u64 = 10;
const LITTLE: u64 = 40;

impl Threshold {
    pub(crate) fn of(policy: &Policy) -> Self {
        Self::new(policy.hot(), policy.scarce)
    }

    /// `least` runs at first, never more than `most`.
    fn new(least: u32, most: u32) -> Self {
        Self { least, most: most.max(least), now: AtomicU32::new(least) }
    }

    /// At which run code is translated.
    #[inline]
    pub(crate) fn runs(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }

    /// At which run what has been decoded is kept.
    #[inline]
    pub(crate) fn runs_to_keep(&self) -> u32 {
        self.least
    }

    /// Whether memory is short.
    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.runs() > self.least
    }

    /// All code has gone, `ticks` after the last time; `translating` of them were spent on making it.
    pub(crate) fn learn(&self, translating: u64, ticks: u64) {
        let now = self.runs();
        let next = if translating > ticks / MUCH {
            now.saturating_mul(2).min(self.most)
        } else if translating < ticks / LITTLE {
            (now / 2).max(self.least)
        } else {
            now
        };
        self.now.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_while_code_goes_before_it_has_paid() {
        let threshold = Threshold::new(8, 50);
        assert!(threshold.runs() == 8 && !threshold.is_raised());
        let after = |translating, ticks| {
            threshold.learn(translating, ticks);
            threshold.runs()
        };
        assert_eq!([after(2, 10), after(2, 10), after(2, 10)], [16, 32, 50]);
        assert_eq!([after(50, 1000), after(2, 1000)], [50, 25]);
        assert!(threshold.is_raised());
        assert_eq!([after(0, 1000), after(0, 1000)], [12, 8]);
        assert!(!threshold.is_raised());
    }

    #[test]
    fn it_stays_where_no_more_is_allowed() {
        let threshold = Threshold::new(8, 0);
        threshold.learn(10, 10);
        assert_eq!(threshold.runs(), 8);
    }
}
