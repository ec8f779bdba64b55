//! MXCSR: unmasked SIMD floating-point exceptions, LDMXCSR and STMXCSR (SDM volume 1, 11.5 and 11.6.4).
//!
//! Known deviations, all in the flags beside one that traps: where an unmasked underflow or overflow traps,
//! PE may be set although the result would be exact if the exponent had no bounds, as the masked response,
//! which is what is run, is inexact; and dot products show the flags of all their steps.

use x86::{Exception, Vector};

use super::handlers::open;
use super::image::{MXCSR_DEFAULT, MXCSR_MASK};
use crate::cpu::Cpu;
use crate::insn::Insn;
use crate::interp::Core;
use crate::machine::{Machine, Stop};

const FLAGS: u32 = 0x3f;
/// IE, DE, ZE: found before the operation is carried out.
const BEFORE: u32 = 0x07;
const UNDERFLOW: u32 = 1 << 4;
const FLUSH_TO_ZERO: u32 = 1 << 15;
/// From a flag to its mask.
const TO_MASK: u32 = 7;

/// Runs an instruction while MXCSR unmasks something. With everything masked it cannot trap and shows in
/// the flags what it would have raised; if that is unmasked, registers go back to what they were.
pub(super) fn unmasked(cpu: &mut Cpu, mut run: impl FnMut(&mut Cpu)) -> Result<(), Exception> {
    let guest = cpu.fpu.mxcsr();
    let enabled = !guest >> TO_MASK & FLAGS;
    let (fpu, regs, rflags) = (cpu.fpu.clone(), cpu.regs, cpu.rflags);
    let mut raises = |cpu: &mut Cpu, control: u32| {
        cpu.fpu.clone_from(&fpu);
        (cpu.regs, cpu.rflags) = (regs, rflags);
        cpu.fpu.set_mxcsr(control);
        run(cpu);
        cpu.fpu.mxcsr() & FLAGS
    };
    let masked = (guest | MXCSR_DEFAULT) & !FLAGS;
    let mut tiny = 0;
    let mut control = masked;
    if enabled & UNDERFLOW != 0 {
        // Unmasked underflow is raised by a tiny result, exact or not, and turns flush-to-zero off. Masked,
        // only flush-to-zero reports a tiny result that is exact.
        tiny = raises(cpu, masked | FLUSH_TO_ZERO) & UNDERFLOW;
        control &= !FLUSH_TO_ZERO;
    }
    let raised = raises(cpu, control) | tiny;
    let trapping = raised & enabled;
    if trapping == 0 {
        cpu.fpu.set_mxcsr(guest | raised);
        return Ok(());
    }
    let shown = if trapping & BEFORE != 0 { raised & BEFORE } else { raised };
    cpu.fpu = fpu;
    (cpu.regs, cpu.rflags) = (regs, rflags);
    cpu.fpu.set_mxcsr(guest | shown);
    Err(Exception::new(Vector::XM))
}

/// LDMXCSR, VLDMXCSR.
pub(super) fn load<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let value = core.machine.load::<u32>(core.address(insn))?;
    if value & !MXCSR_MASK != 0 {
        return Err(core.machine.raise(Exception::GP0));
    }
    core.cpu.fpu.set_mxcsr(value);
    Ok(())
}

/// STMXCSR, VSTMXCSR.
pub(super) fn store<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let value = core.cpu.fpu.mxcsr();
    core.machine.store(core.address(insn), value)
}
