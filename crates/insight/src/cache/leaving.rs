//! Blocks that have left memory, and of which it is not decided yet whether somebody may want them again.
//!
//! XFS gives up a deleted file's pages at once, and its blocks somewhat later: a worker of the kernel does that, which is
//! called a tick after the last user has gone (`xfs_inodegc_queue`). Frames are used again before.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use memory::{DiskBlock, Frame};

/// How long it takes, about: a tick of 4 ms, and the work.
const REST: Duration = Duration::from_millis(20);

/// In the order in which they left.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    due: VecDeque<(Duration, DiskBlock)>,
    /// Where each was, and when it is due.
    frames: HashMap<DiskBlock, (Frame, Duration)>,
}

impl Leaving {
    /// `block` is no longer in `frame`.
    pub(super) fn add(&mut self, at: Duration, frame: Frame, block: DiskBlock) {
        let due = at.saturating_add(REST);
        self.due.push_back((due, block));
        self.frames.insert(block, (frame, due));
    }

    /// It is decided: the frame that had `block`, if that was open.
    pub(super) fn remove(&mut self, block: DiskBlock) -> Option<Frame> {
        self.frames.remove(&block).map(|(frame, _)| frame)
    }

    /// Those of `count` blocks from `first` on.
    pub(super) fn inside(&self, first: DiskBlock, count: u64) -> Vec<DiskBlock> {
        let inside = |block: &&DiskBlock| {
            block.disk == first.disk
                && block.block.checked_sub(first.block).is_some_and(|n| n < count)
        };
        self.frames.keys().filter(inside).copied().collect()
    }

    /// Those of which it is decided now.
    pub(super) fn take(&mut self, now: Duration) -> Vec<(Frame, DiskBlock)> {
        let mut taken = Vec::new();
        while let Some((due, block)) = self.due.pop_front_if(|(due, _)| *due <= now) {
            // It may have left again since, later.
            if self.frames.get(&block).is_some_and(|(_, of)| *of == due) {
                taken.extend(self.remove(block).map(|frame| (frame, block)));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_wait_until_they_are_due_or_decided() {
        let ms = Duration::from_millis;
        let block = |block| DiskBlock { disk: 1, block };
        let mut leaving = Leaving::default();
        for n in 0..4 {
            leaving.add(ms(n), Frame(n as u32), block(n));
        }
        assert_eq!(leaving.remove(block(1)), Some(Frame(1)));
        assert_eq!(leaving.remove(block(1)), None);
        assert_eq!(leaving.take(ms(19)), []);
        assert_eq!(leaving.take(ms(20)), [(Frame(0), block(0))]);
        let mut inside = leaving.inside(block(2), 2);
        inside.sort_by_key(|block| block.block);
        assert_eq!(inside, [block(2), block(3)]);
        assert!(leaving.inside(block(4), u64::MAX).is_empty());
        assert!(leaving.inside(DiskBlock { disk: 2, block: 0 }, 9).is_empty());
        // It came and left again.
        assert_eq!(leaving.remove(block(2)), Some(Frame(2)));
        leaving.add(ms(10), Frame(9), block(2));
        assert_eq!(leaving.take(ms(23)), [(Frame(3), block(3))]);
        assert_eq!(leaving.take(ms(30)), [(Frame(9), block(2))]);
        assert!(leaving.due.is_empty() && leaving.frames.is_empty());
    }
}
