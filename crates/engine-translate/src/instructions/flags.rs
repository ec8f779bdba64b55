//! RFLAGS by privilege: CLI, STI, PUSHF, POPF.

use translator::Stop;
use x86::rflags;

use super::{SystemInsn, go_on, operand_size, stack_load, stack_store};
use crate::segments;
use crate::system::Core;

/// What POPF may change besides what privilege decides.
const ALWAYS: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;

fn iopl(core: &Core) -> u8 {
    (core.cpu.rflags >> 12 & 3) as u8
}

fn check_iopl(core: &mut Core) -> Result<(), Stop> {
    if core.cpu.cpl > iopl(core) { Err(core.machine.gp(0)) } else { Ok(()) }
}

pub(super) fn cli(core: &mut Core) -> Result<(), Stop> {
    check_iopl(core)?;
    core.cpu.set_flags(rflags::IF, 0);
    Ok(())
}

pub(super) fn sti(core: &mut Core) -> Result<(), Stop> {
    check_iopl(core)?;
    if !core.cpu.flag(rflags::IF) {
        core.cpu.shadow = true;
    }
    core.cpu.set_flags(rflags::IF, rflags::IF);
    core.machine.open_window();
    // Where nothing waits the next instruction may follow at once. What comes meanwhile is held back for
    // another one then, if somebody looks: nothing that a guest could rely on.
    go_on(core)
}

pub(super) fn pushf(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let size = operand_size(insn);
    let value = core.cpu.rflags & !(rflags::RF | rflags::VM);
    stack_store(core, -(size as i64), size, value)?;
    let rsp = segments::rsp(core).wrapping_sub(size as u64);
    segments::set_rsp(core, rsp);
    Ok(())
}

pub(super) fn popf(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let size = operand_size(insn);
    let value = stack_load(core, 0, size)?;
    let rsp = segments::rsp(core).wrapping_add(size as u64);
    segments::set_rsp(core, rsp);
    let mut mask = writable(core);
    if size == 2 {
        mask &= 0xffff;
    }
    // RF is cleared by POPF (SDM volume 2).
    core.cpu.set_flags(mask | rflags::RF, value & !rflags::RF);
    let (cpl, flags) = (core.cpu.cpl, core.cpu.rflags);
    core.machine.set_privilege(cpl, flags);
    core.machine.open_window();
    go_on(core)
}

/// The flags that a return or POPF at this privilege may change.
pub(super) fn writable(core: &Core) -> u64 {
    let mut mask = ALWAYS;
    if core.cpu.cpl == 0 {
        mask |= rflags::IOPL;
    }
    if core.cpu.cpl <= iopl(core) {
        mask |= rflags::IF;
    }
    mask
}
