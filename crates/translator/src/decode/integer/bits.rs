//! Bit instructions, BMI1, BMI2, CRC32.

use iced_x86::{Instruction, Mnemonic as N};

use super::{Kind, kind, size, sized, sized_wide, with_operands};
use crate::decode::operands::operand_slot;
use crate::insn::{Handler, Insn};
use crate::interp::bits::{
    self, BitOp, Complement, Reset, Set, Test, bit_memory, bit_register, count_zeros, popcnt, scan,
};
use crate::interp::muldiv;
use crate::interp::operand::{Imm, Locked, Mem, Src};
use crate::interp::shift::{Sar, Shl, Shr, rorx, shift_quiet};
use crate::machine::Machine;

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let handler = match instr.mnemonic() {
        N::Bt => bit::<M, Test>(instr),
        N::Bts => bit::<M, Set>(instr),
        N::Btr => bit::<M, Reset>(instr),
        N::Btc => bit::<M, Complement>(instr),
        N::Crc32 => match kind(instr, 1) {
            Kind::Register => sized!(size(instr, 1), T => bits::crc32::<M, T, Src>),
            _ => sized!(size(instr, 1), T => bits::crc32::<M, T, Mem>),
        },
        _ => return scans(instr).or_else(|| bmi(instr)),
    };
    Some(with_operands(instr, handler))
}

fn bit<M: Machine, O: BitOp>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 1)) {
        (Kind::Register, Kind::Register) => sized_wide!(size, T => bit_register::<M, T, O, Src>),
        (Kind::Register, _) => sized_wide!(size, T => bit_register::<M, T, O, Imm>),
        (_, Kind::Register) if instr.has_lock_prefix() => {
            sized_wide!(size, T => bit_memory::<M, T, O, Src, Locked>)
        }
        (_, Kind::Register) => sized_wide!(size, T => bit_memory::<M, T, O, Src, Mem>),
        _ if instr.has_lock_prefix() => {
            sized_wide!(size, T => bit_memory::<M, T, O, Imm, Locked>)
        }
        _ => sized_wide!(size, T => bit_memory::<M, T, O, Imm, Mem>),
    }
}

/// Evaluates `$body` for the operand's type and the shape of operand `$op`.
macro_rules! by_source {
    ($instr:expr, $op:expr, $T:ident, $S:ident => $body:expr) => {
        if kind($instr, $op) == Kind::Register {
            type $S = Src;
            sized_wide!(size($instr, 0), $T => $body)
        } else {
            type $S = Mem;
            sized_wide!(size($instr, 0), $T => $body)
        }
    };
}

fn scans<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let handler: Handler<M> = match instr.mnemonic() {
        N::Bsf => by_source!(instr, 1, T, S => scan::<M, T, S, false>),
        N::Bsr => by_source!(instr, 1, T, S => scan::<M, T, S, true>),
        N::Tzcnt => by_source!(instr, 1, T, S => count_zeros::<M, T, S, false>),
        N::Lzcnt => by_source!(instr, 1, T, S => count_zeros::<M, T, S, true>),
        N::Popcnt => by_source!(instr, 1, T, S => popcnt::<M, T, S>),
        _ => return None,
    };
    Some(with_operands(instr, handler))
}

/// `src`: the r/m operand; `aux`: the other register source, or MULX's first destination.
fn bmi<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let (handler, source, third): (Handler<M>, u32, u32) = match instr.mnemonic() {
        N::Andn => (by_source!(instr, 2, T, S => bits::andn::<M, T, S>), 2, 1),
        N::Pdep => (by_source!(instr, 2, T, S => bits::pdep::<M, T, S>), 2, 1),
        N::Pext => (by_source!(instr, 2, T, S => bits::pext::<M, T, S>), 2, 1),
        // AMD's XOP form has an immediate instead.
        N::Bextr if kind(instr, 2) == Kind::Immediate => return None,
        N::Bextr => (by_source!(instr, 1, T, S => bits::bextr::<M, T, S>), 1, 2),
        N::Bzhi => (by_source!(instr, 1, T, S => bits::bzhi::<M, T, S>), 1, 2),
        N::Sarx => (by_source!(instr, 1, T, S => shift_quiet::<M, T, Sar, S>), 1, 2),
        N::Shlx => (by_source!(instr, 1, T, S => shift_quiet::<M, T, Shl, S>), 1, 2),
        N::Shrx => (by_source!(instr, 1, T, S => shift_quiet::<M, T, Shr, S>), 1, 2),
        N::Rorx => (by_source!(instr, 1, T, S => rorx::<M, T, S>), 1, 1),
        N::Blsi => (by_source!(instr, 1, T, S => bits::blsi::<M, T, S>), 1, 1),
        N::Blsr => (by_source!(instr, 1, T, S => bits::blsr::<M, T, S>), 1, 1),
        N::Blsmsk => (by_source!(instr, 1, T, S => bits::blsmsk::<M, T, S>), 1, 1),
        N::Mulx => (by_source!(instr, 2, T, S => muldiv::mulx::<M, T, S>), 2, 0),
        _ => return None,
    };
    let mut insn = with_operands(instr, handler);
    insn.src = operand_slot(instr, source);
    insn.aux = operand_slot(instr, third).into();
    if instr.mnemonic() == N::Mulx {
        insn.dst = operand_slot(instr, 1);
    }
    Some(insn)
}
