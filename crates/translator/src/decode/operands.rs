//! The operands of an iced instruction in the fields of an [`Insn`].

use iced_x86::{CodeSize, Instruction, OpKind, Register};

use crate::cpu::{HIGH_BYTE, REG_NONE, REG_RIP, SEG_NONE};
use crate::insn::{Handler, Insn, InsnFlags};
use crate::machine::Machine;

/// An instruction with its length, prefixes and memory operand (if it has one) filled in, and no other
/// operands.
pub(crate) fn blank<M: Machine>(instr: &Instruction, handler: Handler<M>) -> Insn<M> {
    let mut insn = Insn {
        handler,
        imm: 0,
        disp: 0,
        aux: 0,
        dst: REG_NONE,
        src: REG_NONE,
        base: REG_NONE,
        index: REG_NONE,
        scale: 0,
        seg: SEG_NONE,
        len: instr.len() as u8,
        flags: 0,
    };
    if instr.has_rep_prefix() {
        insn.flags |= InsnFlags::REP;
    }
    if instr.has_repne_prefix() {
        insn.flags |= InsnFlags::REPNE;
    }
    if has_memory(instr) {
        memory_operand(&mut insn, instr);
    } else if instr.is_stack_instruction() {
        insn.flags |= InsnFlags::STACK;
    }
    insn
}

/// Whether an operand is an ordinary (ModRM or moffs) memory operand.
pub(crate) fn has_memory(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory)
}

/// Fills in `base`, `index`, `scale`, `disp`, `seg` and the address-size and stack flags. A vector index
/// (VSIB) is left out. A 64-bit `moffs` goes to `imm`.
pub(crate) fn memory_operand<M: Machine>(insn: &mut Insn<M>, instr: &Instruction) {
    let (base, index) = (instr.memory_base(), instr.memory_index());
    insn.seg = segment_slot(instr, instr.memory_segment());
    insn.disp = instr.memory_displacement64() as u32 as i32;
    insn.flags |= address_size_flag(instr, address_size(instr));
    match base {
        Register::None => {}
        Register::RIP | Register::EIP => {
            insn.base = REG_RIP;
            insn.disp = instr.memory_displacement64().wrapping_sub(instr.next_ip()) as u32 as i32;
        }
        _ => {
            insn.base = base.number() as u8;
            if instr.memory_segment() == Register::SS {
                insn.flags |= InsnFlags::STACK;
            }
        }
    }
    if index.is_gpr() {
        insn.index = index.number() as u8;
        insn.scale = instr.memory_index_scale().trailing_zeros() as u8;
    }
    if is_moffs64(instr) {
        insn.imm = instr.memory_displacement64();
    }
}

/// Whether the address is a full 64-bit constant, which only the MOV moffs forms have.
pub(crate) fn is_moffs64(instr: &Instruction) -> bool {
    use iced_x86::Code;
    address_size(instr) == 8
        && matches!(
            instr.code(),
            Code::Mov_AL_moffs8
                | Code::Mov_AX_moffs16
                | Code::Mov_EAX_moffs32
                | Code::Mov_RAX_moffs64
                | Code::Mov_moffs8_AL
                | Code::Mov_moffs16_AX
                | Code::Mov_moffs32_EAX
                | Code::Mov_moffs64_RAX
        )
}

/// Bytes of the effective address.
fn address_size(instr: &Instruction) -> usize {
    let (base, index) = (instr.memory_base(), instr.memory_index());
    match (base, index) {
        (Register::None, index) if index.is_gpr() => index.size(),
        (Register::None, _) => instr.memory_displ_size() as usize,
        (base, _) => base.size(),
    }
}

/// The flag for an address of `size` bytes: none where it needs no cutting.
pub(crate) fn address_size_flag(instr: &Instruction, size: usize) -> u8 {
    match size {
        2 => InsnFlags::ADDR16,
        4 => InsnFlags::ADDR32,
        8 => 0,
        // One-byte displacements without a register do not exist; the default of the code segment.
        _ => match instr.code_size() {
            CodeSize::Code16 => InsnFlags::ADDR16,
            CodeSize::Code32 => InsnFlags::ADDR32,
            _ => 0,
        },
    }
}

/// Whether the code segment is 64-bit.
pub(crate) fn is_64(instr: &Instruction) -> bool {
    instr.code_size() == CodeSize::Code64
}

/// The slot of a segment whose base counts: in 64-bit mode only FS and GS have one.
pub(crate) fn segment_slot(instr: &Instruction, segment: Register) -> u8 {
    match segment {
        Register::FS => 4,
        Register::GS => 5,
        _ if is_64(instr) => SEG_NONE,
        Register::None => SEG_NONE,
        _ => segment_number(segment),
    }
}

/// ES, CS, SS, DS, FS, GS as 0..=5.
pub(crate) fn segment_number(segment: Register) -> u8 {
    match segment {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        _ => 5,
    }
}

/// The register slot of a general register, AH..BH included.
pub(crate) fn slot(register: Register) -> u8 {
    match register {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        _ => register.full_register().number() as u8 & 15,
    }
}

/// The slot of operand `op` where it is a register, and otherwise `REG_NONE`.
pub(crate) fn operand_slot(instr: &Instruction, op: u32) -> u8 {
    match instr.op_kind(op) {
        OpKind::Register => slot(instr.op_register(op)),
        _ => REG_NONE,
    }
}

/// Segment and address size, in bytes, of a string instruction's memory operand.
pub(crate) fn string_operand(instr: &Instruction, op: u32) -> (Register, usize) {
    match instr.op_kind(op) {
        OpKind::MemorySegSI => (instr.memory_segment(), 2),
        OpKind::MemorySegESI => (instr.memory_segment(), 4),
        OpKind::MemoryESDI => (Register::ES, 2),
        OpKind::MemoryESEDI => (Register::ES, 4),
        OpKind::MemoryESRDI => (Register::ES, 8),
        _ => (instr.memory_segment(), 8),
    }
}
