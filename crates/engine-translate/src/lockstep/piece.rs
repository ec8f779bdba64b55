//! What both execute: the instructions of a path, in the order in which its code has them.

use std::sync::Arc;

use translator::decode::{self, decode_block};
use translator::paths::{Path, Source};
use translator::{Block, Insn, InsnFlags, Mode, Outcome, Width};

use crate::system::{Core, System};

/// See the module.
pub(super) struct Piece {
    pub(super) block: Arc<Block<System>>,
    pub(super) path: Path,
    runs: Vec<Run>,
}

/// Instructions that follow each other, of which only the last may branch.
struct Run {
    /// Of the first one in the page.
    offset: u32,
    insns: Vec<Insn<System>>,
}

impl Piece {
    /// `block` has the code of the first `count` instructions of `path`, which lies in the page `bytes`.
    pub(super) fn new(block: Arc<Block<System>>, path: Path, bytes: &[u8], count: usize) -> Self {
        let source = Source { bytes, first: 0 };
        let (mut runs, mut left) = (Vec::new(), count);
        for fragment in &path.fragments {
            let mut offset = u32::from(fragment.offset);
            while offset < fragment.end() && left > 0 {
                let mode = Mode { width: Width::Bits64 };
                let rest = source.part(offset, fragment.end());
                let decoded = decode_block::<System>(rest, mode, decode::BLOCK_LIMIT.min(left));
                if decoded.insns.is_empty() {
                    break;
                }
                left -= decoded.insns.len();
                runs.push(Run { offset, insns: decoded.insns });
                offset += decoded.len as u32;
            }
        }
        Self { block, path, runs }
    }

    /// Instructions of it.
    pub(super) fn len(&self) -> usize {
        self.runs.iter().map(|run| run.insns.len()).sum()
    }

    /// The interpreter executes at most `limit` of them, from the first on, until RIP leaves the path.
    pub(super) fn interpret(&self, core: &mut Core, limit: usize) -> Outcome {
        let page = core.cpu.rip() & !0xfff;
        let mut left = limit;
        for run in &self.runs {
            if left == 0 || core.cpu.rip() != page + u64::from(run.offset) {
                break;
            }
            let count = run.insns.len().min(left);
            let all = core.cpu.retired + count as u64;
            let outcome = core.run_block(&run.insns[..count], false);
            if outcome != Outcome::Done || core.cpu.retired != all {
                return outcome;
            }
            left -= count;
        }
        Outcome::Done
    }

    /// Whether the first `count` instructions are of more than one run.
    pub(super) fn joins(&self, count: usize) -> bool {
        self.runs.first().is_some_and(|run| run.insns.len() < count)
    }

    /// How many instructions are before the one at RIP, if that is one of it. `head`: RIP of the first.
    pub(super) fn before(&self, head: u64, rip: u64) -> Option<usize> {
        let offset = offset(head, rip)?;
        self.insns().position(|(at, _)| at == offset)
    }

    /// Whether the instruction at RIP accesses the stack segment.
    pub(super) fn uses_stack(&self, head: u64, rip: u64) -> bool {
        let at_rip = |&(at, _): &(u32, _)| offset(head, rip) == Some(at);
        self.insns().find(at_rip).is_some_and(|(_, insn)| insn.flags & InsnFlags::STACK != 0)
    }

    /// With their offsets in the page.
    fn insns(&self) -> impl Iterator<Item = (u32, &Insn<System>)> {
        self.runs.iter().flat_map(|run| {
            run.insns.iter().scan(run.offset, |next, insn| {
                let at = *next;
                *next += u32::from(insn.len);
                Some((at, insn))
            })
        })
    }
}

/// Of RIP in the page that `head` is in, if it is in that.
pub(super) fn offset(head: u64, rip: u64) -> Option<u32> {
    (head >> 12 == rip >> 12).then_some((rip & 0xfff) as u32)
}

#[cfg(test)]
mod tests {
    use translator::paths::Fragment;

    use super::*;

    /// `nop; jne 0x20; nop` at 0x10, and there `push rax; jmp 0x30; nop`.
    fn piece(count: usize) -> Piece {
        let mut page = vec![0xcc; 4096];
        page[0x10..0x14].copy_from_slice(&[0x90, 0x75, 0x0d, 0x90]);
        page[0x20..0x24].copy_from_slice(&[0x50, 0xeb, 0x0d, 0x90]);
        let fragments = [(0x10, 4), (0x20, 3)].map(|(offset, len)| Fragment { offset, len });
        let block = Block::new(Vec::new(), 0x5010, None);
        Piece::new(Arc::new(block), Path { fragments: fragments.into() }, &page, count)
    }

    #[test]
    fn a_path_is_made_of_runs_that_end_with_branches() {
        let piece = piece(9);
        let runs: Vec<_> = piece.runs.iter().map(|run| (run.offset, run.insns.len())).collect();
        assert_eq!(runs, [(0x10, 2), (0x13, 1), (0x20, 2)]);
        assert!(!piece.joins(2) && piece.joins(3));
        let before = |rip| piece.before(0x7010, rip);
        assert_eq!([0x7010, 0x7013, 0x7021].map(before), [Some(0), Some(2), Some(4)]);
        assert_eq!([0x7012, 0x7023, 0x8010].map(before), [None; 3]);
        assert!(piece.uses_stack(0x7010, 0x7020) && !piece.uses_stack(0x7010, 0x7021));
    }

    #[test]
    fn it_goes_no_further_than_its_code() {
        assert_eq!((piece(4).len(), piece(4).before(0x7010, 0x7021)), (4, None));
    }
}
