//! Segment registers: descriptors, loads and their checks (SDM volume 3, 3.4 and 5).

use translator::{Cpu, RSP, Stop, Width};
use x86::{DescriptorTable, Exception, Segment, Vector, cr0};

use crate::system::Core;

/// Type bits of a descriptor's attributes.
const ACCESSED: u16 = 1;
const WRITABLE_OR_READABLE: u16 = 1 << 1;
const CONFORMING: u16 = 1 << 2;
const CODE: u16 = 1 << 3;

pub(crate) const SS: usize = 2;
pub(crate) const CS: usize = 1;

/// A descriptor as it is in memory.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor(pub(crate) u64);

impl Descriptor {
    pub(crate) fn segment(self, selector: u16) -> Segment {
        let raw = self.0;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let attributes = (raw >> 40) as u16 & 0xf0ff;
        let granular = attributes & 1 << 15 != 0;
        Segment {
            selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if granular { limit << 12 | 0xfff } else { limit },
            attributes,
        }
    }
}

/// The stack segment that an interrupt from outer privilege leaves: a null selector.
pub(crate) fn null_stack(cpl: u8) -> Segment {
    // Present, data, writable, with the privilege that the selector cannot tell.
    let attributes = 0xc093 | u16::from(cpl) << 5;
    Segment { selector: u16::from(cpl), base: 0, limit: u32::MAX, attributes }
}

/// A flat segment, as SYSCALL and its kin load without looking at a descriptor.
pub(crate) fn flat(selector: u16, code: bool, long: bool, dpl: u8) -> Segment {
    let kind = if code { 0x9b } else { 0x93 };
    let size = if long { Segment::LONG } else { Segment::BIG };
    let attributes = kind | 1 << 15 | size | u16::from(dpl) << 5;
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

/// CS and SS that SYSCALL loads, by IA32_STAR.
pub(crate) fn call(star: u64) -> [Segment; 2] {
    let selector = (star >> 32) as u16 & !3;
    [flat(selector, true, true, 0), flat(selector.wrapping_add(8), false, false, 0)]
}

/// CS and SS that SYSRET loads.
pub(crate) fn call_return(star: u64, long: bool) -> [Segment; 2] {
    let base = (star >> 48) as u16;
    let cs = if long { base.wrapping_add(16) } else { base } | 3;
    [flat(cs, true, long, 3), flat(base.wrapping_add(8) | 3, false, false, 3)]
}

/// Reads the descriptor that `selector` names; `None` where it is null or beyond its table.
pub(crate) fn descriptor(core: &mut Core, selector: u16) -> Result<Option<Descriptor>, Stop> {
    let Some(at) = descriptor_address(core, selector, 8) else { return Ok(None) };
    let mut bytes = [0; 8];
    core.machine.read_bytes_as(at, &mut bytes, false)?;
    Ok(Some(Descriptor(u64::from_le_bytes(bytes))))
}

/// The address of the descriptor of `selector`, if `len` bytes of it lie in its table.
pub(crate) fn descriptor_address(core: &Core, selector: u16, len: u64) -> Option<u64> {
    let regs = &core.machine.regs;
    let DescriptorTable { base, limit } = regs.gdtr;
    let (base, limit) = if selector & 4 == 0 {
        (base, u64::from(limit))
    } else {
        (regs.ldtr.base, u64::from(regs.ldtr.limit))
    };
    let at = u64::from(selector & !7);
    let usable =
        selector & !3 != 0 && at + len - 1 <= limit && (selector & 4 == 0 || has_ldt(core));
    usable.then(|| base.wrapping_add(at))
}

fn has_ldt(core: &Core) -> bool {
    core.machine.regs.ldtr.selector & !3 != 0
}

/// Sets the accessed bit in memory, as every load of a code or data segment does.
pub(crate) fn mark_accessed(
    core: &mut Core,
    selector: u16,
    descriptor: Descriptor,
) -> Result<(), Stop> {
    const BIT: u64 = 1 << 40;
    if descriptor.0 & BIT == 0
        && let Some(at) = descriptor_address(core, selector, 8)
    {
        let updated = descriptor.0 | BIT;
        core.machine.write_bytes_as(at, &updated.to_le_bytes(), false)?;
    }
    Ok(())
}

fn fault(core: &mut Core, vector: Vector, selector: u16) -> Stop {
    use translator::Machine;
    core.machine.raise(Exception::with_code(vector, u32::from(selector & !3)))
}

/// Whether segment registers hold paragraphs: no protected mode.
pub(crate) fn real_mode(core: &Core) -> bool {
    core.machine.regs.cr0 & cr0::PE == 0
}

/// MOV or POP to ES, SS, DS, FS, GS (number `index`).
pub(crate) fn load_data(core: &mut Core, index: usize, selector: u16) -> Result<(), Stop> {
    if real_mode(core) {
        let old = core.cpu.segs[index];
        core.cpu.segs[index] = Segment { selector, base: u64::from(selector) << 4, ..old };
        return Ok(());
    }
    let segment = check_data(core, index, selector)?;
    core.cpu.segs[index] = segment;
    if index == SS {
        update_stack_mask(&mut core.cpu);
    }
    Ok(())
}

/// The segment for a data segment register, checked; nothing is changed but the accessed bit.
fn check_data(core: &mut Core, index: usize, selector: u16) -> Result<Segment, Stop> {
    let rpl = (selector & 3) as u8;
    let cpl = core.cpu.cpl;
    if selector & !3 == 0 {
        // A null stack segment is for 64-bit mode below privilege 3 only.
        if index == SS && (core.cpu.width != Width::Bits64 || cpl == 3 || rpl != cpl) {
            return Err(fault(core, Vector::GP, 0));
        }
        let base = if index >= 4 { core.cpu.segs[index].base } else { 0 };
        // The base of FS and GS goes to zero on Intel's processors.
        let base = if index >= 4 { 0 } else { base };
        let attributes = if index == SS { null_stack(rpl).attributes } else { 0 };
        return Ok(Segment { selector, base, limit: 0, attributes });
    }
    let Some(descriptor) = descriptor(core, selector)? else {
        return Err(fault(core, Vector::GP, selector));
    };
    let segment = descriptor.segment(selector);
    let kind = segment.attributes;
    let data = kind & CODE == 0;
    let allowed = kind & Segment::CODE_OR_DATA != 0
        && if index == SS {
            data && kind & WRITABLE_OR_READABLE != 0 && rpl == cpl && segment.dpl() == cpl
        } else {
            let readable = data || kind & WRITABLE_OR_READABLE != 0;
            let open = !data && kind & CONFORMING != 0;
            readable && (open || rpl.max(cpl) <= segment.dpl())
        };
    if !allowed {
        return Err(fault(core, Vector::GP, selector));
    }
    if kind & Segment::PRESENT == 0 {
        let vector = if index == SS { Vector::SS } else { Vector::NP };
        return Err(fault(core, vector, selector));
    }
    mark_accessed(core, selector, descriptor)?;
    Ok(Segment { attributes: kind | ACCESSED, ..segment })
}

/// The code segment of a gate: any privilege up to the current one.
pub(crate) fn code_for_gate(core: &mut Core, selector: u16, ext: u32) -> Result<Segment, Stop> {
    use translator::Machine;
    let code = u32::from(selector & !3) | ext;
    if selector & !3 == 0 {
        return Err(core.machine.gp(ext));
    }
    let Some(descriptor) = descriptor(core, selector)? else {
        return Err(core.machine.gp(code));
    };
    let segment = descriptor.segment(selector);
    let is_code =
        segment.attributes & (Segment::CODE_OR_DATA | CODE) == Segment::CODE_OR_DATA | CODE;
    // A handler runs in 64-bit mode.
    if !is_code || segment.dpl() > core.cpu.cpl || !segment.is_long() || segment.is_big() {
        return Err(core.machine.gp(code));
    }
    if segment.attributes & Segment::PRESENT == 0 {
        return Err(core.machine.raise(Exception::with_code(Vector::NP, code)));
    }
    Ok(segment)
}

/// A code segment for a far transfer at the same privilege (`outer` false), or for a return to `rpl`.
pub(crate) fn check_code(core: &mut Core, selector: u16, outer: bool) -> Result<Segment, Stop> {
    if selector & !3 == 0 {
        return Err(fault(core, Vector::GP, 0));
    }
    let Some(descriptor) = descriptor(core, selector)? else {
        return Err(fault(core, Vector::GP, selector));
    };
    let segment = descriptor.segment(selector);
    let kind = segment.attributes;
    let rpl = (selector & 3) as u8;
    let cpl = core.cpu.cpl;
    let is_code = kind & (Segment::CODE_OR_DATA | CODE) == Segment::CODE_OR_DATA | CODE;
    let conforming = kind & CONFORMING != 0;
    let privilege = match (outer, conforming) {
        (true, true) => rpl >= cpl && segment.dpl() <= rpl,
        (true, false) => rpl >= cpl && segment.dpl() == rpl,
        (false, true) => segment.dpl() <= cpl,
        (false, false) => rpl <= cpl && segment.dpl() == cpl,
    };
    let both = core.machine.regs.long_mode() && segment.is_long() && segment.is_big();
    if !is_code || !privilege || both {
        return Err(fault(core, Vector::GP, selector));
    }
    if kind & Segment::PRESENT == 0 {
        return Err(fault(core, Vector::NP, selector));
    }
    mark_accessed(core, selector, descriptor)?;
    Ok(Segment { attributes: kind | ACCESSED, ..segment })
}

/// The stack segment for a return to privilege `cpl`.
pub(crate) fn check_stack_for(core: &mut Core, selector: u16, cpl: u8) -> Result<Segment, Stop> {
    let inner = std::mem::replace(&mut core.cpu.cpl, cpl);
    let checked = check_data(core, SS, selector);
    core.cpu.cpl = inner;
    checked
}

/// Takes up a new code segment and privilege level, and the widths that follow from them.
pub(crate) fn enter_code(core: &mut Core, segment: Segment, cpl: u8) {
    core.cpu.segs[CS] = segment;
    core.cpu.cpl = cpl;
    update_widths(core);
    let rflags = core.cpu.rflags;
    core.machine.set_privilege(cpl, rflags);
}

/// Derives the widths from CS, SS and the mode.
pub(crate) fn update_widths(core: &mut Core) {
    let cs = core.cpu.segs[CS];
    let width = if core.machine.regs.long_mode() && cs.is_long() {
        Width::Bits64
    } else if cs.is_big() {
        Width::Bits32
    } else {
        Width::Bits16
    };
    // Code of another width is decoded otherwise.
    core.machine.end |= width != core.cpu.width;
    core.cpu.width = width;
    update_stack_mask(&mut core.cpu);
}

pub(crate) fn update_stack_mask(cpu: &mut Cpu) {
    cpu.stack_mask = match cpu.width {
        Width::Bits64 => u64::MAX,
        _ if cpu.segs[SS].is_big() => 0xffff_ffff,
        _ => 0xffff,
    };
}

/// After a return to outer privilege: data segments that it may not use become null (SDM, IRET).
pub(crate) fn drop_inner_data(core: &mut Core) {
    let cpl = core.cpu.cpl;
    for index in [0, 3, 4, 5] {
        let segment = &mut core.cpu.segs[index];
        let kind = segment.attributes;
        let data_or_plain_code = kind & CODE == 0 || kind & CONFORMING == 0;
        if data_or_plain_code && kind & Segment::CODE_OR_DATA != 0 && segment.dpl() < cpl {
            *segment = Segment::default();
        }
    }
}

/// RSP, for those who deal with frames.
pub(crate) fn rsp(core: &Core) -> u64 {
    core.cpu.regs[RSP as usize]
}

/// Sets the part of RSP that the stack width names.
pub(crate) fn set_rsp(core: &mut Core, value: u64) {
    let mask = core.cpu.stack_mask;
    let old = core.cpu.regs[RSP as usize];
    core.cpu.regs[RSP as usize] =
        if mask == 0xffff { old & !0xffff | value & 0xffff } else { value & mask };
}
