//! CPUID, time, extended state control, random numbers, hypercalls.

use translator::Stop;
use x86::{Gpr, cr4, rflags};

use super::{SystemInsn, operand_size, privileged, set_register};
use crate::system::Core;
use crate::{clock, cpuid as model};

const RAX: usize = Gpr::Rax as usize;
const RCX: usize = Gpr::Rcx as usize;
const RDX: usize = Gpr::Rdx as usize;

pub(super) fn cpuid(core: &mut Core) -> Result<(), Stop> {
    let (function, index) = (core.cpu.regs[RAX] as u32, core.cpu.regs[RCX] as u32);
    let osxsave = core.machine.regs.cr4 & cr4::OSXSAVE != 0;
    let leaf = model::query(&core.machine.cpuid, function, index, osxsave, core.cpu.xcr0);
    core.cpu.regs[RAX] = leaf.eax.into();
    core.cpu.regs[Gpr::Rbx as usize] = leaf.ebx.into();
    core.cpu.regs[RCX] = leaf.ecx.into();
    core.cpu.regs[RDX] = leaf.edx.into();
    Ok(())
}

pub(super) fn tsc(core: &Core) -> u64 {
    core.machine.regs.guest_tsc(clock::host_tsc_ordered())
}

pub(super) fn set_pair(core: &mut Core, value: u64) {
    core.cpu.regs[RAX] = value & 0xffff_ffff;
    core.cpu.regs[RDX] = value >> 32;
}

pub(super) fn pair(core: &Core) -> u64 {
    core.cpu.regs[RDX] << 32 | core.cpu.regs[RAX] & 0xffff_ffff
}

fn check_tsd(core: &mut Core) -> Result<(), Stop> {
    let disabled = core.machine.regs.cr4 & cr4::TSD != 0;
    if disabled && core.cpu.cpl != 0 { Err(core.machine.gp(0)) } else { Ok(()) }
}

pub(super) fn rdtsc(core: &mut Core) -> Result<(), Stop> {
    check_tsd(core)?;
    let now = tsc(core);
    set_pair(core, now);
    Ok(())
}

pub(super) fn rdtscp(core: &mut Core) -> Result<(), Stop> {
    rdtsc(core)?;
    core.cpu.regs[RCX] = core.machine.regs.tsc_aux;
    Ok(())
}

pub(super) fn rdpid(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    core.cpu.regs[(insn.dst & 31) as usize] = core.machine.regs.tsc_aux;
    Ok(())
}

/// RDRAND and RDSEED from the host kernel, which every host has.
pub(super) fn random(core: &mut Core, insn: &SystemInsn) -> Result<(), Stop> {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let ok = filled == Ok(8);
    set_register(
        core,
        insn.dst,
        operand_size(insn),
        if ok { u64::from_le_bytes(bytes) } else { 0 },
    );
    core.cpu.set_flags(rflags::STATUS, if ok { rflags::CF } else { 0 });
    Ok(())
}

pub(super) fn xgetbv(core: &mut Core) -> Result<(), Stop> {
    if core.machine.regs.cr4 & cr4::OSXSAVE == 0 {
        return Err(core.machine.ud());
    }
    match core.cpu.regs[RCX] as u32 {
        // 1 is XCR0 & XINUSE; everything is taken to be in use.
        0 | 1 => set_pair(core, core.cpu.xcr0),
        _ => return Err(core.machine.gp(0)),
    }
    Ok(())
}

pub(super) fn xsetbv(core: &mut Core) -> Result<(), Stop> {
    if core.machine.regs.cr4 & cr4::OSXSAVE == 0 {
        return Err(core.machine.ud());
    }
    privileged(core)?;
    let value = pair(core);
    let known = u64::from(core.machine.cpuid.find(0xd, 0).map_or(1, |leaf| leaf.eax));
    let avx_without_sse = value & 4 != 0 && value & 2 == 0;
    if core.cpu.regs[RCX] as u32 != 0 || value & !known != 0 || value & 1 == 0 || avx_without_sse {
        return Err(core.machine.gp(0));
    }
    core.cpu.xcr0 = value;
    core.machine.xcr0 = value;
    Err(Stop::End)
}

/// KVM's hypercalls: none is offered (KVM_ENOSYS).
pub(super) fn vmcall(core: &mut Core, _: &SystemInsn) -> Result<(), Stop> {
    const NOT_OFFERED: i64 = -1000;
    core.cpu.regs[RAX] = NOT_OFFERED as u64;
    Ok(())
}
