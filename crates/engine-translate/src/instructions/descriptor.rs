//! Descriptor tables and segment registers.

use translator::{InsnFlags, Machine, Stop};
use x86::{DescriptorTable, Exception, Segment, Vector, paging, rflags};

use super::{
    SystemInsn, operand_size, privileged, selector_source, set_register, stack_load, stack_store,
};
use crate::segments;
use crate::system::Core;

pub(super) fn load_table(core: &mut Core, insn: &SystemInsn, idt: bool) -> Result<(), Stop> {
    privileged(core)?;
    let wide = insn.flags & InsnFlags::WIDE != 0;
    let mut bytes = [0; 10];
    let at = core.address(insn);
    core.machine.load_bytes(at, &mut bytes[..if wide { 10 } else { 6 }])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = [0; 8];
    base.copy_from_slice(&bytes[2..]);
    let mut base = u64::from_le_bytes(base);
    if insn.flags & InsnFlags::SMALL != 0 {
        base &= 0xff_ffff;
    }
    if !paging::is_canonical(base) {
        return Err(core.machine.gp(0));
    }
    let table = DescriptorTable { base, limit };
    if idt {
        core.machine.regs.idtr = table;
    } else {
        core.machine.regs.gdtr = table;
    }
    Err(Stop::End)
}

pub(super) fn store_table(core: &mut Core, insn: &SystemInsn, idt: bool) -> Result<(), Stop> {
    let regs = &core.machine.regs;
    let table = if idt { regs.idtr } else { regs.gdtr };
    let wide = insn.flags & InsnFlags::WIDE != 0;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let at = core.address(insn);
    core.machine.store_bytes(at, &bytes[..if wide { 10 } else { 6 }])
}

/// A system descriptor of 16 bytes in long mode, 8 before: checked to be of `kind` and present.
fn system_segment(core: &mut Core, selector: u16, kinds: &[u16]) -> Result<Segment, Stop> {
    let code = u32::from(selector & !3);
    let len = if core.machine.regs.long_mode() { 16 } else { 8 };
    let at = segments::descriptor_address(core, selector, len).filter(|_| selector & 4 == 0);
    let Some(at) = at else { return Err(core.machine.gp(code)) };
    let mut bytes = [0; 16];
    core.machine.read_bytes_as(at, &mut bytes[..len as usize], false)?;
    let raw = u128::from_le_bytes(bytes);
    let mut segment = segments::Descriptor(raw as u64).segment(selector);
    segment.base |= ((raw >> 64) as u64) << 32;
    let kind = segment.attributes & 0x1f;
    if !kinds.contains(&kind) || !paging::is_canonical(segment.base) {
        return Err(core.machine.gp(code));
    }
    if segment.attributes & Segment::PRESENT == 0 {
        return Err(core.machine.raise(Exception::with_code(Vector::NP, code)));
    }
    Ok(segment)
}

pub(super) fn lldt(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let selector = selector_source(core, insn)?;
    core.machine.regs.ldtr = if selector & !3 == 0 {
        Segment { selector, ..Segment::default() }
    } else {
        system_segment(core, selector, &[2])?
    };
    Ok(())
}

pub(super) fn ltr(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    privileged(core)?;
    let selector = selector_source(core, insn)?;
    if selector & !3 == 0 {
        return Err(core.machine.gp(0));
    }
    let mut segment = system_segment(core, selector, &[9])?;
    // The descriptor becomes busy.
    let at = segments::descriptor_address(core, selector, 8).unwrap_or_default() + 5;
    let mut byte = [0];
    core.machine.read_bytes_as(at, &mut byte, false)?;
    core.machine.write_bytes_as(at, &[byte[0] | 2], false)?;
    segment.attributes |= 2;
    core.machine.regs.tr = segment;
    Ok(())
}

pub(super) fn store_selector(
    core: &mut Core,
    insn: &SystemInsn,
    selector: u16,
) -> Result<(), Stop> {
    if insn.flags & InsnFlags::MEMORY != 0 {
        let at = core.address(insn);
        return core.machine.store(at, selector);
    }
    set_register(core, insn.dst, operand_size(insn), u64::from(selector));
    Ok(())
}

/// The descriptor that LAR, LSL, VERR and VERW may look at.
fn visible(core: &mut Core, selector: u16) -> Result<Option<(u64, Segment)>, Stop> {
    let Some(descriptor) = segments::descriptor(core, selector)? else { return Ok(None) };
    let segment = descriptor.segment(selector);
    let conforming = segment.attributes & 0x1c == 0x1c;
    let privilege = core.cpu.cpl.max((selector & 3) as u8);
    Ok((conforming || privilege <= segment.dpl()).then_some((descriptor.0, segment)))
}

pub(super) fn lar_lsl(core: &mut Core, insn: &SystemInsn, limit: bool) -> Result<(), Stop> {
    let selector = selector_source(core, insn)?;
    let found = visible(core, selector)?.filter(|(_, segment)| {
        let kind = segment.attributes & 0x1f;
        // Long mode's system descriptors: LDT, available and busy TSS, and for LAR call gates.
        kind & 0x10 != 0 || matches!(kind, 2 | 9 | 11) || kind == 12 && !limit
    });
    core.cpu.set_flags(rflags::ZF, if found.is_some() { rflags::ZF } else { 0 });
    if let Some((raw, segment)) = found {
        let value = if limit { u64::from(segment.limit) } else { raw >> 32 & 0x00ff_ff00 };
        set_register(core, insn.dst, operand_size(insn), value);
    }
    Ok(())
}

pub(super) fn verify(core: &mut Core, insn: &SystemInsn, write: bool) -> Result<(), Stop> {
    let selector = selector_source(core, insn)?;
    let allowed = visible(core, selector)?.is_some_and(|(_, segment)| {
        let kind = segment.attributes;
        let (code, second) = (kind & 8 != 0, kind & 2 != 0);
        kind & 0x10 != 0 && if write { !code && second } else { !code || second }
    });
    core.cpu.set_flags(rflags::ZF, if allowed { rflags::ZF } else { 0 });
    Ok(())
}

pub(super) fn mov_to_seg(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let index = insn.aux as usize;
    if index == segments::CS {
        return Err(core.machine.ud());
    }
    let selector = selector_source(core, insn)?;
    load(core, index, selector)
}

fn load(core: &mut Core, index: usize, selector: u16) -> Result<(), Stop> {
    segments::load_data(core, index, selector)?;
    if index == segments::SS {
        core.cpu.shadow = true;
        // The single-step trap too waits for the next instruction (SDM volume 3, 6.8.3).
        core.machine.no_trap = true;
        return Err(Stop::End);
    }
    Ok(())
}

pub(super) fn mov_from_seg(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let selector = core.cpu.segs[insn.aux as usize & 7].selector;
    store_selector(core, insn, selector)
}

pub(super) fn push_seg(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let size = operand_size(insn);
    let selector = core.cpu.segs[insn.aux as usize & 7].selector;
    // Processors since the Pentium write only the selector of a wider slot; the rest is as it was.
    stack_store(core, -(size as i64), size, u64::from(selector))?;
    let rsp = segments::rsp(core).wrapping_sub(size as u64);
    segments::set_rsp(core, rsp);
    Ok(())
}

pub(super) fn pop_seg(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let size = operand_size(insn);
    let selector = stack_load(core, 0, size)? as u16;
    let index = insn.aux as usize;
    let rsp = segments::rsp(core).wrapping_add(size as u64);
    segments::load_data(core, index, selector)?;
    segments::set_rsp(core, rsp);
    if index == segments::SS {
        core.cpu.shadow = true;
        // The single-step trap too waits for the next instruction (SDM volume 3, 6.8.3).
        core.machine.no_trap = true;
        return Err(Stop::End);
    }
    Ok(())
}

pub(super) fn load_far_pointer(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let (offset, selector) = far_pointer(core, insn)?;
    load(core, insn.aux as usize, selector)
        .or_else(|stop| if stop == Stop::End { Ok(()) } else { Err(stop) })?;
    set_register(core, insn.dst, operand_size(insn), offset);
    Ok(())
}

/// Offset and selector of a far pointer in memory.
pub(super) fn far_pointer(core: &mut Core, insn: &SystemInsn) -> Result<(u64, u16), Stop> {
    let size = operand_size(insn);
    let mut bytes = [0; 10];
    let at = core.address(insn);
    core.machine.load_bytes(at, &mut bytes[..size + 2])?;
    let mut offset = [0; 8];
    offset[..size].copy_from_slice(&bytes[..size]);
    Ok((u64::from_le_bytes(offset), u16::from_le_bytes([bytes[size], bytes[size + 1]])))
}
