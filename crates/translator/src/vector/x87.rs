//! x87 instructions that need more than a thunk: WAIT, and those that store the environment.

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::arena;
use super::encoding::Encoding;
use super::handlers::{Buffer, gate, wait};
use super::plan::Memory;
use crate::cpu::Cpu;
use crate::insn::Insn;
use crate::interp::Core;
use crate::machine::{Machine, Stop, VectorKind};

/// WAIT, FWAIT.
pub(super) fn fwait<M: Machine>(core: &mut Core<M>, _: &Insn<M>) -> Result<(), Stop> {
    gate(core, VectorKind::Wait)?;
    wait(core)
}

/// Gives x87 state that was loaded from guest memory the form in which the processor keeps it: reserved
/// bits of the control word, the summary bits of the status word, registers of ten bytes. FNSTCW makes the
/// host do it: it changes nothing and waits for nothing.
pub(super) fn normalise(cpu: &mut Cpu) {
    let operand = MemoryOperand::with_base(Register::RAX);
    let fnstcw = Instruction::with1(Code::Fnstcw_m2byte, operand);
    let encoding = fnstcw.ok().as_ref().and_then(Encoding::of).expect("FNSTCW has an encoding");
    run_without_operand::<2>(cpu, encoding);
}

/// Clears the instruction and data pointers in what FNSTENV or FNSAVE has stored (SDM volume 1, 8.1.10); no
/// other instruction stores operands of these sizes.
pub(super) fn scrub_environment(operand: &mut [u8]) {
    match operand.len() {
        14 | 94 => operand[6..14].fill(0),
        28 | 108 => operand[12..26].fill(0),
        _ => {}
    }
}

/// What every MMX instruction but EMMS does besides its work: all registers become valid and register 0
/// the top of the stack (SDM volume 1, 9.5.1). MOVD to memory does nothing else.
pub(super) fn enter_mmx(cpu: &mut Cpu) {
    let operand = MemoryOperand::with_base(Register::RAX);
    let movd = Instruction::with2(Code::Movd_rm32_mm, operand, Register::MM0);
    let encoding = movd.ok().as_ref().and_then(Encoding::of).expect("MOVD has an encoding");
    run_without_operand::<4>(cpu, encoding);
}

/// Runs a thunk whose memory operand, of `SIZE` bytes, is of no interest.
fn run_without_operand<const SIZE: usize>(cpu: &mut Cpu, encoding: Encoding) {
    let Some((plan, place)) = arena::find(encoding) else { return };
    assert_eq!(plan.memory, Memory::Store(SIZE));
    let mut buffer = Buffer([0; SIZE]);
    // SAFETY: place and encoding belong together, the buffer has the size of the operand; MXCSR is not
    // used, and acceptable since `FpuState::set_mxcsr` alone writes it.
    unsafe { arena::run(encoding, place, cpu, buffer.0.as_mut_ptr()) };
}
