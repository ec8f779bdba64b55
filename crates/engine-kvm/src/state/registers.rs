//! General, segment, control and debug registers.

use engine::EngineError;
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use x86::{DescriptorTable, Event, Segment, VcpuState, Vector};

use crate::error::refused;

pub(super) fn save(fd: &VcpuFd, state: &mut VcpuState) -> Result<(), EngineError> {
    let regs = fd.get_regs().map_err(refused("read a vcpu's general registers"))?;
    let sregs = fd.get_sregs().map_err(refused("read a vcpu's control registers"))?;
    let debug = fd.get_debug_regs().map_err(refused("read a vcpu's debug registers"))?;
    let kvm_regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, .. } = regs;
    let kvm_regs { r12, r13, r14, r15, rip, rflags, .. } = regs;
    state.gpr = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    (state.rip, state.rflags) = (rip, rflags);
    (state.es, state.cs, state.ss) = (segment(sregs.es), segment(sregs.cs), segment(sregs.ss));
    (state.ds, state.fs, state.gs) = (segment(sregs.ds), segment(sregs.fs), segment(sregs.gs));
    (state.ldtr, state.tr) = (segment(sregs.ldt), segment(sregs.tr));
    (state.gdtr, state.idtr) = (table(sregs.gdt), table(sregs.idt));
    (state.cr0, state.cr2, state.cr3) = (sregs.cr0, sregs.cr2, sregs.cr3);
    (state.cr4, state.cr8, state.efer) = (sregs.cr4, sregs.cr8, sregs.efer);
    let [a, b, c, d] = debug.db;
    state.debug = [a, b, c, d, debug.dr6, debug.dr7];
    Ok(())
}

pub(super) fn load(fd: &VcpuFd, state: &VcpuState) -> Result<(), EngineError> {
    let mut sregs = fd.get_sregs().map_err(refused("read a vcpu's control registers"))?;
    (sregs.es, sregs.cs, sregs.ss) = (kvm(&state.es), kvm(&state.cs), kvm(&state.ss));
    (sregs.ds, sregs.fs, sregs.gs) = (kvm(&state.ds), kvm(&state.fs), kvm(&state.gs));
    (sregs.ldt, sregs.tr) = (kvm(&state.ldtr), kvm(&state.tr));
    (sregs.gdt, sregs.idt) = (kvm_table(&state.gdtr), kvm_table(&state.idtr));
    (sregs.cr0, sregs.cr2, sregs.cr3) = (state.cr0, cr2(state), state.cr3);
    (sregs.cr4, sregs.cr8, sregs.efer) = (state.cr4, state.cr8, state.efer);
    // What is being delivered goes with the events.
    sregs.interrupt_bitmap = [0; 4];
    fd.set_sregs(&sregs).map_err(|errno| {
        EngineError::State(format!(
            "cr0 {:#x}, cr4 {:#x}, efer {:#x} and the segments: KVM refuses them: {errno}",
            state.cr0, state.cr4, state.efer
        ))
    })?;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    let regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    };
    fd.set_regs(&regs).map_err(refused("set a vcpu's general registers"))?;
    let [a, b, c, d, dr6, dr7] = state.debug;
    let debug = kvm_debugregs { db: [a, b, c, d], dr6, dr7, ..Default::default() };
    fd.set_debug_regs(&debug).map_err(refused("set a vcpu's debug registers"))
}

/// A page fault that is being delivered has its address there already.
fn cr2(state: &VcpuState) -> u64 {
    match state.event {
        Some(Event::Exception(fault)) if fault.vector == Vector::PF => fault.address,
        _ => state.cr2,
    }
}

/// Attributes as in bits 40 to 55 of a descriptor.
fn segment(from: kvm_segment) -> Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    let present = from.present & !from.unusable;
    let attributes = u16::from(from.type_ & 0xf)
        | bit(from.s, 4)
        | u16::from(from.dpl & 3) << 5
        | bit(present, 7)
        | bit(from.avl, 12)
        | bit(from.l, 13)
        | bit(from.db, 14)
        | bit(from.g, 15);
    Segment { selector: from.selector, base: from.base, limit: from.limit, attributes }
}

fn kvm(from: &Segment) -> kvm_segment {
    let bit = |at: u16| (from.attributes >> at & 1) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.attributes & 0xf) as u8,
        present: bit(7),
        dpl: from.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

fn table(from: kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: from.base, limit: from.limit }
}

fn kvm_table(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_way_there_and_back() {
        let user = Segment { selector: 0x33, attributes: 0xa0fb, ..Segment::CODE64 };
        let none = Segment { selector: 0, base: 5, limit: 0, attributes: 0 };
        let task = Segment {
            selector: 0x40,
            base: 0xffff_8000_0000_2000,
            limit: 0x206f,
            attributes: 0x8b,
        };
        for before in [Segment::CODE64, Segment::DATA, user, none, task] {
            assert_eq!(segment(kvm(&before)), before);
        }
        assert_eq!(kvm(&none).unusable, 1);
        assert_eq!((kvm(&user).dpl, kvm(&user).l, kvm(&user).g), (3, 1, 1));
    }
}
