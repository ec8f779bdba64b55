//! What access-bit scanners find: each interval, which frames were accessed since the last, and for how long the others
//! were not.
//!
//! As the kernel's idle page tracking (Documentation/admin-guide/mm/idle_page_tracking.rst) and kstaled (Lagar-Cavilla
//! and others, ASPLOS 2019) look at bits that they clear; here the table's epochs say it without a change.

use std::sync::Arc;
use std::time::Duration;

use memory::{Epoch, FRAME_SIZE, Frame, GuestMemory};
use serde::Serialize;

use super::{Estimate, Estimator};

/// Classes of age.
const AGES: usize = 8;

/// Frames by how many intervals they were idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdleAges {
    /// Element 0: accessed in the last interval; n: not in the last 2^(n-1), but in the last 2^n; the last one: longer.
    pub frames: [u64; AGES],
    /// Never accessed, or not since they were given back.
    pub never: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Scan {
    memory: Arc<GuestMemory>,
    interval: Duration,
    spent: Duration,
    /// With which epoch each of the latest intervals began, the newest first.
    begun: Vec<Epoch>,
    ages: Option<IdleAges>,
    due: bool,
}

impl Scan {
    /// Scans each `interval`, at an epoch's end.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, interval: Duration) -> Self {
        let begun = vec![memory.epoch()];
        Self { memory, interval, spent: Duration::ZERO, begun, ages: None, due: false }
    }

    /// As of the last scan.
    #[must_use]
    pub fn ages(&self) -> Option<IdleAges> {
        self.ages
    }

    fn scan(&self) -> IdleAges {
        let mut ages = IdleAges::default();
        for frame in (0..self.memory.layout().frames()).map(Frame) {
            let accessed = self.memory.facts(frame).map_or(Epoch::NEVER, |facts| facts.accessed);
            if accessed == Epoch::NEVER {
                ages.never += 1;
                continue;
            }
            // Intervals since it was accessed: those that began after it.
            let idle = self.begun.partition_point(|&begun| begun > accessed);
            ages.frames[class(idle)] += 1;
        }
        ages
    }
}

/// The class of a frame that was idle for so many whole intervals.
fn class(intervals: usize) -> usize {
    ((intervals + 1).next_power_of_two().ilog2() as usize).min(AGES - 1)
}

impl Estimator for Scan {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn look(&mut self) {
        if self.due {
            self.ages = Some(self.scan());
        }
    }

    fn tick(&mut self, elapsed: Duration) {
        if std::mem::take(&mut self.due) {
            self.begun.insert(0, self.memory.epoch());
            // Older than what the last class begins with is all the same.
            self.begun.truncate(1 << (AGES - 1));
            self.spent = Duration::ZERO;
        } else {
            self.spent += elapsed;
        }
        // The epoch that begins is the interval's last.
        self.due = self.spent + elapsed + elapsed / 2 >= self.interval;
    }

    fn estimate(&self) -> Option<Estimate> {
        let ages = self.ages?;
        Some(Estimate::exact(ages.frames[0] * FRAME_SIZE as u64))
    }
}

#[cfg(test)]
mod tests {
    use memory::Access;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn epoch(memory: &GuestMemory, scan: &mut Scan, frames: std::ops::Range<u32>) {
        for frame in frames.map(Frame) {
            memory.resolve(frame, Access::Read).unwrap();
        }
        memory.end_epoch_after(|| scan.look());
        scan.tick(SECOND);
    }

    #[test]
    fn an_interval_is_several_epochs_and_ages_count_intervals() {
        let memory = Arc::new(GuestMemory::with_bytes(1 << 20).unwrap());
        memory.advance_epoch();
        let mut scan = Scan::new(Arc::clone(&memory), 2 * SECOND);
        epoch(&memory, &mut scan, 0..10);
        assert_eq!(scan.estimate(), None);
        epoch(&memory, &mut scan, 10..30);
        assert_eq!(scan.estimate(), Some(Estimate::exact(30 * 4096)));
        for _ in 0..4 {
            epoch(&memory, &mut scan, 0..1);
        }
        let ages = scan.ages().unwrap();
        assert_eq!(ages.frames, [1, 0, 29, 0, 0, 0, 0, 0]);
        assert_eq!(ages.never, 256 - 30);
    }

    #[test]
    fn classes_are_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 7, 1000].map(class), [0, 1, 2, 2, 3, 3, 7]);
    }
}
