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
    if let Some(first) = writes_first(instr) {
        return first && instr.op0_kind() == OpKind::Memory;
    }
    let info = factory.info_options(instr, InstructionInfoOptions::NO_REGISTER_USAGE);
    info.used_memory().iter().any(|used| writes(used.access()))
}

/// Whether it may write one of these registers of 64 bits.
pub(super) fn writes_one_of(
    instr: &Instruction,
    registers: [Register; 2],
    factory: &mut InstructionInfoFactory,
) -> bool {
    if let Some(first) = writes_first(instr) {
        let register = || registers.contains(&instr.op0_register().full_register());
        return first && instr.op0_kind() == OpKind::Register && register();
    }
    let info = factory.info_options(instr, InstructionInfoOptions::NO_MEMORY_USAGE);
    let changed = |used: &iced_x86::UsedRegister| {
        writes(used.access()) && registers.contains(&used.register().full_register())
    };
    info.used_registers().iter().any(changed)
}

/// Of common instructions that write at most their first operand, and flags: whether they do.
fn writes_first(instr: &Instruction) -> Option<bool> {
    use Mnemonic::*;
    Some(match instr.mnemonic() {
        Mov | Movzx | Movsx | Movsxd | Lea | Add | Or | Adc | Sbb | And | Sub | Xor | Inc | Dec
        | Neg | Not | Shl | Shr | Sar | Rol | Ror | Bswap => true,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne
        | Cmovns | Cmovs => true,
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setns | Sets => {
            true
        }
        Imul if instr.op_count() > 1 => true,
        Cmp | Test | Nop | Endbr64 | Jmp | Ja | Jae | Jb | Jbe | Je | Jg | Jge | Jl | Jle | Jne
        | Jns | Js => false,
        _ => return None,
    })
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
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spilled {
    stand_ins: [Option<StandIn>; 2],
    /// The operand that is in memory instead, in an instruction with this code.
    pub(super) in_memory: Option<(u32, Code)>,
    /// Some operand is a register that the host does not keep in that of the same name.
    pub(super) moves: bool,
}

impl Spilled {
    /// `None`: `scratch` does not suffice.
    pub(super) fn of(
        instr: &Instruction,
        scratch: &[u8],
        factory: &mut InstructionInfoFactory,
    ) -> Option<Self> {
        let first = [instr.op0_register(), instr.op1_register(), instr.op2_register()];
        if !first.into_iter().any(is_elsewhere) {
            return Some(Self::default());
        }
        let mut spilled = Self { moves: true, ..Self::default() };
        if (0..instr.op_count()).all(|op| slot(instr, op).is_none()) {
            return Some(spilled);
        }
        const ACCESS_ONLY: u32 =
            InstructionInfoOptions::NO_REGISTER_USAGE | InstructionInfoOptions::NO_MEMORY_USAGE;
        let info = factory.info_options(instr, ACCESS_ONLY);
        spilled.in_memory = (0..instr.op_count())
            .find_map(|op| in_memory(instr, op, info.op_access(op)).map(|code| (op, code)));
        for op in 0..instr.op_count() {
            let Some(slot) = slot(instr, op) else { continue };
            if spilled.in_memory.is_some_and(|(there, _)| there == op) {
                continue;
            }
            let stand_in = spilled.stand_in(slot, scratch)?;
            stand_in.read |= is_kept(instr, op, info.op_access(op));
            stand_in.write |= writes(info.op_access(op));
        }
        Some(spilled)
    }

    /// The one for `slot`, or the next of `scratch`.
    fn stand_in(&mut self, slot: u8, scratch: &[u8]) -> Option<&mut StandIn> {
        for (place, scratch) in self.stand_ins.iter_mut().zip(scratch) {
            let scratch = *scratch;
            let new = StandIn { slot, scratch, read: false, write: false };
            let stand_in = place.get_or_insert(new);
            if stand_in.slot == slot {
                return Some(stand_in);
            }
        }
        None
    }

    pub(super) fn stand_ins(&self) -> impl Iterator<Item = &StandIn> {
        self.stand_ins.iter().flatten()
    }

    /// The host's register for the guest's in `slot`, if that is an operand.
    pub(super) fn number(&self, slot: u8) -> u8 {
        let known = self.stand_ins().find(|stand_in| stand_in.slot == slot);
        known.map(|stand_in| stand_in.scratch).or(host(slot)).unwrap_or(slot)
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
            let Some(slot) = general(instr, op) else { continue };
            let guest = instr.op_register(op);
            let number = self.number(slot);
            if number != slot {
                instr.set_op_register(op, sized(number, guest.size()));
            }
        }
    }
}

/// Whether the host does not keep it in the register of the same name.
fn is_elsewhere(register: Register) -> bool {
    use Register::*;
    matches!(
        register,
        RSP | ESP
            | SP
            | SPL
            | R13
            | R14
            | R15
            | R13D
            | R14D
            | R15D
            | R13W
            | R14W
            | R15W
            | R13L
            | R14L
            | R15L
    )
}

/// The guest's register, if operand `op` is a general one.
fn general(instr: &Instruction, op: u32) -> Option<u8> {
    let register = instr.op_register(op);
    let general = instr.op_kind(op) == OpKind::Register && register.is_gpr();
    let old_high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (general && !old_high).then(|| register.full_register().number() as u8)
}

/// The same if it is in none of the host's.
fn slot(instr: &Instruction, op: u32) -> Option<u8> {
    general(instr, op).filter(|&slot| host(slot).is_none())
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

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn is_same(instr: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
        if writes_first(instr).is_none() {
            return false;
        }
        let info = factory.info(instr);
        let memory = info.used_memory().iter().any(|used| writes(used.access()));
        let written: Vec<_> = info
            .used_registers()
            .iter()
            .filter(|used| writes(used.access()) && used.register().is_gpr())
            .map(|used| used.register().full_register())
            .collect();
        assert_eq!(writes_memory(instr, factory), memory, "{instr}");
        for register in (0..16).map(|number| Register::RAX + number) {
            let here = writes_one_of(instr, [Register::None, register], factory);
            assert_eq!(here, written.contains(&register), "{instr}: {register:?}");
        }
        true
    }

    #[test]
    fn registers_elsewhere_are_those_of_other_names() {
        for register in Register::values().filter(|register| register.is_gpr()) {
            let high =
                matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
            let slot = register.full_register().number() as u8;
            let moved = !high && host(slot) != Some(slot);
            assert_eq!(is_elsewhere(register), moved, "{register:?}");
        }
    }

    #[test]
    fn what_is_written_is_what_iced_says() {
        let mut factory = InstructionInfoFactory::new();
        let opcodes = (0..=255_u8).flat_map(|byte| [vec![byte], vec![0x0f, byte]]);
        let prefixes: [&[u8]; 8] =
            [&[], &[0x66], &[0x48], &[0x45], &[0xf2], &[0xf3], &[0xf0], &[0x66, 0x4f]];
        let mut here = 0;
        for (opcode, prefix) in opcodes.flat_map(|o| prefixes.map(|p| (o.clone(), p))) {
            for modrm in 0..=255_u8 {
                let bytes = [prefix, &opcode, &[modrm, 0x2c], &[0x81; 12]].concat();
                let instr = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                here += u32::from(is_same(&instr, &mut factory));
            }
        }
        assert!(here > 100_000, "{here}");
    }
}
