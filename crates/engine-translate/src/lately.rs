//! Which code was met for the first time lately.
//!
//! What is met again soon after its first time is in a loop, or in a function that is called from a loop. Of a program's
//! code nearly all of that is going to run often; what comes back late runs once in each run of a program. A kernel
//! that starts up runs much of its code a few times, so there it tells less.

use std::sync::atomic::{AtomicU32, Ordering};

/// Places by a hash of their physical addresses, of a VM. A later one takes the place of another, which is how time is
/// told. Addresses are cut to 32 bits: it is a guess.
pub(crate) struct Lately(Box<[AtomicU32]>);

/// So many are known, by logarithm. A quarter of them would be forgotten too early by what starts a large program, and
/// four times as many would be of earlier programs.
const BITS: u32 = 14;

impl Lately {
    /// Knows nothing; for ever, unless `used`.
    pub(crate) fn new(used: bool) -> Self {
        let len = if used { 1 << BITS } else { 0 };
        Self((0..len).map(|_| AtomicU32::new(0)).collect())
    }

    /// The code at `gpa` is met for the time that `runs` says. Whether the first time was lately.
    #[inline]
    pub(crate) fn meet(&self, gpa: u64, runs: u32) -> bool {
        let place = gpa as u32;
        let Some(known) = self.0.get((place.wrapping_mul(0x9e37_79b1) >> (32 - BITS)) as usize)
        else {
            return false;
        };
        if runs == 1 {
            known.store(place, Ordering::Relaxed);
            return false;
        }
        known.load(Ordering::Relaxed) == place
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_soon_is_known() {
        let lately = Lately::new(true);
        assert!(!lately.meet(0x1234, 1));
        assert!(lately.meet(0x1234, 2) && lately.meet(0x1234, 3));
        assert!(!lately.meet(0x1235, 2), "never met before");
        let later = || (1..1 << BITS).map(|n| 0x10_0000 + n * 9);
        later().take(1 << (BITS - 5)).for_each(|gpa| assert!(!lately.meet(gpa, 1)));
        let known = later().take(1 << (BITS - 5)).filter(|&gpa| lately.meet(gpa, 2)).count();
        assert!(known > 7 << (BITS - 8), "{known}");
    }

    #[test]
    fn what_comes_back_late_is_forgotten() {
        let lately = Lately::new(true);
        let early = || (1..1000).map(|n| n * 7);
        early().for_each(|gpa| _ = lately.meet(gpa, 1));
        (0..8 << BITS).for_each(|n| _ = lately.meet(0x10_0000 + n * 5, 1));
        assert!(early().filter(|&gpa| lately.meet(gpa, 2)).count() < 10);
    }

    #[test]
    fn where_it_is_not_used_it_knows_nothing() {
        let lately = Lately::new(false);
        assert!(!lately.meet(0x1000, 1) && !lately.meet(0x1000, 2));
        assert_eq!(lately.bytes(), 0);
    }
}
