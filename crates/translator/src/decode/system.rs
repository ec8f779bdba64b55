//! Instructions that the [`Machine`] executes: which, and where their operands are.
//!
//! Fields of the [`Insn`] that [`Machine::system`] finds filled in. *Size* is the operand size:
//! `InsnFlags::WIDE` for 64 bits, `SMALL` for 16, neither for 32. *r/m source* is a register in `src`, or
//! with `InsnFlags::MEMORY` the memory at `core.address(insn)`; *r/m destination* likewise with `dst`. A
//! register destination is written with the operand size, a memory destination of a selector or machine
//! status word with 16 bits.
//!
//! | Operation | Operands |
//! |---|---|
//! | `In`, `Out` | `aux`: 1, 2 or 4 bytes; `src == Gpr::Rdx`: port in DX, else `src == REG_NONE` and port in `imm`; data in AL, AX, EAX |
//! | `Ins`, `Outs` | `aux`: bytes; `REP`; `ADDR16`, `ADDR32` or neither: width of (R)DI, (R)SI, (R)CX; `seg`: segment of the memory operand (ES for INS) |
//! | `Rdpid` | `dst`, always written whole |
//! | `MovToCr`, `MovToDr` | `src`; number in `aux`; `WIDE` in 64-bit mode |
//! | `MovFromCr`, `MovFromDr` | `dst`; number in `aux`; `WIDE` in 64-bit mode |
//! | `Lmsw`, `Lldt`, `Ltr`, `Verr`, `Verw` | 16-bit r/m source |
//! | `Smsw`, `Sldt`, `Str` | r/m destination; size |
//! | `Lar`, `Lsl` | `dst`; 16-bit r/m source; size |
//! | `Invlpg` | memory operand, not accessed |
//! | `Invpcid` | `src`: the type; memory operand of 16 bytes |
//! | `Lgdt`, `Lidt`, `Sgdt`, `Sidt` | memory operand: 2 bytes limit, then 8 bytes base with `WIDE`, else 4 (of which LGDT and LIDT use 3 with `SMALL`) |
//! | `Sysret`, `Sysexit` | `WIDE`: return to 64-bit mode |
//! | `Int` | vector in `imm` |
//! | `Iret` | size |
//! | `MovToSeg` | segment's number in `aux`; 16-bit r/m source |
//! | `MovFromSeg` | segment's number in `aux`; r/m destination; size |
//! | `PushSeg`, `PopSeg` | segment's number in `aux`; size of the stack slot |
//! | `LoadFarPointer` | segment's number in `aux`; `dst`; size of the offset; memory operand: offset, then selector |
//! | `JmpFar`, `CallFar` | size of the offset; with `MEMORY` a memory operand as above, else offset in `imm` and selector in `aux` |
//! | `RetFar` | size; bytes to release in `imm` |
//! | `Rdfsbase`, `Rdgsbase` | `dst`; size |
//! | `Wrfsbase`, `Wrgsbase` | `src`; size |
//! | `Rdrand`, `Rdseed` | `dst`; size. CF = 1 and the other status flags 0 on success; `dst` and all of them 0 otherwise |
//! | `Monitor` | `seg` and `ADDR16`, `ADDR32` of the address in (R)AX |
//! | `Vmcall` | `aux`: 1 for the AMD form (VMMCALL) |
//! | `Pushf`, `Popf` | size |
//! | all others | none |

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::operands::{
    address_size_flag, blank, has_memory, is_64, operand_slot, segment_number, segment_slot,
    string_operand,
};
use crate::cpu::REG_NONE;
use crate::insn::{Handler, Insn, InsnFlags};
use crate::machine::{Machine, SystemOp};

/// The instruction, and whether a block ends with it; `None` where it is not a system instruction.
pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<(Insn<M>, bool)> {
    let op = operation(instr)?;
    let mut insn = blank(instr, handler(op));
    operands(&mut insn, op, instr);
    Some((insn, ends_block(op)))
}

/// Whether a block ends with the instruction, which may not be one of these.
pub(super) fn ends_block_with(instr: &Instruction) -> bool {
    operation(instr).is_some_and(ends_block)
}

/// An encoding that does not exist: #UD.
pub(super) fn undefined<M: Machine>(instr: &Instruction) -> Insn<M> {
    blank(instr, handler(SystemOp::Undefined))
}

/// The handler that hands `op` to the machine.
fn handler<M: Machine>(op: SystemOp) -> Handler<M> {
    macro_rules! handlers {
        ($($name:ident)*) => {
            match op {
                $(SystemOp::$name => |core, insn| M::system(core, SystemOp::$name, insn),)*
            }
        };
    }
    handlers! {
        In Out Ins Outs Cli Sti Hlt Cpuid Rdtsc Rdtscp Rdpid Rdpmc Rdmsr Wrmsr MovToCr MovFromCr MovToDr
        MovFromDr Clts Lmsw Smsw Invlpg Invpcid Invd Wbinvd Lgdt Lidt Lldt Ltr Sgdt Sidt Sldt Str Lar Lsl
        Verr Verw Swapgs Syscall Sysret Sysenter Sysexit Int Int1 Int3 Into Iret MovToSeg MovFromSeg PopSeg
        PushSeg LoadFarPointer JmpFar CallFar RetFar Rdfsbase Rdgsbase Wrfsbase Wrgsbase Rdrand Rdseed
        Xgetbv Xsetbv Monitor Mwait Vmcall Clac Stac Popf Pushf Undefined
    }
}

/// Which operation an instruction is.
fn operation(instr: &Instruction) -> Option<SystemOp> {
    use Mnemonic as N;
    use SystemOp as Op;
    Some(match instr.mnemonic() {
        N::In => Op::In,
        N::Out => Op::Out,
        N::Insb | N::Insw | N::Insd => Op::Ins,
        N::Outsb | N::Outsw | N::Outsd => Op::Outs,
        N::Cli => Op::Cli,
        N::Sti => Op::Sti,
        N::Hlt => Op::Hlt,
        N::Cpuid => Op::Cpuid,
        N::Rdtsc => Op::Rdtsc,
        N::Rdtscp => Op::Rdtscp,
        N::Rdpid => Op::Rdpid,
        N::Rdpmc => Op::Rdpmc,
        N::Rdmsr => Op::Rdmsr,
        N::Wrmsr => Op::Wrmsr,
        N::Mov => moves(instr)?,
        N::Clts => Op::Clts,
        N::Lmsw => Op::Lmsw,
        N::Smsw => Op::Smsw,
        N::Invlpg => Op::Invlpg,
        N::Invpcid => Op::Invpcid,
        N::Invd => Op::Invd,
        N::Wbinvd | N::Wbnoinvd => Op::Wbinvd,
        N::Lgdt => Op::Lgdt,
        N::Lidt => Op::Lidt,
        N::Lldt => Op::Lldt,
        N::Ltr => Op::Ltr,
        N::Sgdt => Op::Sgdt,
        N::Sidt => Op::Sidt,
        N::Sldt => Op::Sldt,
        N::Str => Op::Str,
        N::Lar => Op::Lar,
        N::Lsl => Op::Lsl,
        N::Verr => Op::Verr,
        N::Verw => Op::Verw,
        N::Swapgs => Op::Swapgs,
        N::Syscall => Op::Syscall,
        N::Sysret | N::Sysretq => Op::Sysret,
        N::Sysenter => Op::Sysenter,
        N::Sysexit | N::Sysexitq => Op::Sysexit,
        N::Int => Op::Int,
        N::Int1 => Op::Int1,
        N::Int3 => Op::Int3,
        N::Into => Op::Into,
        N::Iret | N::Iretd | N::Iretq => Op::Iret,
        N::Push if is_segment(instr, 0) => Op::PushSeg,
        N::Pop if is_segment(instr, 0) => Op::PopSeg,
        N::Lds | N::Les | N::Lfs | N::Lgs | N::Lss => Op::LoadFarPointer,
        N::Jmp if is_far(instr.code()) => Op::JmpFar,
        N::Call if is_far(instr.code()) => Op::CallFar,
        N::Retf => Op::RetFar,
        N::Rdfsbase => Op::Rdfsbase,
        N::Rdgsbase => Op::Rdgsbase,
        N::Wrfsbase => Op::Wrfsbase,
        N::Wrgsbase => Op::Wrgsbase,
        N::Rdrand => Op::Rdrand,
        N::Rdseed => Op::Rdseed,
        N::Xgetbv => Op::Xgetbv,
        N::Xsetbv => Op::Xsetbv,
        N::Monitor => Op::Monitor,
        N::Mwait => Op::Mwait,
        N::Vmcall | N::Vmmcall => Op::Vmcall,
        N::Clac => Op::Clac,
        N::Stac => Op::Stac,
        N::Popf | N::Popfd | N::Popfq => Op::Popf,
        N::Pushf | N::Pushfd | N::Pushfq => Op::Pushf,
        N::Ud0 | N::Ud1 | N::Ud2 => Op::Undefined,
        _ => return None,
    })
}

/// MOV is a system instruction where an operand is a segment, control or debug register.
fn moves(instr: &Instruction) -> Option<SystemOp> {
    let register = |op| match instr.op_kind(op) {
        OpKind::Register => instr.op_register(op),
        _ => Register::None,
    };
    let (to, from) = (register(0), register(1));
    match () {
        () if to.is_segment_register() => Some(SystemOp::MovToSeg),
        () if from.is_segment_register() => Some(SystemOp::MovFromSeg),
        () if to.is_cr() => Some(SystemOp::MovToCr),
        () if from.is_cr() => Some(SystemOp::MovFromCr),
        () if to.is_dr() => Some(SystemOp::MovToDr),
        () if from.is_dr() => Some(SystemOp::MovFromDr),
        () => None,
    }
}

fn is_segment(instr: &Instruction, op: u32) -> bool {
    instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_segment_register()
}

fn is_far(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_ptr1616
            | Code::Jmp_ptr1632
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_ptr1616
            | Code::Call_ptr1632
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    )
}

/// Operations after which mode, translations, privilege, the interrupt window or RIP may be different.
fn ends_block(op: SystemOp) -> bool {
    use SystemOp as Op;
    !matches!(
        op,
        Op::In
            | Op::Out
            | Op::Cli
            | Op::Sti
            | Op::Cpuid
            | Op::Rdtsc
            | Op::Rdtscp
            | Op::Rdpid
            | Op::Rdpmc
            | Op::Rdmsr
            | Op::MovFromCr
            | Op::MovFromDr
            | Op::Smsw
            | Op::Sgdt
            | Op::Sidt
            | Op::Sldt
            | Op::Str
            | Op::Lar
            | Op::Lsl
            | Op::Verr
            | Op::Verw
            | Op::Swapgs
            | Op::MovFromSeg
            | Op::PushSeg
            | Op::Rdfsbase
            | Op::Rdgsbase
            | Op::Wrfsbase
            | Op::Wrgsbase
            | Op::Rdrand
            | Op::Rdseed
            | Op::Xgetbv
            | Op::Pushf
    )
}

/// Lays out the operands as the table at the top says.
fn operands<M: Machine>(insn: &mut Insn<M>, op: SystemOp, instr: &Instruction) {
    use SystemOp as Op;
    if has_memory(instr) {
        insn.flags |= InsnFlags::MEMORY;
    }
    insn.flags |= size_flag(operand_size(op, instr));
    match op {
        Op::In => port(insn, instr, 1, 0),
        Op::Out => port(insn, instr, 0, 1),
        Op::Ins => string(insn, instr, 0),
        Op::Outs => string(insn, instr, 1),
        Op::MovToCr | Op::MovToDr => {
            insn.src = operand_slot(instr, 1);
            insn.aux = instr.op_register(0).number() as u32;
        }
        Op::MovFromCr | Op::MovFromDr => {
            insn.dst = operand_slot(instr, 0);
            insn.aux = instr.op_register(1).number() as u32;
        }
        Op::Lmsw | Op::Lldt | Op::Ltr | Op::Verr | Op::Verw | Op::Wrfsbase | Op::Wrgsbase => {
            insn.src = operand_slot(instr, 0);
        }
        Op::Smsw
        | Op::Sldt
        | Op::Str
        | Op::Rdpid
        | Op::Rdfsbase
        | Op::Rdgsbase
        | Op::Rdrand
        | Op::Rdseed => insn.dst = operand_slot(instr, 0),
        Op::Lar | Op::Lsl => {
            insn.dst = operand_slot(instr, 0);
            insn.src = operand_slot(instr, 1);
        }
        Op::Invpcid => insn.src = operand_slot(instr, 0),
        Op::Int => insn.imm = instr.immediate(0),
        Op::RetFar if instr.op_count() == 1 => insn.imm = instr.immediate(0),
        Op::MovToSeg => {
            insn.aux = segment_number(instr.op_register(0)).into();
            insn.src = operand_slot(instr, 1);
        }
        Op::MovFromSeg => {
            insn.aux = segment_number(instr.op_register(1)).into();
            insn.dst = operand_slot(instr, 0);
        }
        Op::PushSeg | Op::PopSeg => {
            insn.aux = segment_number(instr.op_register(0)).into();
        }
        Op::LoadFarPointer => {
            insn.aux = far_pointer_segment(instr.mnemonic());
            insn.dst = operand_slot(instr, 0);
        }
        Op::JmpFar | Op::CallFar => far_target(insn, instr),
        Op::Monitor => {
            insn.seg = segment_slot(instr, monitor_segment(instr));
            insn.flags |= address_size_flag(instr, monitor_address_size(instr.code()));
        }
        Op::Vmcall => insn.aux = u32::from(instr.mnemonic() == Mnemonic::Vmmcall),
        _ => {}
    }
}

/// `aux`: bytes of operand `data`; the port of operand `port` in `imm`, or DX in `src`.
fn port<M: Machine>(insn: &mut Insn<M>, instr: &Instruction, port: u32, data: u32) {
    insn.aux = instr.op_register(data).size() as u32;
    if instr.op_kind(port) == OpKind::Register {
        insn.src = operand_slot(instr, port);
    } else {
        insn.imm = instr.immediate(port);
        insn.src = REG_NONE;
    }
}

fn string<M: Machine>(insn: &mut Insn<M>, instr: &Instruction, memory: u32) {
    insn.aux = instr.memory_size().size() as u32;
    let (segment, size) = string_operand(instr, memory);
    insn.seg = segment_slot(instr, segment);
    insn.flags |= address_size_flag(instr, size);
}

fn far_pointer_segment(mnemonic: Mnemonic) -> u32 {
    match mnemonic {
        Mnemonic::Les => 0,
        Mnemonic::Lss => 2,
        Mnemonic::Lds => 3,
        Mnemonic::Lfs => 4,
        _ => 5,
    }
}

fn far_target<M: Machine>(insn: &mut Insn<M>, instr: &Instruction) {
    match instr.op_kind(0) {
        OpKind::FarBranch16 => {
            insn.imm = instr.far_branch16().into();
            insn.aux = instr.far_branch_selector().into();
        }
        OpKind::FarBranch32 => {
            insn.imm = instr.far_branch32().into();
            insn.aux = instr.far_branch_selector().into();
        }
        _ => {}
    }
}

fn monitor_segment(instr: &Instruction) -> Register {
    match instr.segment_prefix() {
        Register::None => Register::DS,
        prefix => prefix,
    }
}

fn monitor_address_size(code: Code) -> usize {
    match code {
        Code::Monitorw => 2,
        Code::Monitord => 4,
        _ => 8,
    }
}

fn size_flag(bytes: usize) -> u8 {
    match bytes {
        2 => InsnFlags::SMALL,
        8 => InsnFlags::WIDE,
        _ => 0,
    }
}

/// Bytes of the operand, where [`SystemOp`] has several sizes.
fn operand_size(op: SystemOp, instr: &Instruction) -> usize {
    use SystemOp as Op;
    match op {
        Op::MovToCr | Op::MovFromCr | Op::MovToDr | Op::MovFromDr => {
            if is_64(instr) {
                8
            } else {
                4
            }
        }
        Op::Smsw
        | Op::Sldt
        | Op::Str
        | Op::MovFromSeg
        | Op::Lar
        | Op::Lsl
        | Op::LoadFarPointer
        | Op::Rdfsbase
        | Op::Rdgsbase
        | Op::Wrfsbase
        | Op::Wrgsbase
        | Op::Rdrand
        | Op::Rdseed
            if instr.op_kind(0) == OpKind::Register =>
        {
            instr.op_register(0).size()
        }
        _ => code_size(instr.code()),
    }
}

/// The operand size in an iced code name; 4 where there is only one.
fn code_size(code: Code) -> usize {
    match code {
        Code::Iretw
        | Code::Retfw
        | Code::Retfw_imm16
        | Code::Pushfw
        | Code::Popfw
        | Code::Jmp_ptr1616
        | Code::Jmp_m1616
        | Code::Call_ptr1616
        | Code::Call_m1616
        | Code::Lgdt_m1632_16
        | Code::Lidt_m1632_16
        | Code::Sgdt_m1632_16
        | Code::Sidt_m1632_16
        | Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS
        | Code::Popw_ES
        | Code::Popw_CS
        | Code::Popw_SS
        | Code::Popw_DS
        | Code::Popw_FS
        | Code::Popw_GS => 2,
        Code::Iretq
        | Code::Retfq
        | Code::Retfq_imm16
        | Code::Pushfq
        | Code::Popfq
        | Code::Jmp_m1664
        | Code::Call_m1664
        | Code::Lgdt_m1664
        | Code::Lidt_m1664
        | Code::Sgdt_m1664
        | Code::Sidt_m1664
        | Code::Pushq_FS
        | Code::Pushq_GS
        | Code::Popq_FS
        | Code::Popq_GS
        | Code::Sysretq
        | Code::Sysexitq => 8,
        _ => 4,
    }
}
