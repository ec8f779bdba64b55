//! Blocks that the guest has evicted and that are still to be read.

use std::collections::{HashSet, VecDeque};

use memory::DiskBlock;

/// So many at most: 256 MiB that a guest evicts faster than the disk is read.
const MOST: usize = 1 << 16;

/// In the order of their evictions, each once.
#[derive(Default)]
pub(super) struct Candidates {
    /// With some that are no longer candidates, or twice. At most [`MOST`].
    queue: VecDeque<DiskBlock>,
    /// Those that are to be inserted once they are read. All of `queue` but what was withdrawn, and what is being read.
    waiting: HashSet<DiskBlock>,
}

impl Candidates {
    /// False if there are too many.
    pub(super) fn add(&mut self, block: DiskBlock) -> bool {
        if self.waiting.contains(&block) {
            return true;
        }
        if self.queue.len() >= MOST {
            return false;
        }
        self.queue.push_back(block);
        self.waiting.insert(block);
        true
    }

    /// It is none any more. Whether it was one.
    pub(super) fn withdraw(&mut self, block: DiskBlock) -> bool {
        self.waiting.remove(&block)
    }

    /// Those of which `is_wanted` says no; how many there were.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(DiskBlock) -> bool) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|&block| is_wanted(block));
        (before - self.waiting.len()) as u64
    }

    /// The next ones, at most `most`, to be read now. They stay candidates until they are withdrawn.
    pub(super) fn take(&mut self, most: usize) -> Vec<DiskBlock> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(block) = self.queue.pop_front()
        {
            if self.waiting.contains(&block) {
                taken.push(block);
            }
        }
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(block: u64) -> DiskBlock {
        DiskBlock { disk: 1, block }
    }

    #[test]
    fn what_is_withdrawn_is_not_taken() {
        let mut candidates = Candidates::default();
        for at in [3, 1, 2, 1] {
            assert!(candidates.add(block(at)));
        }
        assert!(candidates.withdraw(block(1)) && !candidates.withdraw(block(1)));
        assert_eq!(candidates.take(1), [block(3)]);
        // It is, until it is inserted.
        assert!(candidates.withdraw(block(3)));
        assert_eq!(candidates.take(9), [block(2)]);
        assert!(candidates.is_empty());
        assert_eq!((candidates.retain(|_| false), candidates.len()), (1, 0));
    }

    #[test]
    fn there_are_not_too_many() {
        let mut candidates = Candidates::default();
        assert!((0..MOST as u64).all(|at| candidates.add(block(at))));
        assert!(!candidates.add(block(MOST as u64)) && candidates.add(block(7)));
        assert_eq!(candidates.len(), MOST);
    }
}
