//! Addition, subtraction, logic, shifts, multiplication, division, decimal adjustment.

use iced_x86::{Instruction, Mnemonic as N};

use super::{Kind, kind, size, sized, sized_wide, with_operands};
use crate::insn::{Handler, Insn};
use crate::interp::arith::{
    Adc, Adcx, Add, Adox, And, Binary, Dec, Inc, Neg, Not, Or, Sbb, Sub, Unary, Xor, binary,
    compare, unary,
};
use crate::interp::operand::{Imm, Locked, Mem, Reg, Src};
use crate::interp::shift::{Cl, Rcl, Rcr, Rol, Ror, Sar, Shift, Shl, Shr, shift, shld, shrd};
use crate::interp::{decimal, muldiv};
use crate::machine::Machine;

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let handler = match instr.mnemonic() {
        N::Add => two::<M, Add>(instr),
        N::Adc => two::<M, Adc>(instr),
        N::Sub => two::<M, Sub>(instr),
        N::Sbb => two::<M, Sbb>(instr),
        N::And => two::<M, And>(instr),
        N::Or => two::<M, Or>(instr),
        N::Xor => two::<M, Xor>(instr),
        N::Cmp => flags_only::<M, Sub>(instr),
        N::Test => flags_only::<M, And>(instr),
        N::Adcx => carry_chain::<M, Adcx>(instr),
        N::Adox => carry_chain::<M, Adox>(instr),
        N::Inc => one::<M, Inc>(instr),
        N::Dec => one::<M, Dec>(instr),
        N::Neg => one::<M, Neg>(instr),
        N::Not => one::<M, Not>(instr),
        N::Shl | N::Sal => shifted::<M, Shl>(instr),
        N::Shr => shifted::<M, Shr>(instr),
        N::Sar => shifted::<M, Sar>(instr),
        N::Rol => shifted::<M, Rol>(instr),
        N::Ror => shifted::<M, Ror>(instr),
        N::Rcl => shifted::<M, Rcl>(instr),
        N::Rcr => shifted::<M, Rcr>(instr),
        N::Shld => double_left(instr),
        N::Shrd => double_right(instr),
        N::Mul => multiply(instr),
        N::Imul => signed_multiply(instr),
        N::Div => divide(instr),
        N::Idiv => signed_divide(instr),
        _ => legacy(instr)?,
    };
    let mut insn = with_operands(instr, handler);
    move_source(&mut insn, instr);
    Some(insn)
}

/// One-operand multiplication and division read what is laid out as the destination.
fn move_source<M: Machine>(insn: &mut Insn<M>, instr: &Instruction) {
    if matches!(instr.mnemonic(), N::Mul | N::Imul | N::Div | N::Idiv) && instr.op_count() == 1 {
        insn.src = insn.dst;
    }
}

fn two<M: Machine, O: Binary>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 1)) {
        (Kind::Register, Kind::Register) => sized!(size, T => binary::<M, T, O, Reg, Src>),
        (Kind::Register, Kind::Immediate) => sized!(size, T => binary::<M, T, O, Reg, Imm>),
        (Kind::Register, Kind::Memory) => sized!(size, T => binary::<M, T, O, Reg, Mem>),
        (_, Kind::Immediate) if instr.has_lock_prefix() => {
            sized!(size, T => binary::<M, T, O, Locked, Imm>)
        }
        (_, Kind::Immediate) => sized!(size, T => binary::<M, T, O, Mem, Imm>),
        _ if instr.has_lock_prefix() => sized!(size, T => binary::<M, T, O, Locked, Src>),
        _ => sized!(size, T => binary::<M, T, O, Mem, Src>),
    }
}

fn flags_only<M: Machine, O: Binary>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 1)) {
        (Kind::Register, Kind::Register) => sized!(size, T => compare::<M, T, O, Reg, Src>),
        (Kind::Register, Kind::Immediate) => sized!(size, T => compare::<M, T, O, Reg, Imm>),
        (Kind::Register, Kind::Memory) => sized!(size, T => compare::<M, T, O, Reg, Mem>),
        (_, Kind::Immediate) => sized!(size, T => compare::<M, T, O, Mem, Imm>),
        _ => sized!(size, T => compare::<M, T, O, Mem, Src>),
    }
}

fn carry_chain<M: Machine, O: Binary>(instr: &Instruction) -> Handler<M> {
    match (size(instr, 0), kind(instr, 1)) {
        (4, Kind::Register) => binary::<M, u32, O, Reg, Src>,
        (4, _) => binary::<M, u32, O, Reg, Mem>,
        (_, Kind::Register) => binary::<M, u64, O, Reg, Src>,
        _ => binary::<M, u64, O, Reg, Mem>,
    }
}

fn one<M: Machine, O: Unary>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match kind(instr, 0) {
        Kind::Register => sized!(size, T => unary::<M, T, O, Reg>),
        _ if instr.has_lock_prefix() => sized!(size, T => unary::<M, T, O, Locked>),
        _ => sized!(size, T => unary::<M, T, O, Mem>),
    }
}

fn shifted<M: Machine, O: Shift>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 1)) {
        (Kind::Register, Kind::Register) => sized!(size, T => shift::<M, T, O, Reg, Cl>),
        (Kind::Register, _) => sized!(size, T => shift::<M, T, O, Reg, Imm>),
        (_, Kind::Register) => sized!(size, T => shift::<M, T, O, Mem, Cl>),
        _ => sized!(size, T => shift::<M, T, O, Mem, Imm>),
    }
}

fn double_left<M: Machine>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 2)) {
        (Kind::Register, Kind::Register) => sized_wide!(size, T => shld::<M, T, Reg, Cl>),
        (Kind::Register, _) => sized_wide!(size, T => shld::<M, T, Reg, Imm>),
        (_, Kind::Register) => sized_wide!(size, T => shld::<M, T, Mem, Cl>),
        _ => sized_wide!(size, T => shld::<M, T, Mem, Imm>),
    }
}

fn double_right<M: Machine>(instr: &Instruction) -> Handler<M> {
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 2)) {
        (Kind::Register, Kind::Register) => sized_wide!(size, T => shrd::<M, T, Reg, Cl>),
        (Kind::Register, _) => sized_wide!(size, T => shrd::<M, T, Reg, Imm>),
        (_, Kind::Register) => sized_wide!(size, T => shrd::<M, T, Mem, Cl>),
        _ => sized_wide!(size, T => shrd::<M, T, Mem, Imm>),
    }
}

fn multiply<M: Machine>(instr: &Instruction) -> Handler<M> {
    match kind(instr, 0) {
        Kind::Register => sized!(size(instr, 0), T => muldiv::mul::<M, T, Src>),
        _ => sized!(size(instr, 0), T => muldiv::mul::<M, T, Mem>),
    }
}

fn signed_multiply<M: Machine>(instr: &Instruction) -> Handler<M> {
    use muldiv::{imul, imul_to};
    let size = size(instr, 0);
    match instr.op_count() {
        1 if kind(instr, 0) == Kind::Register => sized!(size, T => imul::<M, T, Src>),
        1 => sized!(size, T => imul::<M, T, Mem>),
        2 if kind(instr, 1) == Kind::Register => {
            sized_wide!(size, T => imul_to::<M, T, Reg, Src>)
        }
        2 => sized_wide!(size, T => imul_to::<M, T, Reg, Mem>),
        _ if kind(instr, 1) == Kind::Register => {
            sized_wide!(size, T => imul_to::<M, T, Src, Imm>)
        }
        _ => sized_wide!(size, T => imul_to::<M, T, Mem, Imm>),
    }
}

fn divide<M: Machine>(instr: &Instruction) -> Handler<M> {
    match kind(instr, 0) {
        Kind::Register => sized!(size(instr, 0), T => muldiv::div::<M, T, Src>),
        _ => sized!(size(instr, 0), T => muldiv::div::<M, T, Mem>),
    }
}

fn signed_divide<M: Machine>(instr: &Instruction) -> Handler<M> {
    match kind(instr, 0) {
        Kind::Register => sized!(size(instr, 0), T => muldiv::idiv::<M, T, Src>),
        _ => sized!(size(instr, 0), T => muldiv::idiv::<M, T, Mem>),
    }
}

/// Instructions of 16- and 32-bit code.
fn legacy<M: Machine>(instr: &Instruction) -> Option<Handler<M>> {
    Some(match instr.mnemonic() {
        N::Daa => decimal::daa::<M, false>,
        N::Das => decimal::daa::<M, true>,
        N::Aaa => decimal::aaa::<M, false>,
        N::Aas => decimal::aaa::<M, true>,
        N::Aam => muldiv::aam,
        N::Aad => decimal::aad,
        N::Salc => decimal::salc,
        // The memory operand's size is that of both bounds.
        N::Bound if size(instr, 0) == 2 => decimal::bound::<M, u16>,
        N::Bound => decimal::bound::<M, u32>,
        N::Arpl if kind(instr, 0) == Kind::Register => decimal::arpl::<M, Reg>,
        N::Arpl => decimal::arpl::<M, Mem>,
        _ => return None,
    })
}
