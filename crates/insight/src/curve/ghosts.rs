//! What more memory would have kept: blocks that were evicted, the latest first.
//!
//! A block that is read again at depth d of this list would have been a hit with d + 1 pages more than there are.

use memory::DiskBlock;

use super::shards::hash;
use super::{DistanceHistogram, MissRatioCurve, Stack};

/// Blocks in mind at most: where more are asked for, a part of all blocks stands for the rest, by hash.
const IN_MIND: usize = 1 << 14;

/// Evicted blocks in LRU order, at most so many, and at which depth they were wanted again.
///
/// Of more than 16,384 blocks, one in two, four, eight... is followed, and counts for as many: that part of all depths is
/// the depth among that part of all blocks (SHARDS: Waldspurger, Park, Garthwaite and Ahmad, FAST 2015).
#[derive(Clone, Debug)]
pub struct Ghosts {
    /// Of the blocks that are followed.
    most: usize,
    /// A power of two.
    one_in: u64,
    stack: Stack<DiskBlock>,
    histogram: DistanceHistogram,
}

impl Ghosts {
    /// Looks back on `most` blocks; the curve has at most `steps` steps.
    #[must_use]
    pub fn new(most: usize, steps: usize) -> Self {
        let one_in = most.div_ceil(IN_MIND).max(1).next_power_of_two();
        Self {
            most: most.div_ceil(one_in).max(1),
            one_in: one_in as u64,
            ..Self::of_all(most, steps)
        }
    }

    /// The same with every block followed, however many they are.
    #[must_use]
    pub fn of_all(most: usize, steps: usize) -> Self {
        let most = most.max(1);
        let histogram = DistanceHistogram::new(most as u64, steps);
        Self { most, one_in: 1, stack: Stack::default(), histogram }
    }

    /// One in so many blocks is followed.
    #[must_use]
    pub fn one_in(&self) -> u64 {
        self.one_in
    }

    fn follows(&self, DiskBlock { disk, block }: DiskBlock) -> bool {
        self.one_in == 1 || hash(u64::from(disk) << 56 ^ block) & (self.one_in - 1) == 0
    }

    /// `block` left the guest's memory.
    pub fn evicted(&mut self, block: DiskBlock) {
        if !self.follows(block) {
            return;
        }
        self.stack.reference(block);
        self.stack.keep_latest(self.most);
    }

    /// `block` came into the guest's memory. Answers at which depth it was, if it had been evicted and is followed.
    pub fn inserted(&mut self, block: DiskBlock) -> Option<u64> {
        if !self.follows(block) {
            return None;
        }
        let depth = self.stack.remove(block).map(|depth| depth * self.one_in);
        self.histogram.note(depth, self.one_in as f64);
        depth
    }

    /// `block` is not wanted any more.
    pub fn dropped(&mut self, block: DiskBlock) {
        if !self.follows(block) {
            return;
        }
        self.stack.remove(block);
    }

    /// How many blocks it has in mind.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stack.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stack.is_empty()
    }

    /// Which part of today's misses would be left with so many more pages. `None` before the first miss.
    #[must_use]
    pub fn curve(&self) -> Option<MissRatioCurve> {
        self.histogram.curve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(block: u64) -> DiskBlock {
        DiskBlock { disk: 0, block }
    }

    /// Reads `blocks` round and round with LRU memory for `pages` of them.
    fn rounds(blocks: u64, pages: usize) -> Ghosts {
        let mut ghosts = Ghosts::new(4096, 4096);
        let mut memory = std::collections::VecDeque::new();
        for at in (0..20).flat_map(|_| 0..blocks) {
            if memory.contains(&at) {
                continue;
            }
            ghosts.inserted(block(at));
            memory.push_back(at);
            if memory.len() > pages {
                ghosts.evicted(block(memory.pop_front().expect("not empty")));
            }
        }
        ghosts
    }

    #[test]
    fn a_loop_fits_with_as_much_more_as_it_lacks() {
        let curve = rounds(100, 60).curve().expect("misses");
        assert!(curve.miss_ratio(39) > 0.99, "{}", curve.miss_ratio(39));
        // The first round misses whatever there is.
        assert!((curve.miss_ratio(40) - 1.0 / 20.0).abs() < 1e-9);
    }

    #[test]
    fn a_part_of_the_blocks_tells_the_curve() {
        let mut ghosts = Ghosts::new(1 << 17, 256);
        assert_eq!(ghosts.one_in(), 8);
        // Round and round through 60,000 blocks: each is as deep as all others together.
        for at in (0..4).flat_map(|_| 0..60_000) {
            ghosts.inserted(block(at));
            ghosts.evicted(block(at));
        }
        assert!(ghosts.len() < 10_000);
        let curve = ghosts.curve().expect("misses");
        assert!(curve.miss_ratio(56_000) > 0.99, "{}", curve.miss_ratio(56_000));
        assert!((curve.miss_ratio(64_000) - 0.25).abs() < 0.01, "{}", curve.miss_ratio(64_000));
    }

    #[test]
    fn what_is_dropped_is_not_missed() {
        let mut ghosts = Ghosts::new(16, 16);
        ghosts.evicted(block(1));
        ghosts.evicted(block(2));
        ghosts.dropped(block(2));
        assert_eq!((ghosts.inserted(block(2)), ghosts.inserted(block(1))), (None, Some(0)));
    }

    #[test]
    fn it_does_not_grow() {
        let mut ghosts = Ghosts::new(64, 16);
        (0..10_000).for_each(|at| ghosts.evicted(block(at)));
        assert_eq!(ghosts.len(), 64);
        assert_eq!(ghosts.inserted(block(9_999)), Some(0));
        assert_eq!(ghosts.inserted(block(9_900)), None);
    }
}
