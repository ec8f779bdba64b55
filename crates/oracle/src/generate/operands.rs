//! Random operands for an encoding.

use iced_x86::{
    Code, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
};

use super::{branch_target, place};
use crate::arena;
use crate::native::Bitness;
use crate::random::Random;

/// `code` with random operands.
pub(super) fn operands(code: Code, bitness: Bitness, random: &mut Random) -> Option<Instruction> {
    let mut instr = Instruction::default();
    instr.set_code(code);
    let info = code.op_code();
    if info.can_use_lock_prefix() && random.one_in(3) {
        instr.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && random.one_in(2) {
        instr.set_has_rep_prefix(true);
    } else if info.can_use_repne_prefix() && random.one_in(2) {
        instr.set_has_repne_prefix(true);
    }
    for op in 0..info.op_count() {
        operand(&mut instr, op, info.op_kind(op), bitness, random)?;
    }
    Some(instr)
}

fn operand(
    instr: &mut Instruction,
    op: u32,
    kind: K,
    bitness: Bitness,
    random: &mut Random,
) -> Option<()> {
    let register = |instr: &mut Instruction, register| {
        instr.set_op_kind(op, OpKind::Register);
        instr.set_op_register(op, register);
    };
    let long = bitness == Bitness::Bits64;
    match kind {
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem if random.one_in(2) => {
            memory(instr, op, bitness, random);
        }
        K::mm_or_mem | K::xmm_or_mem | K::ymm_or_mem if random.one_in(2) => {
            memory(instr, op, bitness, random);
        }
        K::mm_or_mem | K::mm_reg | K::mm_rm => {
            register(instr, offset(Register::MM0, random.below(8)));
        }
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => {
            register(instr, numbered(Register::XMM0, long, random));
        }
        K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => {
            register(instr, numbered(Register::YMM0, long, random));
        }
        K::st0 => register(instr, Register::ST0),
        K::sti_opcode => register(instr, offset(Register::ST0, random.below(8))),
        K::mem | K::mem_mib => memory(instr, op, bitness, random),
        K::r8_or_mem | K::r8_reg | K::r8_opcode => register(instr, gpr8(long, random)),
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => {
            register(instr, numbered(Register::AX, long, random));
        }
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            register(instr, numbered(Register::EAX, long, random));
        }
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            register(instr, numbered(Register::RAX, long, random));
        }
        K::al => register(instr, Register::AL),
        K::cl => register(instr, Register::CL),
        K::ax => register(instr, Register::AX),
        K::dx => register(instr, Register::DX),
        K::eax => register(instr, Register::EAX),
        K::rax => register(instr, Register::RAX),
        K::imm8_const_1 => immediate(instr, op, OpKind::Immediate8, 1),
        K::imm8 => {
            let second = instr.op_kind(0) == OpKind::Immediate16;
            let kind = if second { OpKind::Immediate8_2nd } else { OpKind::Immediate8 };
            // ENTER: a few levels only, since each reads and writes memory.
            let value = if second { random.below(8) } else { random.interesting() };
            immediate(instr, op, kind, value);
        }
        K::imm8sex16 => immediate(instr, op, OpKind::Immediate8to16, random.bits() as i8 as u64),
        K::imm8sex32 => immediate(instr, op, OpKind::Immediate8to32, random.bits() as i8 as u64),
        K::imm8sex64 => immediate(instr, op, OpKind::Immediate8to64, random.bits() as i8 as u64),
        K::imm16 => {
            let small = matches!(instr.mnemonic(), Mnemonic::Enter | Mnemonic::Ret);
            let value = if small { random.below(256) } else { random.interesting() };
            immediate(instr, op, OpKind::Immediate16, value);
        }
        K::imm32 => immediate(instr, op, OpKind::Immediate32, random.interesting()),
        K::imm32sex64 => {
            let value = random.interesting() as i32 as u64;
            immediate(instr, op, OpKind::Immediate32to64, value);
        }
        K::imm64 => immediate(instr, op, OpKind::Immediate64, random.interesting()),
        K::mem_offs => {
            instr.set_op_kind(op, OpKind::Memory);
            instr.set_memory_displacement64(place(random, 8));
            let short = !long || random.one_in(3);
            instr.set_memory_displ_size(if short { 4 } else { 8 });
        }
        K::seg_rSI => {
            let kinds = if long {
                [OpKind::MemorySegRSI, OpKind::MemorySegESI]
            } else {
                [OpKind::MemorySegESI; 2]
            };
            let kind = string_kind(instr, random.pick(&kinds));
            instr.set_op_kind(op, kind);
        }
        K::es_rDI => {
            let kinds = if long {
                [OpKind::MemoryESRDI, OpKind::MemoryESEDI]
            } else {
                [OpKind::MemoryESEDI; 2]
            };
            let kind = string_kind(instr, random.pick(&kinds));
            instr.set_op_kind(op, kind);
        }
        K::br64_1 | K::br64_4 => branch(instr, op, OpKind::NearBranch64, kind == K::br64_1, random),
        K::br32_1 | K::br32_4 => branch(instr, op, OpKind::NearBranch32, kind == K::br32_1, random),
        _ if instr.mnemonic() == Mnemonic::Xlatb => xlat(instr, op, long),
        K::seg_rBX_al => xlat(instr, op, long),
        _ => return None,
    }
    Some(())
}

/// Both memory operands of a string instruction have the same address size: that of the first.
fn string_kind(instr: &Instruction, kind: OpKind) -> OpKind {
    let short = matches!(instr.op_kind(0), OpKind::MemorySegESI | OpKind::MemoryESEDI);
    let long = matches!(instr.op_kind(0), OpKind::MemorySegRSI | OpKind::MemoryESRDI);
    match kind {
        OpKind::MemorySegRSI if short => OpKind::MemorySegESI,
        OpKind::MemorySegESI if long => OpKind::MemorySegRSI,
        OpKind::MemoryESRDI if short => OpKind::MemoryESEDI,
        OpKind::MemoryESEDI if long => OpKind::MemoryESRDI,
        _ => kind,
    }
}

fn xlat(instr: &mut Instruction, op: u32, long: bool) {
    instr.set_op_kind(op, OpKind::Memory);
    instr.set_memory_base(if long { Register::RBX } else { Register::EBX });
    instr.set_memory_index(Register::AL);
}

fn immediate(instr: &mut Instruction, op: u32, kind: OpKind, value: u64) {
    instr.set_op_kind(op, kind);
    match kind {
        OpKind::Immediate8to16 => instr.set_immediate8to16(value as i16),
        OpKind::Immediate8to32 => instr.set_immediate8to32(value as i32),
        OpKind::Immediate8to64 => instr.set_immediate8to64(value as i64),
        OpKind::Immediate32to64 => instr.set_immediate32to64(value as i64),
        OpKind::Immediate8 => instr.set_immediate8(value as u8),
        OpKind::Immediate8_2nd => instr.set_immediate8_2nd(value as u8),
        OpKind::Immediate16 => instr.set_immediate16(value as u16),
        OpKind::Immediate32 => instr.set_immediate32(value as u32),
        _ => instr.set_immediate64(value),
    }
}

/// A branch to the code page (where INT3 waits) or the data pages (which are not executable).
fn branch(instr: &mut Instruction, op: u32, kind: OpKind, short: bool, random: &mut Random) {
    instr.set_op_kind(op, kind);
    let target = if short {
        // Not the instruction itself, nor the jump behind it: prefixes may move either a little.
        let (before, after) = (arena::ENTRY - 100, arena::ENTRY + 40);
        random.pick(&[before, after]) + random.below(80)
    } else {
        branch_target(random)
    };
    match kind {
        OpKind::NearBranch64 => instr.set_near_branch64(target),
        _ => instr.set_near_branch32(target as u32),
    }
}

fn gpr8(long: bool, random: &mut Random) -> Register {
    const LOW: [Register; 8] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::AH,
        Register::CH,
        Register::DH,
        Register::BH,
    ];
    if long && random.one_in(2) {
        let base = random.pick(&[Register::SPL, Register::R8L]);
        let count = if base == Register::SPL { 4 } else { 8 };
        return offset(base, random.below(count));
    }
    random.pick(&LOW)
}

fn numbered(first: Register, long: bool, random: &mut Random) -> Register {
    offset(first, random.below(if long { 16 } else { 8 }))
}

fn offset(first: Register, by: u64) -> Register {
    Register::values().nth(first as usize + by as usize).unwrap_or(first)
}

/// A random memory operand: any base, index, scale, displacement; sometimes RIP-relative, absolute, with a
/// 32-bit address or in GS.
fn memory(instr: &mut Instruction, op: u32, bitness: Bitness, random: &mut Random) {
    let long = bitness == Bitness::Bits64;
    let first = if long && !random.one_in(5) { Register::RAX } else { Register::EAX };
    let mut base = numbered(first, long, random);
    let mut index = numbered(first, long, random);
    if index.number() == 4 || random.one_in(2) {
        index = Register::None;
    }
    let displacement = match random.below(4) {
        0 => 0,
        1 => random.bits() as i8 as i64,
        _ => random.bits() as i32 as i64,
    };
    let mut operand = MemoryOperand::new(
        base,
        index,
        random.pick(&[1, 2, 4, 8]),
        displacement,
        if displacement == 0 { 0 } else { 1 },
        false,
        if long && random.one_in(12) { Register::GS } else { Register::None },
    );
    if random.one_in(10) {
        base = if long && random.one_in(2) { Register::RIP } else { Register::None };
        operand.base = base;
        operand.index = Register::None;
        operand.scale = 1;
        operand.displacement = place(random, 8) as i64;
        operand.displ_size = if long { 8 } else { 4 };
    }
    instr.set_op_kind(op, OpKind::Memory);
    instr.set_memory_base(operand.base);
    instr.set_memory_index(operand.index);
    instr.set_memory_index_scale(operand.scale);
    instr.set_memory_displacement64(operand.displacement as u64);
    instr.set_memory_displ_size(operand.displ_size);
    instr.set_segment_prefix(operand.segment_prefix);
}
