//! CPUID, time, MSRs, extended state control, random numbers, hypercalls.

use translator::Stop;
use x86::{Gpr, cr0, cr4, efer, msr, paging, rflags};

use super::{SystemInsn, operand_size, privileged, set_register};
use crate::apic::Effect;
use crate::system::Core;
use crate::{clock, cpuid as model};

const RAX: usize = Gpr::Rax as usize;
const RCX: usize = Gpr::Rcx as usize;
const RDX: usize = Gpr::Rdx as usize;

/// Bits of IA32_APIC_BASE: bootstrap processor, x2APIC, enabled.
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 10 | 1 << 11;
const APIC_BOOTSTRAP: u64 = 1 << 8;

/// IBRS, STIBP, SSBD, BHI_DIS_S: kept for the guest to read back, since nothing here speculates.
const SPEC_CTRL_KNOWN: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 10;

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

fn tsc(core: &Core) -> u64 {
    core.machine.regs.guest_tsc(clock::host_tsc_ordered())
}

fn set_pair(core: &mut Core, value: u64) {
    core.cpu.regs[RAX] = value & 0xffff_ffff;
    core.cpu.regs[RDX] = value >> 32;
}

fn pair(core: &Core) -> u64 {
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

pub(super) fn rdmsr(core: &mut Core) -> Result<(), Stop> {
    privileged(core)?;
    let index = core.cpu.regs[RCX] as u32;
    match read(core, index) {
        Some(value) => set_pair(core, value),
        None => {
            tracing::debug!("rdmsr {index:#x}: not there");
            return Err(core.machine.gp(0));
        }
    }
    Ok(())
}

pub(crate) fn read(core: &Core, index: u32) -> Option<u64> {
    let regs = &core.machine.regs;
    Some(match index {
        msr::TSC => tsc(core),
        msr::APIC_BASE if core.machine.id == 0 => APIC_BASE | APIC_BOOTSTRAP,
        msr::APIC_BASE => APIC_BASE,
        msr::TSC_ADJUST => regs.tsc_adjust,
        msr::SPEC_CTRL => regs.spec_ctrl,
        // No microcode, MTRRs or machine-check banks.
        msr::BIOS_SIGN_ID | msr::MTRR_CAP | msr::MCG_CAP | msr::MCG_STATUS => 0,
        msr::ARCH_CAPABILITIES => regs.arch_capabilities,
        msr::SYSENTER_CS => regs.sysenter_cs,
        msr::SYSENTER_ESP => regs.sysenter_esp,
        msr::SYSENTER_EIP => regs.sysenter_eip,
        msr::MISC_ENABLE => regs.misc_enable,
        msr::PAT => regs.pat,
        msr::MTRR_DEF_TYPE => regs.mtrr_def_type,
        msr::TSC_DEADLINE => core.machine.apic.tsc_deadline(),
        msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
            return core.machine.apic.read(index - msr::X2APIC_FIRST, tsc(core)).ok();
        }
        msr::EFER => regs.efer,
        msr::STAR => regs.star,
        msr::LSTAR => regs.lstar,
        msr::CSTAR => regs.cstar,
        msr::SFMASK => regs.sfmask,
        msr::FS_BASE => core.cpu.segs[4].base,
        msr::GS_BASE => core.cpu.segs[5].base,
        msr::KERNEL_GS_BASE => regs.kernel_gs_base,
        msr::TSC_AUX => regs.tsc_aux,
        msr::KVM_SYSTEM_TIME_NEW => regs.system_time,
        msr::KVM_WALL_CLOCK_NEW => regs.wall_clock,
        _ => return None,
    })
}

pub(super) fn wrmsr(core: &mut Core) -> Result<(), Stop> {
    privileged(core)?;
    let (index, value) = (core.cpu.regs[RCX] as u32, pair(core));
    if !write(core, index, value) {
        tracing::debug!("wrmsr {index:#x} = {value:#x}: refused");
        return Err(core.machine.gp(0));
    }
    Err(Stop::End)
}

/// False: no such MSR, or a value that it cannot take.
pub(crate) fn write(core: &mut Core, index: u32, value: u64) -> bool {
    let canonical = paging::is_canonical(value);
    let regs = &mut core.machine.regs;
    match index {
        msr::TSC => {
            let old = tsc(core);
            let regs = &mut core.machine.regs;
            regs.tsc_offset = regs.tsc_offset.wrapping_add(value.wrapping_sub(old));
        }
        msr::TSC_ADJUST => {
            regs.tsc_offset = regs.tsc_offset.wrapping_add(value.wrapping_sub(regs.tsc_adjust));
            regs.tsc_adjust = value;
        }
        // The mode cannot be left: there is no APIC page to fall back to.
        msr::APIC_BASE => return value & !APIC_BOOTSTRAP == APIC_BASE,
        msr::SPEC_CTRL if value & !SPEC_CTRL_KNOWN == 0 => regs.spec_ctrl = value,
        // Nothing speculates and nothing is cached: commands have nothing to do.
        msr::PRED_CMD | msr::FLUSH_CMD | msr::BIOS_SIGN_ID | msr::MCG_STATUS => {}
        msr::SYSENTER_CS => regs.sysenter_cs = value & 0xffff_ffff,
        msr::SYSENTER_ESP if canonical => regs.sysenter_esp = value,
        msr::SYSENTER_EIP if canonical => regs.sysenter_eip = value,
        msr::MISC_ENABLE => regs.misc_enable = value,
        msr::PAT if is_pat(value) => regs.pat = value,
        msr::MTRR_DEF_TYPE => regs.mtrr_def_type = value,
        msr::TSC_DEADLINE => core.machine.apic.set_tsc_deadline(value),
        msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
            return write_apic(core, index - msr::X2APIC_FIRST, value);
        }
        msr::EFER => return write_efer(core, value),
        msr::STAR => regs.star = value,
        msr::LSTAR if canonical => regs.lstar = value,
        msr::CSTAR if canonical => regs.cstar = value,
        msr::SFMASK => regs.sfmask = value & 0xffff_ffff,
        msr::FS_BASE if canonical => core.cpu.segs[4].base = value,
        msr::GS_BASE if canonical => core.cpu.segs[5].base = value,
        msr::KERNEL_GS_BASE if canonical => regs.kernel_gs_base = value,
        msr::TSC_AUX if value >> 32 == 0 => regs.tsc_aux = value,
        msr::KVM_SYSTEM_TIME_NEW => return write_system_time(core, value),
        msr::KVM_WALL_CLOCK_NEW => {
            regs.wall_clock = value;
            let now = tsc(core);
            return clock::write_wall_clock(&core.machine.shared.memory, value, now);
        }
        _ => return false,
    }
    true
}

/// Each byte is a memory type: 0, 1, 4, 5, 6 or 7.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

fn write_efer(core: &mut Core, value: u64) -> bool {
    let regs = &mut core.machine.regs;
    let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    let paging = regs.cr0 & cr0::PG != 0;
    if value & !known != 0 || paging && (value ^ regs.efer) & efer::LME != 0 {
        return false;
    }
    // LMA follows paging; a write does not change it.
    regs.efer = value & !efer::LMA | regs.efer & efer::LMA;
    core.machine.flush_all();
    true
}

fn write_apic(core: &mut Core, register: u32, value: u64) -> bool {
    let now = tsc(core);
    let id = core.machine.id;
    let Ok(effect) = core.machine.apic.write(register, value, now) else { return false };
    match effect {
        Effect::None | Effect::Timer => core.machine.open_window(),
        Effect::Send(message) => core.machine.shared.send(message, Some(id)),
        Effect::EndOfInterrupt(vector) => {
            core.machine.shared.end_of_interrupt(vector);
            core.machine.open_window();
        }
    }
    true
}

fn write_system_time(core: &mut Core, value: u64) -> bool {
    core.machine.regs.system_time = value;
    if value & 1 == 0 {
        return true;
    }
    let version = 2;
    clock::write_system_time(&core.machine.shared.memory, value & !1, version)
}
