//! Fast system calls, and the bases of FS and GS.

use translator::{InsnFlags, RSP, Stop, Width};
use x86::{Gpr, cr4, efer, paging, rflags};

use super::{SystemInsn, go_on, operand_size, privileged, set_register};
use crate::segments;
use crate::system::Core;

const FS: usize = 4;
const GS: usize = 5;
const RCX: usize = Gpr::Rcx as usize;
const R11: usize = Gpr::R11 as usize;

pub(super) fn syscall(core: &mut Core) -> Result<(), Stop> {
    let regs = &core.machine.regs;
    // Intel's processors have SYSCALL in 64-bit mode only.
    if regs.efer & efer::SCE == 0 || core.cpu.width != Width::Bits64 {
        return Err(core.machine.ud());
    }
    let [cs, ss] = segments::call(regs.star);
    let (target, mask) = (regs.lstar, regs.sfmask);
    core.cpu.regs[RCX] = core.cpu.rip();
    core.cpu.regs[R11] = core.cpu.rflags & !rflags::RF;
    core.cpu.set_flags(mask | rflags::RF, 0);
    core.cpu.segs[segments::SS] = ss;
    segments::enter_code(core, cs, 0);
    core.cpu.set_rip(target);
    core.machine.no_trap = mask & rflags::TF != 0;
    go_on(core)
}

pub(super) fn sysret(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let regs = &core.machine.regs;
    if regs.efer & efer::SCE == 0 || core.cpu.width != Width::Bits64 {
        return Err(core.machine.ud());
    }
    privileged(core)?;
    let wide = insn.flags & InsnFlags::WIDE != 0;
    let target = core.cpu.regs[RCX];
    if wide && !paging::is_canonical(target) {
        return Err(core.machine.gp(0));
    }
    let [cs, ss] = segments::call_return(core.machine.regs.star, wide);
    // RF and VM stay clear; bit 1 is set (SDM volume 2, SYSRET).
    core.cpu.rflags = core.cpu.regs[R11] & 0x003c_7fd7 | rflags::FIXED;
    core.cpu.segs[segments::SS] = ss;
    segments::enter_code(core, cs, 3);
    core.cpu.set_rip(if wide { target } else { target & 0xffff_ffff });
    core.machine.open_window();
    go_on(core)
}

pub(super) fn sysenter(core: &mut Core) -> Result<(), Stop> {
    let regs = &core.machine.regs;
    let selector = regs.sysenter_cs as u16 & !3;
    if segments::real_mode(core) || selector == 0 {
        return Err(core.machine.gp(0));
    }
    let (rsp, rip, long) = (regs.sysenter_esp, regs.sysenter_eip, regs.long_mode());
    core.cpu.set_flags(rflags::VM | rflags::IF | rflags::RF, 0);
    core.cpu.segs[segments::SS] = segments::flat(selector + 8, false, false, 0);
    segments::enter_code(core, segments::flat(selector, true, long, 0), 0);
    core.cpu.regs[RSP as usize] = if long { rsp } else { rsp & 0xffff_ffff };
    core.cpu.set_rip(rip);
    Err(Stop::End)
}

pub(super) fn sysexit(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let selector = core.machine.regs.sysenter_cs as u16;
    if selector & !3 == 0 {
        return Err(core.machine.gp(0));
    }
    privileged(core)?;
    let wide = insn.flags & InsnFlags::WIDE != 0;
    let (rip, rsp) = (core.cpu.regs[Gpr::Rdx as usize], core.cpu.regs[RCX]);
    if wide && !(paging::is_canonical(rip) && paging::is_canonical(rsp)) {
        return Err(core.machine.gp(0));
    }
    let cs = selector.wrapping_add(if wide { 32 } else { 16 }) | 3;
    core.cpu.segs[segments::SS] = segments::flat(cs.wrapping_add(8), false, false, 3);
    segments::enter_code(core, segments::flat(cs, true, wide, 3), 3);
    core.cpu.regs[RSP as usize] = if wide { rsp } else { rsp & 0xffff_ffff };
    core.cpu.set_rip(rip);
    Err(Stop::End)
}

pub(super) fn swapgs(core: &mut Core) -> Result<(), Stop> {
    if core.cpu.width != Width::Bits64 {
        return Err(core.machine.ud());
    }
    privileged(core)?;
    std::mem::swap(&mut core.cpu.segs[GS].base, &mut core.cpu.kernel_gs_base);
    Ok(())
}

fn check_base_instructions(core: &mut Core) -> Result<(), Stop> {
    let enabled = core.machine.regs.cr4 & cr4::FSGSBASE != 0;
    if enabled && core.cpu.width == Width::Bits64 { Ok(()) } else { Err(core.machine.ud()) }
}

pub(super) fn read_base(core: &mut Core, insn: &SystemInsn, gs: bool) -> Result<(), Stop> {
    check_base_instructions(core)?;
    let base = core.cpu.segs[if gs { GS } else { FS }].base;
    set_register(core, insn.dst, operand_size(insn), base);
    Ok(())
}

pub(super) fn write_base(core: &mut Core, insn: &SystemInsn, gs: bool) -> Result<(), Stop> {
    check_base_instructions(core)?;
    let mut base = core.cpu.regs[(insn.src & 31) as usize];
    if insn.flags & InsnFlags::WIDE == 0 {
        base &= 0xffff_ffff;
    }
    if !paging::is_canonical(base) {
        return Err(core.machine.gp(0));
    }
    core.cpu.segs[if gs { GS } else { FS }].base = base;
    Ok(())
}
