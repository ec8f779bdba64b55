//! IN, OUT, INS, OUTS.

use engine::Exit;
use translator::{InsnFlags, Machine, REG_NONE, Stop};
use x86::{Gpr, rflags};

use super::{SystemInsn, set_register};
use crate::system::Core;

/// I/O permission (SDM volume 1, 19.5): IOPL, else the bitmap in the task-state segment.
fn check(core: &mut Core, port: u16, size: usize) -> Result<(), Stop> {
    if core.cpu.cpl <= (core.cpu.rflags >> 12 & 3) as u8 {
        return Ok(());
    }
    let tr = core.machine.regs.tr;
    let mut word = [0; 2];
    if tr.limit < 0x67 {
        return Err(core.machine.gp(0));
    }
    core.machine.read_bytes_as(tr.base + 0x66, &mut word, false)?;
    let at = u64::from(u16::from_le_bytes(word)) + u64::from(port / 8);
    if at + 1 > u64::from(tr.limit) {
        return Err(core.machine.gp(0));
    }
    core.machine.read_bytes_as(tr.base + at, &mut word, false)?;
    let denied = u16::from_le_bytes(word) >> (port % 8) & ((1 << size) - 1);
    if denied != 0 { Err(core.machine.gp(0)) } else { Ok(()) }
}

fn port(core: &Core, insn: &SystemInsn) -> u16 {
    if insn.src == REG_NONE { insn.imm as u16 } else { core.cpu.regs[Gpr::Rdx as usize] as u16 }
}

pub(super) fn input(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let (port, size) = (port(core, insn), insn.aux as usize);
    check(core, port, size)?;
    let value = core.machine.ask(Exit::PortRead { port, size: size as u8 })?;
    if size == 1 {
        let rax = &mut core.cpu.regs[Gpr::Rax as usize];
        *rax = *rax & !0xff | value & 0xff;
    } else {
        set_register(core, Gpr::Rax as u8, size, value);
    }
    Err(Stop::End)
}

pub(super) fn output(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let (port, size) = (port(core, insn), insn.aux as usize);
    check(core, port, size)?;
    let value = cut(core.cpu.regs[Gpr::Rax as usize], size) as u32;
    core.machine.report(Exit::PortWrite { port, size: size as u8, value });
    Ok(())
}

/// One element at a time: each is an exit anyway.
pub(super) fn input_string(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let Some(repeats) = begin(core, insn)? else { return Ok(()) };
    let (port, size) = (core.cpu.regs[Gpr::Rdx as usize] as u16, insn.aux as usize);
    let at = element(core, insn, Gpr::Rdi);
    // The page is checked first: a device's value must not be lost to a page fault.
    core.machine.probe_store(at, size)?;
    let value = core.machine.ask(Exit::PortRead { port, size: size as u8 })?;
    core.machine.store_bytes(at, &value.to_le_bytes()[..size])?;
    advance(core, insn, Gpr::Rdi);
    end(core, insn, repeats)
}

pub(super) fn output_string(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let Some(repeats) = begin(core, insn)? else { return Ok(()) };
    let (port, size) = (core.cpu.regs[Gpr::Rdx as usize] as u16, insn.aux as usize);
    let mut bytes = [0; 4];
    let at = element(core, insn, Gpr::Rsi);
    core.machine.load_bytes(at, &mut bytes[..size])?;
    let value = u32::from_le_bytes(bytes);
    core.machine.report(Exit::PortWrite { port, size: size as u8, value });
    advance(core, insn, Gpr::Rsi);
    end(core, insn, repeats)
}

/// Checks permission; `None` where the count is zero, else whether there is a count.
fn begin(core: &mut Core, insn: &SystemInsn) -> Result<Option<bool>, Stop> {
    check(core, core.cpu.regs[Gpr::Rdx as usize] as u16, insn.aux as usize)?;
    let repeats = insn.flags & (InsnFlags::REP | InsnFlags::REPNE) != 0;
    let left = core.cpu.regs[Gpr::Rcx as usize] & width(core, insn);
    Ok((!repeats || left != 0).then_some(repeats))
}

fn end(core: &mut Core, insn: &SystemInsn, repeats: bool) -> Result<(), Stop> {
    if !repeats {
        return Err(Stop::End);
    }
    add(core, insn, Gpr::Rcx, u64::MAX);
    let left = core.cpu.regs[Gpr::Rcx as usize] & width(core, insn);
    Err(if left == 0 { Stop::End } else { Stop::Retry })
}

fn width(core: &Core, insn: &SystemInsn) -> u64 {
    let _ = core;
    if insn.flags & InsnFlags::ADDR16 != 0 {
        0xffff
    } else if insn.flags & InsnFlags::ADDR32 != 0 {
        0xffff_ffff
    } else {
        u64::MAX
    }
}

fn element(core: &Core, insn: &SystemInsn, register: Gpr) -> u64 {
    let offset = core.cpu.regs[register as usize] & width(core, insn);
    core.cpu.segs[(insn.seg & 7) as usize].base.wrapping_add(offset)
}

fn advance(core: &mut Core, insn: &SystemInsn, register: Gpr) {
    let size = u64::from(insn.aux);
    let step = if core.cpu.flag(rflags::DF) { size.wrapping_neg() } else { size };
    add(core, insn, register, step);
}

fn add(core: &mut Core, insn: &SystemInsn, register: Gpr, step: u64) {
    let width = width(core, insn);
    let register = &mut core.cpu.regs[register as usize];
    let sum = register.wrapping_add(step) & width;
    *register = if width == 0xffff { *register & !0xffff | sum } else { sum };
}

fn cut(value: u64, size: usize) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value & 0xffff_ffff,
    }
}
