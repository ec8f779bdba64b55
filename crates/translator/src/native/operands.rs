//! Registers of an instruction that the host keeps elsewhere.
//!
//! An instruction that can have an operand in memory has it there; else a scratch register stands for it.

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    OpCodeOperandKind, OpKind, Register,
};

use super::fields::{host, register};

pub(super) fn writes(access: OpAccess) -> bool {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
}

/// Whether it may write its memory operand.
pub(super) fn writes_memory(instr: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
    let info = factory.info_options(instr, InstructionInfoOptions::NO_REGISTER_USAGE);
    info.used_memory().iter().any(|used| writes(used.access()))
}

/// A scratch register that stands for a guest's.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandIn {
    pub(super) slot: u8,
    pub(super) scratch: u8,
    /// It is loaded before.
    pub(super) read: bool,
    /// It is stored behind.
    pub(super) write: bool,
}

/// The guest's registers among an instruction's operands that are in none of the host's.
pub(super) struct Spilled {
    pub(super) stand_ins: Vec<StandIn>,
    /// The operand that is in memory instead, in an instruction with this code.
    in_memory: Option<(u32, Code)>,
}

impl Spilled {
    /// `None`: `scratch` does not suffice.
    pub(super) fn of(
        instr: &Instruction,
        scratch: &[u8],
        factory: &mut InstructionInfoFactory,
    ) -> Option<Self> {
        let mut spilled = Self { stand_ins: Vec::new(), in_memory: None };
        if (0..instr.op_count()).all(|op| slot(instr, op).is_none()) {
            return Some(spilled);
        }
        let info = factory.info(instr);
        spilled.in_memory = (0..instr.op_count())
            .find_map(|op| in_memory(instr, op, info.op_access(op)).map(|code| (op, code)));
        for op in 0..instr.op_count() {
            let Some(slot) = slot(instr, op) else { continue };
            if spilled.in_memory.is_some_and(|(there, _)| there == op) {
                continue;
            }
            let known = spilled.stand_ins.iter().position(|stand_in| stand_in.slot == slot);
            let index = match known {
                Some(index) => index,
                None => {
                    let &scratch = scratch.get(spilled.stand_ins.len())?;
                    spilled.stand_ins.push(StandIn { slot, scratch, read: false, write: false });
                    spilled.stand_ins.len() - 1
                }
            };
            let stand_in = &mut spilled.stand_ins[index];
            stand_in.read |= is_kept(instr, op, info.op_access(op));
            stand_in.write |= writes(info.op_access(op));
        }
        Some(spilled)
    }

    /// Puts what the host has in place of the guest's registers.
    pub(super) fn rename(&self, instr: &mut Instruction) {
        if let Some((op, code)) = self.in_memory {
            let at = slot(instr, op).map_or(0, register);
            instr.set_code(code);
            instr.set_op_kind(op, OpKind::Memory);
            instr.set_memory_base(Register::None);
            instr.set_memory_index(Register::None);
            instr.set_segment_prefix(Register::GS);
            instr.set_memory_displ_size(8);
            instr.set_memory_displacement64(at as u64);
        }
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Register || !instr.op_register(op).is_gpr() {
                continue;
            }
            let guest = instr.op_register(op);
            let slot = guest.full_register().number() as u8;
            if matches!(guest, Register::AH | Register::CH | Register::DH | Register::BH) {
                continue;
            }
            let known = self.stand_ins.iter().find(|stand_in| stand_in.slot == slot);
            let stand_in = known.map(|stand_in| stand_in.scratch);
            if let Some(number) = stand_in.or(host(slot)).filter(|&number| number != slot) {
                instr.set_op_register(op, sized(number, guest.size()));
            }
        }
    }
}

/// The guest's register, if operand `op` is one that is in none of the host's.
fn slot(instr: &Instruction, op: u32) -> Option<u8> {
    if instr.op_kind(op) != OpKind::Register || !instr.op_register(op).is_gpr() {
        return None;
    }
    let slot = instr.op_register(op).full_register().number() as u8;
    host(slot).is_none().then_some(slot)
}

/// Whether what the register had before matters.
fn is_kept(instr: &Instruction, op: u32, access: OpAccess) -> bool {
    // What is shorter leaves the rest. Some write nothing where their source is 0.
    let partly = instr.op_register(op).size() < 4;
    let perhaps = matches!(instr.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
    partly || perhaps || access != OpAccess::Write
}

/// The code of the same instruction with operand `op`, a register, in memory.
fn in_memory(instr: &Instruction, op: u32, access: OpAccess) -> Option<Code> {
    use Mnemonic::{Bt, Btc, Btr, Bts, Cmpxchg, Xadd, Xchg};
    let own = slot(instr, op)?;
    let alone = (0..instr.op_count()).all(|other| {
        let memory = instr.op_kind(other) == OpKind::Memory;
        other == op || !memory && slot(instr, other) != Some(own)
    });
    // Those would lock the bus; or take bits of more than the operand.
    if !alone || matches!(instr.mnemonic(), Xchg | Xadd | Cmpxchg | Bt | Btc | Btr | Bts) {
        return None;
    }
    let size = instr.op_register(op).size();
    // A register's upper half would be cleared.
    if size == 4 && writes(access) {
        return None;
    }
    let code = match (allows_memory(instr.code(), op), op) {
        (true, _) => instr.code(),
        (false, 1) => other_direction(instr.code())?,
        _ => return None,
    };
    let mut there = *instr;
    there.set_code(code);
    there.set_op_kind(op, OpKind::Memory);
    (there.memory_size().size() == size).then_some(code)
}

fn allows_memory(code: Code, op: u32) -> bool {
    use OpCodeOperandKind::{r8_or_mem, r16_or_mem, r32_or_mem, r64_or_mem};
    let kind = code.op_code().op_kind(op);
    matches!(kind, r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem)
}

/// Of an instruction on two registers: that whose second one may be in memory.
fn other_direction(code: Code) -> Option<Code> {
    use Code::*;
    Some(match code {
        Mov_rm64_r64 => Mov_r64_rm64,
        Add_rm64_r64 => Add_r64_rm64,
        Or_rm64_r64 => Or_r64_rm64,
        And_rm64_r64 => And_r64_rm64,
        Sub_rm64_r64 => Sub_r64_rm64,
        Xor_rm64_r64 => Xor_r64_rm64,
        Cmp_rm64_r64 => Cmp_r64_rm64,
        Mov_rm32_r32 => Mov_r32_rm32,
        Add_rm32_r32 => Add_r32_rm32,
        Or_rm32_r32 => Or_r32_rm32,
        And_rm32_r32 => And_r32_rm32,
        Sub_rm32_r32 => Sub_r32_rm32,
        Xor_rm32_r32 => Xor_r32_rm32,
        Cmp_rm32_r32 => Cmp_r32_rm32,
        _ => return None,
    })
}

/// The register with this number in so many bytes.
fn sized(number: u8, size: usize) -> Register {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // SPL.. and R8L.. follow AL..BL and AH..BH.
        _ if number >= 4 => return Register::SPL + (u32::from(number) - 4),
        _ => Register::AL,
    };
    first + u32::from(number)
}
