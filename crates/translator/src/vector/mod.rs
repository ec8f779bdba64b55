//! SSE, AVX and x87: the host's own instruction, run from a generated thunk on loaded and stored state.

use crate::insn::Insn;
use crate::machine::Machine;

/// The executable form of a vector or x87 instruction; `None` where there is none.
pub(crate) fn select<M: Machine>(_instr: &iced_x86::Instruction) -> Option<Insn<M>> {
    None
}
