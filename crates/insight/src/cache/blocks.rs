//! Which frame has which block: both ways, in 11 bytes a frame.

use memory::{DiskBlock, Frame};

/// A block, packed: its disk and one more than its number, below 2^40; or nothing.
type Packed = [u8; 6];
const NONE: Packed = [0; 6];
const EMPTY: u32 = 0;

const DISK_SHIFT: u32 = 40;
/// Of 4 KiB: 4 PiB.
const BLOCK_MAX: u64 = (1 << DISK_SHIFT) - 2;

/// The location of each frame, and the frame of each block that is some frame's location.
#[derive(Debug)]
pub(super) struct Blocks {
    /// By frame: the block, or `NONE`.
    locations: Box<[Packed]>,
    /// By the block's hash: one more than the number of its frame. A quarter more than frames, so that a fifth are empty.
    frames: Box<[u32]>,
}

impl Blocks {
    pub(super) fn new(frames: u32) -> Self {
        let places = frames as usize + frames as usize / 4 + 2;
        Self { locations: vec![NONE; frames as usize].into(), frames: vec![EMPTY; places].into() }
    }

    /// Whether the frame can have the block.
    pub(super) fn can_have(&self, frame: Frame, block: DiskBlock) -> bool {
        frame.index() < self.locations.len() && block.block <= BLOCK_MAX
    }

    pub(super) fn location(&self, frame: Frame) -> Option<DiskBlock> {
        self.locations.get(frame.index()).copied().and_then(unpacked)
    }

    /// The frame whose location is `block`.
    pub(super) fn frame(&self, block: DiskBlock) -> Option<Frame> {
        let found = self.frames[self.place(packed(block)?)];
        (found != EMPTY).then(|| Frame(found - 1))
    }

    /// `frame` has `block`, and no other frame has it.
    pub(super) fn put(&mut self, frame: Frame, block: DiskBlock) {
        let Some(packed) = packed(block).filter(|_| self.can_have(frame, block)) else { return };
        self.remove(frame);
        let mut place = self.place(packed);
        if self.frames[place] != EMPTY {
            self.remove(Frame(self.frames[place] - 1));
            place = self.place(packed);
        }
        self.locations[frame.index()] = packed;
        self.frames[place] = frame.0 + 1;
    }

    /// `frame` has no block. Answers the one that it had.
    pub(super) fn remove(&mut self, frame: Frame) -> Option<DiskBlock> {
        let block = self.location(frame)?;
        let mut hole = self.place(self.locations[frame.index()]);
        self.locations[frame.index()] = NONE;
        self.frames[hole] = EMPTY;
        // Whoever was put behind it because it stood here moves up.
        let mut at = hole;
        loop {
            at = self.next(at);
            let moved = self.frames[at];
            if moved == EMPTY {
                return Some(block);
            }
            let home = self.home(self.locations[moved as usize - 1]);
            if self.behind(home, at) >= self.behind(hole, at) {
                self.frames[hole] = moved;
                self.frames[at] = EMPTY;
                hole = at;
            }
        }
    }

    /// Where `block` is, or would be put.
    fn place(&self, block: Packed) -> usize {
        let mut at = self.home(block);
        loop {
            let found = self.frames[at];
            if found == EMPTY || self.locations[found as usize - 1] == block {
                return at;
            }
            at = self.next(at);
        }
    }

    fn home(&self, block: Packed) -> usize {
        // Fibonacci hashing: 2^64 divided by the golden ratio; its upper half as a fraction of all places.
        let mixed = whole(block).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((mixed * self.frames.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.frames.len() { 0 } else { at + 1 }
    }

    /// How far `at` is behind `from`, going round.
    fn behind(&self, from: usize, at: usize) -> usize {
        if at >= from { at - from } else { at + self.frames.len() - from }
    }
}

/// `None`: a number beyond what can be had.
fn packed(block: DiskBlock) -> Option<Packed> {
    let number = Some(block.block).filter(|&number| number <= BLOCK_MAX)? + 1;
    let [a, b, c, d, e, f, ..] = (u64::from(block.disk) << DISK_SHIFT | number).to_le_bytes();
    Some([a, b, c, d, e, f])
}

fn whole([a, b, c, d, e, f]: Packed) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn unpacked(packed: Packed) -> Option<DiskBlock> {
    let packed = whole(packed);
    let block = (packed & ((1 << DISK_SHIFT) - 1)).checked_sub(1)?;
    Some(DiskBlock { disk: (packed >> DISK_SHIFT) as u8, block })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn check(blocks: &Blocks, model: &HashMap<Frame, DiskBlock>) {
        for number in 0..16 {
            let frame = Frame(number);
            assert_eq!(blocks.location(frame), model.get(&frame).copied());
        }
        for (&frame, &block) in model {
            assert_eq!(blocks.frame(block), Some(frame));
        }
    }

    proptest! {
        #[test]
        fn both_ways_agree(steps in proptest::collection::vec((0u32..16, 0u64..24, any::<bool>()), 1..200)) {
            let mut blocks = Blocks::new(16);
            let mut model = HashMap::new();
            for (number, block, put) in steps {
                let (frame, block) = (Frame(number), DiskBlock { disk: (block % 3) as u8, block });
                if put {
                    blocks.put(frame, block);
                    model.retain(|_, other| *other != block);
                    model.insert(frame, block);
                } else {
                    prop_assert_eq!(blocks.remove(frame), model.remove(&frame));
                }
                check(&blocks, &model);
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let mut blocks = Blocks::new(4);
        let block = DiskBlock { disk: 255, block: BLOCK_MAX };
        assert_eq!((blocks.frame(block), blocks.location(Frame(9))), (None, None));
        blocks.put(Frame(9), block);
        assert_eq!(blocks.frame(block), None);
        blocks.put(Frame(3), block);
        blocks.put(Frame(2), DiskBlock { block: BLOCK_MAX + 1, ..block });
        assert_eq!(blocks.location(Frame(2)), None);
        assert_eq!((blocks.frame(block), blocks.location(Frame(3))), (Some(Frame(3)), Some(block)));
    }
}
