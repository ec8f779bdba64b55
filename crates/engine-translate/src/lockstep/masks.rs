//! Which flags count at the end of a piece.

use std::sync::Arc;

use translator::Block;
use translator::native::{Options, flags_defined, flags_needed};
use x86::rflags;

use crate::fetch;
use crate::system::{Core, System};

/// Answers that are kept; a power of two.
const KNOWN: usize = 1 << 12;

/// See the module. An answer costs more than the piece, and is the same each time.
pub(super) struct Masks {
    options: Options,
    known: Vec<Option<Known>>,
}

struct Known {
    block: Arc<Block<System>>,
    done: usize,
    offset: u64,
    flags: u64,
}

impl Masks {
    pub(super) fn new(options: Options) -> Self {
        Self { options, known: (0..KNOWN).map(|_| None).collect() }
    }

    /// The bits of RFLAGS that must be right where `done` instructions of `block` were executed and RIP is `offset`
    /// bytes behind its start.
    pub(super) fn that_count(
        &mut self,
        core: &mut Core,
        block: &Arc<Block<System>>,
        done: usize,
        offset: u64,
    ) -> u64 {
        // Wherever it leads from the block, all flags must be right.
        let offset = offset.min(block.len.into());
        let place = (block.start as usize ^ done << 6) & (KNOWN - 1);
        if let Some(known) = &self.known[place]
            && Arc::ptr_eq(&known.block, block)
            && (known.done, known.offset) == (done, offset)
        {
            return known.flags;
        }
        let mut bytes = vec![0; block.len as usize];
        if fetch::read_code(core, block.start, &mut bytes).is_err() {
            return u64::MAX;
        }
        let needed = flags_needed(&bytes, block.start, offset, self.options);
        let flags = !rflags::STATUS | needed & flags_defined(&bytes, block.start, done);
        self.known[place] = Some(Known { block: Arc::clone(block), done, offset, flags });
        flags
    }
}
