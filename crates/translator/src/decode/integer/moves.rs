//! Moves, extensions, exchanges, strings.

use iced_x86::{Instruction, Mnemonic as N, Register};

use super::{Kind, by_condition, kind, size, sized, sized_wide, with_operands};
use crate::cpu::REG_NONE;
use crate::decode::operands::{
    address_size_flag, is_moffs64, operand_slot, segment_slot, string_operand,
};
use crate::insn::{Handler, Insn};
use crate::interp::exchange::{
    cmpxchg_memory, cmpxchg_registers, cmpxchg8b, cmpxchg16b, xadd_memory, xadd_registers,
    xchg_memory, xchg_registers,
};
use crate::interp::operand::{Imm, Locked, Mem, Moffs, Reg, Src};
use crate::interp::{moves, string};
use crate::machine::Machine;

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    if let Some(insn) = strings(instr).or_else(|| exchanges(instr)) {
        return Some(insn);
    }
    let handler = match instr.mnemonic() {
        N::Mov | N::Movnti => mov(instr),
        N::Movzx => zero_extend(instr),
        N::Movsx | N::Movsxd => sign_extend(instr),
        N::Lea => sized_wide!(size(instr, 0), T => moves::lea::<M, T>),
        N::Bswap => sized_wide!(size(instr, 0), T => moves::bswap::<M, T>),
        N::Movbe if kind(instr, 0) == Kind::Register => {
            sized_wide!(size(instr, 0), T => moves::movbe::<M, T, Reg, Mem>)
        }
        N::Movbe => sized_wide!(size(instr, 0), T => moves::movbe::<M, T, Mem, Src>),
        N::Xlatb => moves::xlat,
        N::Cbw => moves::extend_accumulator::<M, u16, u8>,
        N::Cwde => moves::extend_accumulator::<M, u32, u16>,
        N::Cdqe => moves::extend_accumulator::<M, u64, u32>,
        N::Cwd => moves::extend_to_rdx::<M, u16>,
        N::Cdq => moves::extend_to_rdx::<M, u32>,
        N::Cqo => moves::extend_to_rdx::<M, u64>,
        _ => conditional(instr)?,
    };
    let mut insn = with_operands(instr, handler);
    if instr.mnemonic() == N::Xlatb {
        // AL, iced's index, is added by the handler.
        insn.index = REG_NONE;
    }
    if is_moffs64(instr) {
        insn.imm = instr.memory_displacement64();
    }
    Some(insn)
}

fn mov<M: Machine>(instr: &Instruction) -> Handler<M> {
    use moves::mov;
    let size = size(instr, 0);
    match (kind(instr, 0), kind(instr, 1)) {
        (Kind::Register, Kind::Memory) if is_moffs64(instr) => {
            sized!(size, T => mov::<M, T, Reg, Moffs>)
        }
        (Kind::Memory, Kind::Register) if is_moffs64(instr) => {
            sized!(size, T => mov::<M, T, Moffs, Src>)
        }
        (Kind::Register, Kind::Register) => sized!(size, T => mov::<M, T, Reg, Src>),
        (Kind::Register, Kind::Immediate) => sized!(size, T => mov::<M, T, Reg, Imm>),
        (Kind::Register, Kind::Memory) => sized!(size, T => mov::<M, T, Reg, Mem>),
        (_, Kind::Immediate) => sized!(size, T => mov::<M, T, Mem, Imm>),
        _ => sized!(size, T => mov::<M, T, Mem, Src>),
    }
}

fn zero_extend<M: Machine>(instr: &Instruction) -> Handler<M> {
    use moves::movzx;
    let to = size(instr, 0);
    match (size(instr, 1), kind(instr, 1)) {
        (1, Kind::Register) => sized_wide!(to, T => movzx::<M, T, u8, Src>),
        (1, _) => sized_wide!(to, T => movzx::<M, T, u8, Mem>),
        (_, Kind::Register) => sized_wide!(to, T => movzx::<M, T, u16, Src>),
        _ => sized_wide!(to, T => movzx::<M, T, u16, Mem>),
    }
}

fn sign_extend<M: Machine>(instr: &Instruction) -> Handler<M> {
    use moves::movsx;
    let to = size(instr, 0);
    // MOVSXD without REX.W moves 16 or 32 bits and extends nothing.
    let from = if instr.mnemonic() == N::Movsxd { to.min(4) } else { size(instr, 1) };
    match (from, kind(instr, 1)) {
        (1, Kind::Register) => sized_wide!(to, T => movsx::<M, T, u8, Src>),
        (1, _) => sized_wide!(to, T => movsx::<M, T, u8, Mem>),
        (2, Kind::Register) => sized_wide!(to, T => movsx::<M, T, u16, Src>),
        (2, _) => sized_wide!(to, T => movsx::<M, T, u16, Mem>),
        (_, Kind::Register) => sized_wide!(to, T => movsx::<M, T, u32, Src>),
        _ => sized_wide!(to, T => movsx::<M, T, u32, Mem>),
    }
}

/// SETcc and CMOVcc.
fn conditional<M: Machine>(instr: &Instruction) -> Option<Handler<M>> {
    use moves::{cmov, set};
    // iced counts from 1, in the order of the encoding.
    let condition = (instr.condition_code() as u8).checked_sub(1)?;
    let count = instr.op_count();
    let register = kind(instr, count - 1) == Kind::Register;
    Some(match (count, size(instr, 0)) {
        (2, 2) if register => by_condition!(condition, CC => cmov::<M, u16, Src, CC>),
        (2, 2) => by_condition!(condition, CC => cmov::<M, u16, Mem, CC>),
        (2, 4) if register => by_condition!(condition, CC => cmov::<M, u32, Src, CC>),
        (2, 4) => by_condition!(condition, CC => cmov::<M, u32, Mem, CC>),
        (2, _) if register => by_condition!(condition, CC => cmov::<M, u64, Src, CC>),
        (2, _) => by_condition!(condition, CC => cmov::<M, u64, Mem, CC>),
        (1, 1) if register => by_condition!(condition, CC => set::<M, Reg, CC>),
        (1, 1) if kind(instr, 0) == Kind::Memory => {
            by_condition!(condition, CC => set::<M, Mem, CC>)
        }
        // Jcc and others.
        _ => return None,
    })
}

fn exchanges<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let size = |op| size(instr, op);
    let locked = instr.has_lock_prefix();
    let register = |op| kind(instr, op) == Kind::Register;
    let handler: Handler<M> = match instr.mnemonic() {
        N::Xchg if register(0) && register(1) => sized!(size(0), T => xchg_registers::<M, T>),
        N::Xchg => sized!(size(0), T => xchg_memory::<M, T>),
        N::Xadd if register(0) => sized!(size(0), T => xadd_registers::<M, T>),
        N::Xadd if locked => sized!(size(0), T => xadd_memory::<M, T, Locked>),
        N::Xadd => sized!(size(0), T => xadd_memory::<M, T, Mem>),
        N::Cmpxchg if register(0) => sized!(size(0), T => cmpxchg_registers::<M, T>),
        N::Cmpxchg if locked => sized!(size(0), T => cmpxchg_memory::<M, T, Locked>),
        N::Cmpxchg => sized!(size(0), T => cmpxchg_memory::<M, T, Mem>),
        N::Cmpxchg8b if locked => cmpxchg8b::<M, Locked>,
        N::Cmpxchg8b => cmpxchg8b::<M, Mem>,
        N::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    };
    let mut insn = with_operands(instr, handler);
    // XCHG may have its memory operand second.
    if instr.mnemonic() == N::Xchg && !register(1) {
        insn.src = insn.dst;
    }
    Some(insn)
}

/// The element's bytes in `memory_size`; `seg` and the address size of the source, and in `aux` the slot
/// of the destination's segment.
fn strings<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    if !instr.is_string_instruction() {
        return None;
    }
    let size = instr.memory_size().size();
    let handler: Handler<M> = match instr.mnemonic() {
        N::Movsb | N::Movsw | N::Movsd | N::Movsq => sized!(size, T => string::movs::<M, T>),
        N::Stosb | N::Stosw | N::Stosd | N::Stosq => sized!(size, T => string::stos::<M, T>),
        N::Lodsb | N::Lodsw | N::Lodsd | N::Lodsq => sized!(size, T => string::lods::<M, T>),
        N::Scasb | N::Scasw | N::Scasd | N::Scasq => sized!(size, T => string::scas::<M, T>),
        N::Cmpsb | N::Cmpsw | N::Cmpsd | N::Cmpsq => sized!(size, T => string::cmps::<M, T>),
        _ => return None,
    };
    let mut insn = with_operands(instr, handler);
    insn.dst = REG_NONE;
    insn.src = REG_NONE;
    insn.imm = 0;
    insn.aux = segment_slot(instr, Register::ES).into();
    for op in 0..instr.op_count() {
        if operand_slot(instr, op) == REG_NONE {
            let (segment, size) = string_operand(instr, op);
            insn.flags |= address_size_flag(instr, size);
            if segment != Register::ES || is_source(instr, op) {
                insn.seg = segment_slot(instr, segment);
            }
        }
    }
    Some(insn)
}

/// Whether a string instruction's operand is at (R)SI.
fn is_source(instr: &Instruction, op: u32) -> bool {
    use iced_x86::OpKind;
    matches!(instr.op_kind(op), OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI)
}
