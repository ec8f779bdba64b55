//! Transfers between code segments: INT, IRET, far JMP, CALL and RET.
//!
//! Call gates and task switches are not modelled: a far transfer through one is #GP, as it is for a
//! descriptor of the wrong type. No 64-bit system uses them.

use engine::{DebugStop, Exit};
use translator::{InsnFlags, Stop, Width};
use x86::{Segment, paging, rflags};

use super::descriptor::far_pointer;
use super::flags::writable;
use super::{SystemInsn, go_on, operand_size, stack_load, stack_store};
use crate::exceptions::{self, Source};
use crate::segments::{self, SS};
use crate::system::Core;

pub(super) fn int(core: &mut Core, vector: u8) -> Result<(), Stop> {
    // INT1 is a hardware event by the manual: its gate's privilege is not checked.
    let source = if vector == 1 { Source::Hardware } else { Source::Software };
    exceptions::enter(core, vector, None, source, false)?;
    core.machine.no_trap = true;
    Err(Stop::End)
}

/// INT3, unless it is the debugger's.
pub(super) fn int3(core: &mut Core) -> Result<(), Stop> {
    if core.machine.breakpoints.int3_stops() {
        core.machine.report(Exit::Debug(DebugStop::Int3));
        return Err(Stop::Retry);
    }
    int(core, 3)
}

pub(super) fn into(core: &mut Core) -> Result<(), Stop> {
    if core.cpu.flag(rflags::OF) { int(core, 4) } else { Ok(()) }
}

pub(super) fn iret(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let size = operand_size(insn);
    let step = size as u64;
    let rip = stack_load(core, 0, size)?;
    let cs = stack_load(core, step, size)? as u16;
    let flags = stack_load(core, step * 2, size)?;
    if segments::real_mode(core) {
        core.cpu.segs[segments::CS] = Segment::real(cs, true);
        core.cpu.set_flags(0xffff & !rflags::FIXED, flags);
        let rsp = segments::rsp(core).wrapping_add(step * 3);
        segments::set_rsp(core, rsp);
        core.cpu.set_rip(rip & 0xffff);
        return Err(Stop::End);
    }
    if core.cpu.flag(rflags::NT) {
        return Err(core.machine.gp(0));
    }
    let target = segments::check_code(core, cs, true)?;
    let cpl = (cs & 3) as u8;
    let outer = cpl > core.cpu.cpl;
    check_target(core, &target, rip)?;
    let stack = if outer || core.cpu.width == Width::Bits64 {
        let rsp = stack_load(core, step * 3, size)?;
        let ss = stack_load(core, step * 4, size)? as u16;
        Some((stack_segment(core, &target, ss, cpl)?, rsp))
    } else {
        None
    };
    let mut mask = writable(core) | rflags::RF;
    // It keeps breakpoints from stopping at the next instruction, and nothing else.
    let flags = if core.machine.breakpoints.on_code() { flags } else { flags & !rflags::RF };
    if size == 2 {
        mask &= 0xffff;
    }
    core.cpu.set_flags(mask, flags);
    return_to(core, target, cpl, rip, stack, step * 3);
    core.machine.nmi_blocked = false;
    core.machine.open_window();
    go_on(core)
}

/// The stack segment of a return: a null selector is allowed in 64-bit mode below privilege 3.
fn stack_segment(core: &mut Core, target: &Segment, ss: u16, cpl: u8) -> Result<Segment, Stop> {
    if ss & !3 == 0 {
        if target.is_long() && cpl != 3 && (ss & 3) as u8 == cpl {
            return Ok(Segment { selector: ss, ..segments::null_stack(cpl) });
        }
        return Err(core.machine.gp(0));
    }
    segments::check_stack_for(core, ss, cpl)
}

fn check_target(core: &mut Core, target: &Segment, rip: u64) -> Result<(), Stop> {
    let bad = if target.is_long() && core.machine.regs.long_mode() {
        !paging::is_canonical(rip)
    } else {
        rip & 0xffff_ffff > u64::from(target.limit)
    };
    if bad { Err(core.machine.gp(0)) } else { Ok(()) }
}

/// The end of IRET and RETF, which cannot fail: `stack` where one was popped, else `popped` bytes go.
fn return_to(
    core: &mut Core,
    target: Segment,
    cpl: u8,
    rip: u64,
    stack: Option<(Segment, u64)>,
    popped: u64,
) {
    let outer = cpl > core.cpu.cpl;
    match stack {
        Some((segment, rsp)) => {
            core.cpu.segs[SS] = segment;
            segments::enter_code(core, target, cpl);
            segments::set_rsp(core, rsp);
        }
        None => {
            let rsp = segments::rsp(core).wrapping_add(popped);
            segments::set_rsp(core, rsp);
            segments::enter_code(core, target, cpl);
        }
    }
    core.cpu.set_rip(rip);
    if outer {
        segments::drop_inner_data(core);
    }
}

pub(super) fn ret_far(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let size = operand_size(insn);
    let step = size as u64;
    let rip = stack_load(core, 0, size)?;
    let cs = stack_load(core, step, size)? as u16;
    let popped = step * 2 + insn.imm;
    if segments::real_mode(core) {
        core.cpu.segs[segments::CS] = Segment::real(cs, true);
        let rsp = segments::rsp(core).wrapping_add(popped);
        segments::set_rsp(core, rsp);
        core.cpu.set_rip(rip & 0xffff);
        return Err(Stop::End);
    }
    let target = segments::check_code(core, cs, true)?;
    let cpl = (cs & 3) as u8;
    check_target(core, &target, rip)?;
    let stack = if cpl > core.cpu.cpl {
        let rsp = stack_load(core, popped, size)?;
        let ss = stack_load(core, popped + step, size)? as u16;
        Some((stack_segment(core, &target, ss, cpl)?, rsp.wrapping_add(insn.imm)))
    } else {
        None
    };
    return_to(core, target, cpl, rip, stack, popped);
    Err(Stop::End)
}

fn far_target(core: &mut Core, insn: &SystemInsn) -> Result<(u64, u16), Stop> {
    if insn.flags & InsnFlags::MEMORY != 0 {
        far_pointer(core, insn)
    } else {
        Ok((insn.imm, insn.aux as u16))
    }
}

pub(super) fn jmp_far(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let (rip, cs) = far_target(core, insn)?;
    let target = same_privilege(core, rip, cs)?;
    let cpl = core.cpu.cpl;
    segments::enter_code(core, target, cpl);
    core.cpu.set_rip(rip);
    Err(Stop::End)
}

pub(super) fn call_far(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let (rip, cs) = far_target(core, insn)?;
    let target = same_privilege(core, rip, cs)?;
    let size = operand_size(insn);
    let step = size as i64;
    let old = u64::from(core.cpu.segs[segments::CS].selector);
    let back = core.cpu.rip();
    stack_store(core, -step * 2, size, back)?;
    stack_store(core, -step, size, old)?;
    let rsp = segments::rsp(core).wrapping_sub(step as u64 * 2);
    segments::set_rsp(core, rsp);
    let cpl = core.cpu.cpl;
    segments::enter_code(core, target, cpl);
    core.cpu.set_rip(rip);
    Err(Stop::End)
}

fn same_privilege(core: &mut Core, rip: u64, cs: u16) -> Result<Segment, Stop> {
    if segments::real_mode(core) {
        // The hidden part keeps its limit and size: that is how the kernel's trampoline works.
        return Ok(Segment {
            selector: cs,
            base: u64::from(cs) << 4,
            ..core.cpu.segs[segments::CS]
        });
    }
    let mut target = segments::check_code(core, cs, false)?;
    target.selector = cs & !3 | u16::from(core.cpu.cpl);
    check_target(core, &target, rip)?;
    Ok(target)
}
