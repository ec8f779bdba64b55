//! Cached frames that the kernel has in a list of free ones.
//!
//! Their blocks were evicted, or their file was deleted: then the pages are free before the blocks are. A file goes from its
//! beginning to its end, so what is decided of a run of blocks waits until it has not grown for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use memory::{DiskBlock, Frame};

/// How long a run rests, and how long it waits at most while it grows.
const REST: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_millis(30);
/// Blocks between two that are of one run.
const NEAR: u64 = 16;

/// Frames that wait, by run.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// By the first block.
    runs: BTreeMap<(u8, u64), Run>,
}

#[derive(Debug)]
struct Run {
    last: u64,
    began: Duration,
    grown: Duration,
    frames: Vec<(Frame, DiskBlock)>,
}

impl Released {
    /// These frames are free, and have these blocks.
    pub(super) fn add(&mut self, at: Duration, mut frames: Vec<(Frame, DiskBlock)>) {
        frames.sort_unstable_by_key(|(_, block)| (block.disk, block.block));
        for (frame, block) in frames {
            let place = (block.disk, block.block);
            let before = self.runs.range_mut((block.disk, 0)..=place).next_back();
            let run = before.map(|(_, run)| run);
            match run.filter(|run| block.block <= run.last.saturating_add(NEAR)) {
                Some(run) => {
                    (run.last, run.grown) = (run.last.max(block.block), at);
                    run.frames.push((frame, block));
                }
                None => {
                    let (last, frames) = (block.block, vec![(frame, block)]);
                    self.runs.insert(place, Run { last, began: at, grown: at, frames });
                }
            }
        }
    }

    /// Those of which it is decided now.
    pub(super) fn take(&mut self, now: Duration) -> Vec<(Frame, DiskBlock)> {
        let due = |_: &_, run: &mut Run| {
            now >= run.grown.saturating_add(REST) || now >= run.began.saturating_add(WAIT_MAX)
        };
        let due = self.runs.extract_if(.., due);
        due.flat_map(|(_, run)| run.frames).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(frame: u32, block: u64) -> (Frame, DiskBlock) {
        (Frame(frame), DiskBlock { disk: 1, block })
    }

    #[test]
    fn a_run_waits_while_it_grows() {
        let mut released = Released::default();
        released.add(ms(0), vec![at(2, 101), at(1, 100), at(9, 5000)]);
        released.add(ms(9), vec![at(3, 110)]);
        assert_eq!(released.take(ms(10)), [at(9, 5000)]);
        assert_eq!(released.take(ms(18)), []);
        assert_eq!(released.take(ms(19)), [at(1, 100), at(2, 101), at(3, 110)]);
        assert!(released.runs.is_empty());
    }

    #[test]
    fn no_run_waits_for_ever() {
        let mut released = Released::default();
        for step in 0..6 {
            released.add(ms(step * 5), vec![at(step as u32, step)]);
            assert!(released.take(ms(step * 5)).is_empty());
        }
        assert_eq!(released.take(ms(30)).len(), 6);
    }
}
