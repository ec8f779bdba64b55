//! RDMSR and WRMSR: the registers of [`x86::model::MSRS`] that this engine's processor has.

use translator::{Machine, Stop};
use x86::{Gpr, cr0, efer, msr, paging};

use super::model::{pair, set_pair, tsc};
use super::{go_on, privileged};
use crate::apic::Effect;
use crate::system::Core;

/// Bits of IA32_APIC_BASE: bootstrap processor, x2APIC, enabled.
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 10 | 1 << 11;
const APIC_BOOTSTRAP: u64 = 1 << 8;

/// 8 variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x508;

/// IBRS, STIBP, SSBD, BHI_DIS_S: kept for the guest to read back, since nothing here speculates.
const SPEC_CTRL_KNOWN: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 10;

/// EFER bits that this processor has.
pub(crate) const EFER_KNOWN: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// LBR and BTF: taken and forgotten, there is no branch record and no step by branches.
const DEBUGCTL_KNOWN: u64 = 1 << 0 | 1 << 1;

/// IA32_MISC_ENABLE's two bits that tell of what there is: no branch trace, no sampling.
const MISC_ENABLE_READ_ONLY: u64 = 1 << 11 | 1 << 12;

pub(super) fn rdmsr(core: &mut Core) -> Result<(), Stop> {
    privileged(core)?;
    let index = core.cpu.regs[Gpr::Rcx as usize] as u32;
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
        msr::APIC_BASE => apic_base(core.machine.id),
        msr::TSC_ADJUST => regs.tsc_adjust,
        msr::SPEC_CTRL => regs.spec_ctrl,
        // No microcode, nothing to configure, nothing recorded.
        msr::BIOS_SIGN_ID | msr::PLATFORM_INFO | msr::MISC_FEATURES_ENABLES | msr::DEBUGCTL => 0,
        msr::MTRR_CAP => MTRR_CAP,
        msr::ARCH_CAPABILITIES => regs.arch_capabilities,
        msr::SYSENTER_CS => regs.sysenter_cs,
        msr::SYSENTER_ESP => regs.sysenter_esp,
        msr::SYSENTER_EIP => regs.sysenter_eip,
        msr::MISC_ENABLE => regs.misc_enable,
        msr::PAT => regs.pat,
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
        msr::KERNEL_GS_BASE => core.cpu.kernel_gs_base,
        msr::TSC_AUX => regs.tsc_aux,
        msr::KVM_SYSTEM_TIME_NEW => regs.system_time,
        msr::KVM_WALL_CLOCK_NEW => regs.wall_clock,
        _ => return regs.mtrrs.read(index),
    })
}

fn apic_base(id: u32) -> u64 {
    APIC_BASE | if id == 0 { APIC_BOOTSTRAP } else { 0 }
}

pub(super) fn wrmsr(core: &mut Core) -> Result<(), Stop> {
    privileged(core)?;
    let (index, value) = (core.cpu.regs[Gpr::Rcx as usize] as u32, pair(core));
    if !write(core, index, value) {
        tracing::debug!("wrmsr {index:#x} = {value:#x}: refused");
        return Err(core.machine.gp(0));
    }
    // One that sends may have sent to itself.
    if core.machine.attention() { Err(Stop::End) } else { go_on(core) }
}

/// Takes up a saved register, which may be one that instructions cannot write. False: no such register, or
/// a value that it cannot have.
pub(crate) fn load(core: &mut Core, index: u32, value: u64) -> bool {
    match index {
        // Each of the two by itself: the other is in the state too.
        msr::TSC => {
            set_tsc(core, value);
        }
        msr::TSC_ADJUST => core.machine.regs.tsc_adjust = value,
        msr::MISC_ENABLE => core.machine.regs.misc_enable = value,
        // Taken from instructions, but not kept.
        msr::DEBUGCTL => return value == 0,
        msr::ARCH_CAPABILITIES => return value == core.machine.regs.arch_capabilities,
        _ => return write(core, index, value),
    }
    true
}

/// False: no such MSR, or a value that it cannot take.
fn write(core: &mut Core, index: u32, value: u64) -> bool {
    let canonical = paging::is_canonical(value);
    let id = core.machine.id;
    let regs = &mut core.machine.regs;
    match index {
        msr::TSC => {
            let old = set_tsc(core, value);
            let regs = &mut core.machine.regs;
            regs.tsc_adjust = regs.tsc_adjust.wrapping_add(value.wrapping_sub(old));
            refresh_system_time(core, false);
        }
        msr::TSC_ADJUST => {
            regs.tsc_offset = regs.tsc_offset.wrapping_add(value.wrapping_sub(regs.tsc_adjust));
            regs.tsc_adjust = value;
            core.machine.look = true;
            refresh_system_time(core, false);
        }
        // The mode cannot be left: there is no APIC page to fall back to.
        msr::APIC_BASE => return value == apic_base(id),
        msr::SPEC_CTRL if value & !SPEC_CTRL_KNOWN == 0 => regs.spec_ctrl = value,
        // Nothing speculates: a barrier has nothing to do.
        msr::PRED_CMD if value & !1 == 0 => {}
        msr::BIOS_SIGN_ID => {}
        msr::MISC_FEATURES_ENABLES => return value == 0,
        msr::SYSENTER_CS => regs.sysenter_cs = value & 0xffff_ffff,
        msr::SYSENTER_ESP if canonical => regs.sysenter_esp = value,
        msr::SYSENTER_EIP if canonical => regs.sysenter_eip = value,
        msr::MISC_ENABLE if (value ^ regs.misc_enable) & MISC_ENABLE_READ_ONLY == 0 => {
            regs.misc_enable = value;
        }
        msr::DEBUGCTL => return value & !DEBUGCTL_KNOWN == 0,
        msr::PAT if is_pat(value) => regs.pat = value,
        msr::TSC_DEADLINE => {
            core.machine.apic.set_tsc_deadline(value);
            core.machine.look = true;
        }
        msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
            return write_apic(core, index - msr::X2APIC_FIRST, value);
        }
        msr::EFER => return write_efer(core, value),
        msr::STAR => {
            regs.star = value;
            regs.update_calls();
        }
        msr::LSTAR if canonical => {
            regs.lstar = value;
            regs.update_calls();
        }
        msr::CSTAR if canonical => regs.cstar = value,
        msr::SFMASK => {
            regs.sfmask = value & 0xffff_ffff;
            regs.update_calls();
        }
        msr::FS_BASE if canonical => core.cpu.segs[4].base = value,
        msr::GS_BASE if canonical => core.cpu.segs[5].base = value,
        msr::KERNEL_GS_BASE if canonical => core.cpu.kernel_gs_base = value,
        msr::TSC_AUX if value >> 32 == 0 => regs.tsc_aux = value,
        msr::KVM_SYSTEM_TIME_NEW => return write_system_time(core, value),
        msr::KVM_WALL_CLOCK_NEW => {
            regs.wall_clock = value;
            let shared = &core.machine.shared;
            return shared.clock.write_wall_clock(&shared.memory, value);
        }
        _ => return regs.mtrrs.write(index, value),
    }
    true
}

/// Returns what the TSC was.
fn set_tsc(core: &mut Core, value: u64) -> u64 {
    let old = tsc(core);
    let regs = &mut core.machine.regs;
    regs.tsc_offset = regs.tsc_offset.wrapping_add(value.wrapping_sub(old));
    core.machine.look = true;
    old
}

/// Each byte is a memory type: 0, 1, 4, 5, 6 or 7.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

fn write_efer(core: &mut Core, value: u64) -> bool {
    let regs = &mut core.machine.regs;
    let paging = regs.cr0 & cr0::PG != 0;
    if value & !EFER_KNOWN != 0 || paging && (value ^ regs.efer) & efer::LME != 0 {
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
        Effect::None => core.machine.open_window(),
        Effect::Timer => core.machine.look = true,
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
    refresh_system_time(core, false)
}

/// Writes the record of kvmclock, where there is one; false if it is not in RAM.
fn refresh_system_time(core: &mut Core, stopped: bool) -> bool {
    let (regs, shared) = (&mut core.machine.regs, &core.machine.shared);
    if regs.system_time & 1 == 0 {
        return true;
    }
    regs.system_time_version = regs.system_time_version.wrapping_add(2);
    let (gpa, version) = (regs.system_time & !1, regs.system_time_version);
    shared.clock.write_system_time(&shared.memory, gpa, regs.tsc_offset, version, stopped)
}

/// Puts the TSC where it is the host's with `offset`.
pub(crate) fn set_tsc_offset(core: &mut Core, offset: u64) {
    core.machine.regs.tsc_offset = offset;
    core.machine.look = true;
    refresh_system_time(core, false);
}

/// Has the record of kvmclock say that the guest stood still.
pub(crate) fn tell_stopped(core: &mut Core) {
    refresh_system_time(core, true);
}
