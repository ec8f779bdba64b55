//! Near branches.

use iced_x86::{Instruction, Mnemonic as N, OpKind};

use super::{Kind, by_condition, kind, size, with_operands};
use crate::decode::operands::{address_size_flag, is_64};
use crate::insn::{Handler, Insn, InsnFlags};
use crate::interp::branch::{
    LOOP, LOOPE, LOOPNE, call, call_to, jcc, jcxz, jmp, jmp_to, loop_while, ret,
};
use crate::interp::operand::{Mem, Src};
use crate::interp::stack::{Legacy, Long};
use crate::machine::Machine;

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let handler = if is_64(instr) { long(instr)? } else { legacy(instr)? };
    let mut insn = with_operands(instr, handler);
    insn.src = insn.dst;
    match instr.op_kind(0) {
        OpKind::NearBranch16 => {
            let distance = instr.near_branch16().wrapping_sub(instr.next_ip() as u16);
            insn.imm = distance as i16 as u64;
        }
        OpKind::NearBranch32 => {
            let distance = instr.near_branch32().wrapping_sub(instr.next_ip() as u32);
            insn.imm = distance as i32 as u64;
        }
        OpKind::NearBranch64 => {
            insn.imm = instr.near_branch64().wrapping_sub(instr.next_ip());
        }
        _ => {}
    }
    if operand_size(instr) == 2 {
        insn.flags |= InsnFlags::SMALL;
    }
    if let Some(size) = counter_size(instr) {
        insn.flags |= address_size_flag(instr, size);
    }
    Some(insn)
}

fn long<M: Machine>(instr: &Instruction) -> Option<Handler<M>> {
    Some(match (instr.mnemonic(), kind(instr, 0)) {
        (N::Jmp, Kind::Other) => jmp::<M, Long>,
        (N::Jmp, Kind::Register) => jmp_to::<M, u64, Long, Src>,
        (N::Jmp, Kind::Memory) => jmp_to::<M, u64, Long, Mem>,
        (N::Call, Kind::Other) => call::<M, u64, Long>,
        (N::Call, Kind::Register) => call_to::<M, u64, Long, Src>,
        (N::Call, Kind::Memory) => call_to::<M, u64, Long, Mem>,
        (N::Ret, _) => ret::<M, u64, Long>,
        (N::Loop, _) => loop_while::<M, Long, LOOP>,
        (N::Loope, _) => loop_while::<M, Long, LOOPE>,
        (N::Loopne, _) => loop_while::<M, Long, LOOPNE>,
        (N::Jcxz | N::Jecxz | N::Jrcxz, _) => jcxz::<M, Long>,
        _ => {
            let condition = jump_condition(instr)?;
            by_condition!(condition, CC => jcc::<M, Long, CC>)
        }
    })
}

fn legacy<M: Machine>(instr: &Instruction) -> Option<Handler<M>> {
    let small = operand_size(instr) == 2;
    Some(match (instr.mnemonic(), kind(instr, 0)) {
        (N::Jmp, Kind::Other) => jmp::<M, Legacy>,
        (N::Jmp, Kind::Register) if small => jmp_to::<M, u16, Legacy, Src>,
        (N::Jmp, Kind::Memory) if small => jmp_to::<M, u16, Legacy, Mem>,
        (N::Jmp, Kind::Register) => jmp_to::<M, u32, Legacy, Src>,
        (N::Jmp, Kind::Memory) => jmp_to::<M, u32, Legacy, Mem>,
        (N::Call, Kind::Other) if small => call::<M, u16, Legacy>,
        (N::Call, Kind::Register) if small => call_to::<M, u16, Legacy, Src>,
        (N::Call, Kind::Memory) if small => call_to::<M, u16, Legacy, Mem>,
        (N::Call, Kind::Other) => call::<M, u32, Legacy>,
        (N::Call, Kind::Register) => call_to::<M, u32, Legacy, Src>,
        (N::Call, Kind::Memory) => call_to::<M, u32, Legacy, Mem>,
        (N::Ret, _) if small => ret::<M, u16, Legacy>,
        (N::Ret, _) => ret::<M, u32, Legacy>,
        (N::Loop, _) => loop_while::<M, Legacy, LOOP>,
        (N::Loope, _) => loop_while::<M, Legacy, LOOPE>,
        (N::Loopne, _) => loop_while::<M, Legacy, LOOPNE>,
        (N::Jcxz | N::Jecxz | N::Jrcxz, _) => jcxz::<M, Legacy>,
        _ => {
            let condition = jump_condition(instr)?;
            by_condition!(condition, CC => jcc::<M, Legacy, CC>)
        }
    })
}

/// The number of a Jcc's condition.
fn jump_condition(instr: &Instruction) -> Option<u8> {
    let conditional = instr.is_jcc_short_or_near();
    conditional.then(|| (instr.condition_code() as u8).wrapping_sub(1))
}

/// Bytes of the operand: 2 where RIP is cut to 16 bits.
fn operand_size(instr: &Instruction) -> usize {
    use iced_x86::Code;
    match (instr.op_kind(0), instr.code()) {
        (_, Code::Retnw | Code::Retnw_imm16) => 2,
        (_, Code::Retnd | Code::Retnd_imm16) => 4,
        (_, Code::Retnq | Code::Retnq_imm16) => 8,
        (OpKind::NearBranch16, _) => 2,
        (OpKind::NearBranch32, _) => 4,
        (OpKind::Register | OpKind::Memory, _) => size(instr, 0),
        _ => 8,
    }
}

/// Bytes of the counter of LOOP and JCXZ.
fn counter_size(instr: &Instruction) -> Option<usize> {
    use iced_x86::Code as C;
    Some(match instr.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        C::Loop_rel8_16_ECX
        | C::Loop_rel8_32_ECX
        | C::Loop_rel8_64_ECX
        | C::Loope_rel8_16_ECX
        | C::Loope_rel8_32_ECX
        | C::Loope_rel8_64_ECX
        | C::Loopne_rel8_16_ECX
        | C::Loopne_rel8_32_ECX
        | C::Loopne_rel8_64_ECX
        | C::Jecxz_rel8_16
        | C::Jecxz_rel8_32
        | C::Jecxz_rel8_64 => 4,
        C::Loop_rel8_64_RCX | C::Loope_rel8_64_RCX | C::Loopne_rel8_64_RCX | C::Jrcxz_rel8_64 => 8,
        _ => return None,
    })
}
