//! Which flags count at the end of a piece.

use std::sync::Arc;

use memory::FRAME_SIZE;
use translator::native::{Options, flags_defined, flags_needed};
use translator::paths::Source;
use x86::rflags;

use super::piece::{Piece, offset};
use crate::fetch;
use crate::system::Core;

/// Answers that are kept; a power of two.
const KNOWN: usize = 1 << 12;

/// See the module. An answer costs more than the piece, and is the same each time.
pub(super) struct Masks {
    options: Options,
    /// As the policy of paths has it.
    look_ahead: usize,
    known: Vec<Option<Known>>,
}

struct Known {
    piece: Arc<Piece>,
    done: usize,
    offset: Option<u32>,
    flags: u64,
}

impl Masks {
    pub(super) fn new(options: Options, look_ahead: usize) -> Self {
        Self { options, look_ahead, known: (0..KNOWN).map(|_| None).collect() }
    }

    /// The bits of RFLAGS that must be right where `done` instructions of `piece` were executed from RIP `head` on.
    pub(super) fn that_count(
        &mut self,
        core: &mut Core,
        piece: &Arc<Piece>,
        done: usize,
        head: u64,
    ) -> u64 {
        let (start, offset) = (piece.block.start, offset(head, core.cpu.rip()));
        let hash = start as usize ^ done << 6 ^ offset.map_or(0, |offset| offset as usize * 37);
        let place = hash & (KNOWN - 1);
        if let Some(known) = &self.known[place]
            && Arc::ptr_eq(&known.piece, piece)
            && (known.done, known.offset) == (done, offset)
        {
            return known.flags;
        }
        let mut bytes = [0; FRAME_SIZE];
        if fetch::read_code(core, start & !0xfff, &mut bytes).is_err() {
            return u64::MAX;
        }
        let (path, source) = (&piece.path, Source { bytes: &bytes, first: 0 });
        let needed = flags_needed(path, source, offset, self.options, self.look_ahead);
        let flags = !rflags::STATUS | needed & flags_defined(path, source, done);
        self.known[place] = Some(Known { piece: Arc::clone(piece), done, offset, flags });
        flags
    }
}
