//! PUSH, POP and frames.

use iced_x86::{Instruction, Mnemonic as N};

use super::{Kind, kind, with_operands};
use crate::decode::operands::is_64;
use crate::insn::{Handler, Insn};
use crate::interp::operand::{Imm, Mem, Src};
use crate::interp::stack::{Legacy, Long, enter, leave, pop, pop_memory, popa, push, pusha};
use crate::machine::Machine;

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let mut insn = with_operands(instr, handler(instr)?);
    match instr.mnemonic() {
        N::Push => insn.src = insn.dst,
        N::Enter => {
            insn.imm = instr.immediate(0);
            insn.aux = instr.immediate(1) as u32 & 31;
        }
        _ => {}
    }
    Some(insn)
}

/// Evaluates `$body` for the operand's type and the stack's width.
macro_rules! by_stack {
    ($instr:expr, $T:ident, $W:ident => $body:expr) => {
        match (is_64($instr), slot_size($instr)) {
            (true, 2) => {
                type $T = u16;
                type $W = Long;
                $body
            }
            (true, _) => {
                type $T = u64;
                type $W = Long;
                $body
            }
            (false, 2) => {
                type $T = u16;
                type $W = Legacy;
                $body
            }
            (false, _) => {
                type $T = u32;
                type $W = Legacy;
                $body
            }
        }
    };
}

fn handler<M: Machine>(instr: &Instruction) -> Option<Handler<M>> {
    Some(match (instr.mnemonic(), instr.op_count() > 0) {
        (N::Push, _) => match kind(instr, 0) {
            Kind::Register => by_stack!(instr, T, W => push::<M, T, W, Src>),
            Kind::Memory => by_stack!(instr, T, W => push::<M, T, W, Mem>),
            _ => by_stack!(instr, T, W => push::<M, T, W, Imm>),
        },
        (N::Pop, _) => match kind(instr, 0) {
            Kind::Register => by_stack!(instr, T, W => pop::<M, T, W>),
            _ => by_stack!(instr, T, W => pop_memory::<M, T, W>),
        },
        (N::Enter, _) => by_stack!(instr, T, W => enter::<M, T, W>),
        (N::Leave, _) => by_stack!(instr, T, W => leave::<M, T, W>),
        (N::Pusha, _) => pusha::<M, u16>,
        (N::Pushad, _) => pusha::<M, u32>,
        (N::Popa, _) => popa::<M, u16>,
        (N::Popad, _) => popa::<M, u32>,
        _ => return None,
    })
}

/// Bytes of a stack slot.
fn slot_size(instr: &Instruction) -> usize {
    match instr.stack_pointer_increment().unsigned_abs() as usize {
        _ if instr.mnemonic() == N::Enter || instr.mnemonic() == N::Leave => frame_size(instr),
        size => size,
    }
}

/// Bytes of the saved frame pointer; iced gives no increment for what depends on RBP.
fn frame_size(instr: &Instruction) -> usize {
    use iced_x86::Code;
    match instr.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved => 4,
        _ => 8,
    }
}
