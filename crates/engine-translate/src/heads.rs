//! Which targets are heads of paths, where not everything may be one, and what runs behind them.

use std::collections::{HashMap, HashSet};

use translator::Block;
use translator::paths::{Limits, Path, Policy, Recorder, Start};

use crate::system::System;

/// Heads that are counted at a time; then all start again.
const COUNTED: usize = 1 << 16;

/// What one vCPU knows of heads. Empty where any target may be one.
pub(crate) struct Heads {
    hot: u32,
    limits: Limits,
    /// Everything has code from the first time on.
    pub(crate) blocks: bool,
    /// By physical address: how often a head ran that has no path yet.
    counts: HashMap<u64, u32>,
    /// Heads with a path.
    tails: HashSet<u64>,
    recording: Option<Recorder>,
    /// Where the block that ran last starts, if it was interpreted.
    last: Option<u64>,
}

/// What is to become of a block that is about to run.
#[derive(Debug)]
pub(crate) enum Next {
    /// It is interpreted.
    Interpret,
    /// It runs as code: as the path that it is, or as a block by itself.
    Code,
    /// A path of this physical page was recorded.
    Recorded { page: u64, path: Path },
}

/// How a block was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reached {
    /// From what was interpreted.
    Interpreted,
    /// From code whose head is at this physical address.
    Code(u64),
    /// From code, by an indirect branch or for another reason.
    Elsewhere,
}

impl Heads {
    /// `None`: any target may be a head.
    pub(crate) fn new(policy: &Policy) -> Option<Self> {
        let Start::Heads { count, blocks } = policy.start else { return None };
        Some(Self {
            hot: count,
            limits: policy.limits,
            blocks,
            counts: HashMap::new(),
            tails: HashSet::new(),
            recording: None,
            last: None,
        })
    }

    /// `block` is about to run.
    pub(crate) fn next(&mut self, block: &Block<System>, reached: Reached) -> Next {
        let start = block.start;
        if self.tails.contains(&start) && !block.has_code() {
            // It was written over, or went with all code.
            self.tails.remove(&start);
        }
        let path = self.has_path(block);
        // Code without decoded instructions: their number is not known, and about this.
        let instructions = block.insns.len().max(block.len as usize / 4);
        if let Some(recorder) = &mut self.recording {
            if !path && recorder.add(start, block.len, instructions) {
                return Next::Interpret;
            }
            return self.recording.take().map_or(Next::Interpret, |recorder| {
                let head = recorder.head();
                self.counts.remove(&head);
                self.tails.insert(head);
                Next::Recorded { page: head >> 12, path: recorder.finish() }
            });
        }
        if path {
            self.last = None;
            return Next::Code;
        }
        if self.counts.contains_key(&start) || self.is_head(start, reached) {
            if self.counts.len() >= COUNTED {
                self.counts.clear();
            }
            let count = self.counts.entry(start).or_default();
            *count += 1;
            if *count >= self.hot {
                self.recording = Some(Recorder::new(start, block.len, instructions, self.limits));
                self.last = None;
                return Next::Interpret;
            }
        }
        self.last = (!self.blocks).then_some(start);
        if self.blocks { Next::Code } else { Next::Interpret }
    }

    /// What has run is not one path any more.
    pub(crate) fn interrupt(&mut self) {
        self.recording = None;
        self.last = None;
    }

    /// Whether branches may be led to it: heads are counted outside until they have a path.
    pub(crate) fn may_link(&self, block: &Block<System>) -> bool {
        !self.counts.contains_key(&block.start) || self.has_path(block)
    }

    fn has_path(&self, block: &Block<System>) -> bool {
        // Its length is not that of a run where it has several; another vCPU recorded it.
        let path = || block.is_in_pieces() || self.tails.contains(&block.start);
        block.has_code() && (!self.blocks || path())
    }

    /// A target of a backward branch, or of an exit from a path.
    fn is_head(&self, start: u64, reached: Reached) -> bool {
        match reached {
            Reached::Interpreted => self.last.is_some_and(|last| start <= last),
            Reached::Code(from) => !self.blocks || start <= from || self.tails.contains(&from),
            Reached::Elsewhere => !self.blocks,
        }
    }

    /// Bytes that it takes, by allocation.
    pub(crate) fn bytes(&self) -> usize {
        let counts = self.counts.capacity() * (size_of::<(u64, u32)>() + 1);
        counts + self.tails.capacity() * (size_of::<u64>() + 1)
    }
}

#[cfg(test)]
mod tests {
    use translator::decode::decode_block;
    use translator::{Mode, Width};

    use super::*;

    fn block(start: u64) -> Block<System> {
        let mode = Mode { width: Width::Bits64 };
        Block::new(decode_block(&[0x90, 0x90, 0xeb, 0], mode, 4).insns, start, None)
    }

    #[test]
    fn targets_of_backward_branches_are_counted() {
        let mut heads = Heads::new(&Policy::NET.with_hot(2)).expect("heads");
        let (first, second) = (block(0x1000), block(0x1004));
        let mut run = |block: &Block<System>| heads.next(block, Reached::Interpreted);
        assert!(matches!(run(&first), Next::Interpret));
        for _ in 0..3 {
            assert!(matches!(run(&second), Next::Interpret));
            match run(&first) {
                Next::Recorded { page, path } => {
                    assert_eq!((page, path.head(), path.len()), (1, 0, 8));
                    return;
                }
                next => assert!(matches!(next, Next::Interpret)),
            }
        }
        panic!("not recorded");
    }

    #[test]
    fn what_was_interrupted_is_dropped() {
        let mut heads = Heads::new(&Policy::NET.with_hot(1)).expect("heads");
        assert!(matches!(heads.next(&block(0x2000), Reached::Elsewhere), Next::Interpret));
        heads.interrupt();
        let next = heads.next(&block(0x5000), Reached::Interpreted);
        assert!(matches!(next, Next::Interpret), "{next:?}");
    }
}
