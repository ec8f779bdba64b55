//! Which instructions become host code, and which are executed outside.

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::options::Options;
use super::strings::Repeat;
use super::system::System;
use super::vector::Vector;
use crate::decode::operands::{has_memory, is_moffs64};

/// How an instruction is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The same instruction, on the host's registers and the host's address of its operand.
    Same,
    /// The same for a vector or x87 instruction.
    Vector(Vector),
    /// Nothing is left of it.
    Nothing,
    Divide,
    /// BT and its kin, with a bit number in a register.
    BitString,
    Lea,
    Push,
    PushMemory,
    Pop,
    Leave,
    Jump,
    JumpIf,
    Call,
    JumpTo,
    CallTo,
    Return,
    System(System),
    Repeat(Repeat),
    /// By its handler, outside.
    Outside,
}

impl Kind {
    /// Whether the block ends with it, in line.
    pub(super) fn is_branch(self) -> bool {
        let branch = matches!(
            self,
            Self::Jump | Self::JumpIf | Self::Call | Self::JumpTo | Self::CallTo | Self::Return
        );
        branch || matches!(self, Self::System(system) if system.ends_block())
    }
}

/// See [`Kind`].
pub(super) fn kind(
    instr: &Instruction,
    options: Options,
    factory: &mut InstructionInfoFactory,
) -> Kind {
    if let Some(system) = System::of(instr, options) {
        return Kind::System(system);
    }
    if let Some(repeat) = Repeat::of(instr, options) {
        return Kind::Repeat(repeat);
    }
    let kind = by_mnemonic(instr, factory);
    match kind {
        Kind::Outside | Kind::Nothing => kind,
        _ if !has_plain_prefixes(instr, kind) || !has_plain_operands(instr, kind) => Kind::Outside,
        _ => kind,
    }
}

fn by_mnemonic(instr: &Instruction, factory: &mut InstructionInfoFactory) -> Kind {
    use Mnemonic::*;
    match instr.mnemonic() {
        Mov | Movzx | Movsx | Movsxd | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test
        | Inc | Dec | Neg | Not | Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
        | Imul | Mul | Bsf | Bsr | Tzcnt | Lzcnt | Popcnt | Bswap | Xchg | Xadd | Cmpxchg
        | Cmpxchg16b | Cwd | Cdq | Cqo | Cbw | Cwde | Cdqe | Movbe | Andn | Bextr | Blsi
        | Blsmsk | Blsr | Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx | Lahf | Sahf
        | Clc | Stc | Cmc | Mfence | Lfence | Sfence | Crc32 | Movnti => Kind::Same,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne
        | Cmovno | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs => Kind::Same,
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setno
        | Setnp | Setns | Seto | Setp | Sets => Kind::Same,
        Bt | Bts | Btr | Btc => bit_test(instr),
        Nop | Reservednop | Endbr64 | Endbr32 | Pause | Prefetcht0 | Prefetcht1 | Prefetcht2
        | Prefetchnta | Prefetchw => nothing(instr),
        Div | Idiv => divide(instr),
        Lea => Kind::Lea,
        Push if instr.code() == Code::Push_rm64 && has_memory(instr) => Kind::PushMemory,
        Push => stack(instr, Kind::Push),
        Pop => stack(instr, Kind::Pop),
        Leave if instr.code() == Code::Leaveq => Kind::Leave,
        _ => branch(instr, factory),
    }
}

fn branch(instr: &Instruction, factory: &mut InstructionInfoFactory) -> Kind {
    match instr.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Kind::Jump,
        Code::Call_rel32_64 => Kind::Call,
        Code::Jmp_rm64 => Kind::JumpTo,
        Code::Call_rm64 => Kind::CallTo,
        Code::Retnq | Code::Retnq_imm16 => Kind::Return,
        _ if instr.is_jcc_short_or_near() && instr.op0_kind() == OpKind::NearBranch64 => {
            Kind::JumpIf
        }
        _ => Vector::of(instr, factory).map_or(Kind::Outside, Kind::Vector),
    }
}

/// With a bit number in a register the operand may lie far from its address.
fn bit_test(instr: &Instruction) -> Kind {
    if instr.op0_kind() != OpKind::Memory || instr.op1_kind() != OpKind::Register {
        return Kind::Same;
    }
    if instr.op1_register().size() == 2 { Kind::Outside } else { Kind::BitString }
}

/// By 32 and 64 bits.
fn divide(instr: &Instruction) -> Kind {
    match instr.code() {
        Code::Div_rm32 | Code::Div_rm64 | Code::Idiv_rm32 | Code::Idiv_rm64 => Kind::Divide,
        _ => Kind::Outside,
    }
}

fn nothing(instr: &Instruction) -> Kind {
    if instr.has_lock_prefix() { Kind::Outside } else { Kind::Nothing }
}

/// Pushes and pops of eight bytes, of a register or a constant.
fn stack(instr: &Instruction, kind: Kind) -> Kind {
    use Code::{Pop_r64, Push_r64, Pushq_imm8, Pushq_imm32};
    match instr.code() {
        Push_r64 | Pushq_imm8 | Pushq_imm32 | Pop_r64 => kind,
        _ => Kind::Outside,
    }
}

fn has_plain_prefixes(instr: &Instruction, kind: Kind) -> bool {
    let branch = matches!(
        kind,
        Kind::Jump | Kind::JumpIf | Kind::Call | Kind::JumpTo | Kind::CallTo | Kind::Return
    );
    // Before a branch REPNE and REPE mean nothing here (BND, hints).
    let repeats = instr.has_rep_prefix() || instr.has_repne_prefix();
    let lock = instr.has_lock_prefix();
    // Those of vector instructions are part of their names, or idle.
    let vector = matches!(kind, Kind::Vector(_));
    let may_lock = matches!(kind, Kind::Same | Kind::BitString);
    (!lock || may_lock) && (branch || vector || lock || !repeats)
}

/// Addresses of 64 bits and without a fixed 64-bit displacement; a byte register of the old kind only where
/// nothing else needs a REX prefix.
fn has_plain_operands(instr: &Instruction, kind: Kind) -> bool {
    if has_memory(instr) {
        let (base, index) = (instr.memory_base(), instr.memory_index());
        let wide = |register: Register| register == Register::None || register.size() == 8;
        let sized = base != Register::None
            || index != Register::None
            || instr.memory_displ_size() == 4
            || instr.memory_displ_size() == 8;
        if !wide(base) || !wide(index) || !sized || is_moffs(instr) {
            return false;
        }
    }
    let registers = || {
        let register = |op| match instr.op_kind(op) {
            OpKind::Register => Some(instr.op_register(op)),
            _ => None,
        };
        (0..instr.op_count()).filter_map(register)
    };
    if kind == Kind::Same && registers().any(|register| !register.is_gpr()) {
        return false;
    }
    !registers().any(is_old_high) || !has_memory(instr) && !registers().any(needs_rex)
}

fn is_moffs(instr: &Instruction) -> bool {
    use Code::{Mov_AL_moffs8, Mov_AX_moffs16, Mov_EAX_moffs32, Mov_RAX_moffs64};
    use Code::{Mov_moffs8_AL, Mov_moffs16_AX, Mov_moffs32_EAX, Mov_moffs64_RAX};
    is_moffs64(instr)
        || matches!(
            instr.code(),
            Mov_AL_moffs8
                | Mov_AX_moffs16
                | Mov_EAX_moffs32
                | Mov_RAX_moffs64
                | Mov_moffs8_AL
                | Mov_moffs16_AX
                | Mov_moffs32_EAX
                | Mov_moffs64_RAX
        )
}

fn is_old_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// Whether the host's register for it does: the guest's RSP is in R15.
fn needs_rex(register: Register) -> bool {
    let number = register.full_register().number();
    let low = matches!(register, Register::SPL | Register::BPL | Register::SIL | Register::DIL);
    number >= 8 || number == 4 && !is_old_high(register) || low || register.size() == 8
}

/// Whether its memory operand is near where RSP points.
pub(super) fn is_on_stack(instr: &Instruction) -> bool {
    instr.memory_base() == Register::RSP
        && instr.memory_index() == Register::None
        && !matches!(instr.memory_segment(), Register::FS | Register::GS)
}
