//! Control and debug registers, TLB control, HLT.

use translator::{InsnFlags, Machine, Stop};
use x86::{Segment, cr0, cr4, efer, paging};

use super::{SystemInsn, go_on, go_on_in, operand_size, privileged, selector_source, set_register};
use crate::segments;
use crate::system::Core;
use crate::walk::PHYSICAL_BITS;

/// CR4 bits that this processor has.
pub(crate) const CR4_KNOWN: u64 = cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP;

/// A MOV to CR3 with this bit keeps the translations of the new process-context identifier.
const CR3_KEEP: u64 = 1 << 63;

pub(super) fn hlt(core: &mut Core) -> Result<(), Stop> {
    privileged(core)?;
    core.machine.halted = true;
    // It is the instruction behind an STI that holds interrupts back, and is over.
    core.cpu.shadow = false;
    core.machine.halts += 1;
    Err(Stop::End)
}

pub(super) fn mov_from_cr(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let regs = &core.machine.regs;
    let value = match insn.aux {
        0 => regs.cr0,
        2 => regs.cr2,
        3 => regs.cr3,
        4 => regs.cr4,
        8 => core.machine.apic.cr8(),
        _ => return Err(core.machine.ud()),
    };
    set_register(core, insn.dst, operand_size(insn), value);
    Ok(())
}

pub(super) fn mov_to_cr(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let mut value = core.cpu.regs[(insn.src & 31) as usize];
    if insn.flags & InsnFlags::WIDE == 0 {
        value &= 0xffff_ffff;
    }
    match insn.aux {
        0 => set_cr0(core, value)?,
        2 => core.machine.regs.cr2 = value,
        3 => {
            let here = core.cpu.rip().wrapping_sub(insn.len.into());
            let before = core.machine.tlb.fetch(here);
            set_cr3(core, value)?;
            return go_on_in(core, here, before);
        }
        4 => set_cr4(core, value)?,
        8 if value > 0xf => return Err(core.machine.gp(0)),
        8 => {
            core.machine.apic.set_cr8(value);
            core.machine.open_window();
        }
        _ => return Err(core.machine.ud()),
    }
    Err(Stop::End)
}

fn set_cr0(core: &mut Core, value: u64) -> Result<(), Stop> {
    let old = core.machine.regs.cr0;
    let value = value | cr0::ET;
    let bad = value >> 32 != 0
        || value & cr0::PG != 0 && value & cr0::PE == 0
        || value & cr0::NW != 0 && value & cr0::CD == 0
        || value & cr0::PG == 0 && old & cr0::PG != 0 && core.machine.regs.cr4 & cr4::PCIDE != 0;
    if bad {
        return Err(core.machine.gp(0));
    }
    if (value ^ old) & cr0::PG != 0 {
        switch_paging(core, value & cr0::PG != 0)?;
    }
    core.machine.regs.cr0 = value;
    if (value ^ old) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
        core.machine.flush_all();
        segments::update_widths(core);
    }
    let (cpl, flags) = (core.cpu.cpl, core.cpu.rflags);
    core.machine.set_privilege(cpl, flags);
    Ok(())
}

/// Long mode begins and ends with paging (SDM volume 3, 9.8.5).
fn switch_paging(core: &mut Core, on: bool) -> Result<(), Stop> {
    let regs = &core.machine.regs;
    let cs = core.cpu.segs[segments::CS];
    if on && regs.efer & efer::LME != 0 {
        if regs.cr4 & cr4::PAE == 0 || cs.is_long() {
            return Err(core.machine.gp(0));
        }
        core.machine.regs.efer |= efer::LMA;
    } else if on {
        // Two- and three-level 32-bit paging: no guest of this engine uses it.
        return Err(core.machine.gp(0));
    } else {
        if cs.attributes & Segment::LONG != 0 && regs.long_mode() {
            return Err(core.machine.gp(0));
        }
        core.machine.regs.efer &= !efer::LMA;
    }
    Ok(())
}

fn set_cr3(core: &mut Core, value: u64) -> Result<(), Stop> {
    let pcid = core.machine.regs.cr4 & cr4::PCIDE != 0;
    let keep = pcid && value & CR3_KEEP != 0;
    let value = if pcid { value & !CR3_KEEP } else { value };
    if value >> PHYSICAL_BITS != 0 {
        return Err(core.machine.gp(0));
    }
    core.machine.regs.cr3 = value;
    tell_root(core, value);
    core.machine.switch_space();
    if !keep {
        let asid = core.machine.regs.asid();
        core.machine.tlb.flush_asid(asid);
    }
    Ok(())
}

fn tell_root(core: &Core, cr3: u64) {
    let memory = &core.machine.shared.memory;
    if let Some(events) = memory.events()
        && let Some(root) = memory.frame_of(memory::Gpa(cr3 & paging::ADDRESS))
    {
        events.note_root(root, core.machine.id);
    }
}

fn set_cr4(core: &mut Core, value: u64) -> Result<(), Stop> {
    let regs = &core.machine.regs;
    let old = regs.cr4;
    let bad = value & !CR4_KNOWN != 0
        || regs.long_mode() && value & cr4::PAE == 0
        || value & !old & cr4::PCIDE != 0 && (!regs.long_mode() || regs.cr3 & 0xfff != 0);
    if bad {
        return Err(core.machine.gp(0));
    }
    core.machine.regs.cr4 = value;
    let translation = cr4::PGE | cr4::PSE | cr4::PAE | cr4::PCIDE | cr4::SMEP;
    if (value ^ old) & translation != 0 {
        core.machine.flush_all();
    }
    core.machine.switch_space();
    Ok(())
}

pub(super) fn clts(core: &mut Core) -> Result<(), Stop> {
    privileged(core)?;
    core.machine.regs.cr0 &= !cr0::TS;
    Ok(())
}

pub(super) fn lmsw(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let value = u64::from(selector_source(core, insn)?);
    // LMSW sets PE but cannot clear it.
    let old = core.machine.regs.cr0;
    let new = old & !(cr0::MP | cr0::EM | cr0::TS) | value & 0xf;
    set_cr0(core, new)?;
    Err(Stop::End)
}

pub(super) fn smsw(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let value = core.machine.regs.cr0;
    if insn.flags & InsnFlags::MEMORY != 0 {
        let at = core.address(insn);
        return core.machine.store(at, value as u16);
    }
    set_register(core, insn.dst, operand_size(insn), value);
    Ok(())
}

pub(super) fn mov_from_dr(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let number = debug_register(core, insn.aux)?;
    core.machine.check_general_detect()?;
    let value = core.machine.regs.debug[number];
    set_register(core, insn.dst, operand_size(insn), value);
    Ok(())
}

pub(super) fn mov_to_dr(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let number = debug_register(core, insn.aux)?;
    core.machine.check_general_detect()?;
    let value = core.cpu.regs[(insn.src & 31) as usize];
    if number >= 4 && value >> 32 != 0 {
        return Err(core.machine.gp(0));
    }
    core.machine.regs.debug[number] = match number {
        4 => value & 0xe00f | 0xffff_0ff0,
        5 => value & !0xd000 | 0x400,
        _ => value,
    };
    core.machine.update_breakpoints(false);
    Err(Stop::End)
}

/// DR4 and DR5 are other names of DR6 and DR7, unless CR4.DE is set.
fn debug_register(core: &mut Core, number: u32) -> Result<usize, Stop> {
    match number {
        0..=3 => Ok(number as usize),
        4 | 5 if core.machine.regs.cr4 & cr4::DE != 0 => Err(core.machine.ud()),
        4 | 6 => Ok(4),
        5 | 7 => Ok(5),
        _ => Err(core.machine.ud()),
    }
}

pub(super) fn invlpg(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let at = core.address(insn);
    if paging::is_canonical(at) {
        core.machine.tlb.flush_page(at);
    }
    // As far away as no page is large.
    let apart = (at ^ core.cpu.rip()) >> 30 != 0;
    if apart { go_on(core) } else { Err(Stop::End) }
}

pub(super) fn invpcid(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let kind = core.cpu.regs[(insn.src & 31) as usize];
    let mut bytes = [0; 16];
    let at = core.address(insn);
    core.machine.load_bytes(at, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (pcid, va) = (descriptor as u64, (descriptor >> 64) as u64);
    let enabled = core.machine.regs.cr4 & cr4::PCIDE != 0;
    let bad = kind > 3
        || pcid >> 12 != 0
        || kind < 2 && !enabled && pcid != 0
        || kind == 0 && !paging::is_canonical(va);
    if bad {
        return Err(core.machine.gp(0));
    }
    match kind {
        0 => core.machine.tlb.flush_page(va),
        1 => core.machine.tlb.flush_asid(pcid),
        _ => core.machine.tlb.flush(),
    }
    Err(Stop::End)
}
