//! Selects handlers for integer instructions: by mnemonic, then by operand size and shape.

mod arith;
mod bits;
mod branch;
mod moves;
mod stack;

use iced_x86::{Instruction, Mnemonic as N, OpKind};

use super::operands::{blank, operand_slot};
use crate::insn::{Handler, Insn};
use crate::interp::control;
use crate::machine::Machine;

/// Evaluates `$body`, a handler, with `$T` standing for the integer of `$size` bytes.
macro_rules! sized {
    ($size:expr, $T:ident => $body:expr) => {
        match $size {
            1 => {
                type $T = u8;
                $body
            }
            2 => {
                type $T = u16;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            _ => {
                type $T = u64;
                $body
            }
        }
    };
}

/// As `sized`, for instructions without an 8-bit form.
macro_rules! sized_wide {
    ($size:expr, $T:ident => $body:expr) => {
        match $size {
            2 => {
                type $T = u16;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            _ => {
                type $T = u64;
                $body
            }
        }
    };
}

/// Evaluates `$body` with the constant `$CC` standing for the condition's number.
macro_rules! by_condition {
    ($cc:expr, $CC:ident => $body:expr) => {
        by_condition!(@ $cc, $CC, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $cc:expr, $CC:ident, $body:expr, $($n:literal)*) => {
        match $cc {
            $($n => {
                const $CC: u8 = $n;
                $body
            })*
            _ => {
                const $CC: u8 = 15;
                $body
            }
        }
    };
}

use {by_condition, sized, sized_wide};

/// The instruction in executable form; `None` where it is not an integer instruction.
pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    arith::select(instr)
        .or_else(|| moves::select(instr))
        .or_else(|| branch::select(instr))
        .or_else(|| stack::select(instr))
        .or_else(|| bits::select(instr))
        .or_else(|| hints_and_flags(instr))
}

/// An instruction longer than 15 bytes: #GP(0).
pub(super) fn too_long<M: Machine>(instr: &Instruction) -> Insn<M> {
    blank(instr, control::too_long)
}

fn hints_and_flags<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let flag = |bit, value| {
        let mut insn = blank(instr, control::assign_flag);
        insn.imm = bit;
        insn.aux = value;
        insn
    };
    let handler: Handler<M> = match instr.mnemonic() {
        N::Clc => return Some(flag(control::CARRY, 0)),
        N::Stc => return Some(flag(control::CARRY, 1)),
        N::Cld => return Some(flag(control::DIRECTION, 0)),
        N::Std => return Some(flag(control::DIRECTION, 1)),
        N::Cmc => control::cmc,
        N::Lahf => control::lahf,
        N::Sahf => control::sahf,
        N::Nop | N::Reservednop | N::Cldemote => control::nop,
        N::Pause => control::pause,
        N::Lfence | N::Mfence | N::Sfence => control::full_fence,
        N::Clflush | N::Clflushopt | N::Clwb => crate::interp::moves::touch,
        _ => return None,
    };
    Some(blank(instr, handler))
}

/// What an operand is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Register,
    /// ModRM or moffs.
    Memory,
    Immediate,
    /// A branch target, or the memory operand of a string instruction.
    Other,
}

fn kind(instr: &Instruction, op: u32) -> Kind {
    match instr.op_kind(op) {
        OpKind::Register => Kind::Register,
        OpKind::Memory => Kind::Memory,
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Kind::Immediate,
        _ => Kind::Other,
    }
}

/// Bytes of operand `op`.
fn size(instr: &Instruction, op: u32) -> usize {
    match kind(instr, op) {
        Kind::Register => instr.op_register(op).size(),
        _ => instr.memory_size().size(),
    }
}

/// An instruction with operand 0 in `dst` and operand 1 in `src` where they are registers, and the last
/// operand in `imm` where it is an immediate.
fn with_operands<M: Machine>(instr: &Instruction, handler: Handler<M>) -> Insn<M> {
    let mut insn = blank(instr, handler);
    let count = instr.op_count();
    if count > 0 {
        insn.dst = operand_slot(instr, 0);
        if kind(instr, count - 1) == Kind::Immediate {
            insn.imm = instr.immediate(count - 1);
        }
    }
    if count > 1 {
        insn.src = operand_slot(instr, 1);
    }
    insn
}
