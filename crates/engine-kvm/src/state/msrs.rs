//! Model-specific registers that are in no field of their own.

use engine::EngineError;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use x86::{Msr, msr};

use crate::error::refused;

/// Those saved, where KVM has them. The TSC is first: deadlines are relative to it.
const SAVED: [u32; 16] = [
    msr::TSC,
    msr::TSC_ADJUST,
    msr::SPEC_CTRL,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::MISC_ENABLE,
    msr::PAT,
    msr::MTRR_DEF_TYPE,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
    msr::KVM_SYSTEM_TIME_NEW,
];

pub(super) fn save(fd: &VcpuFd) -> Result<Vec<Msr>, EngineError> {
    let mut saved = Vec::with_capacity(SAVED.len());
    let mut rest = &SAVED[..];
    while !rest.is_empty() {
        let (values, read) = read_some(fd, rest)?;
        saved.extend(values);
        // KVM stops at the first that it does not have.
        rest = &rest[(read + 1).min(rest.len())..];
    }
    Ok(saved)
}

pub(super) fn read(fd: &VcpuFd, index: u32) -> Result<Option<u64>, EngineError> {
    let (values, _) = read_some(fd, &[index])?;
    Ok(values.first().map(|found| found.value))
}

/// The values of the first few of `wanted`, and how many those are.
fn read_some(fd: &VcpuFd, wanted: &[u32]) -> Result<(Vec<Msr>, usize), EngineError> {
    let entries: Vec<_> = wanted.iter().map(|&index| entry(Msr { index, value: 0 })).collect();
    let mut msrs = list(&entries)?;
    let read = fd.get_msrs(&mut msrs).map_err(refused("read a vcpu's MSRs"))?;
    let found = &msrs.as_slice()[..read];
    Ok((found.iter().map(|entry| Msr { index: entry.index, value: entry.data }).collect(), read))
}

/// MSRs that another engine has and this KVM has not do not matter to a guest that was shown neither.
pub(super) fn load(fd: &VcpuFd, wanted: &[Msr]) -> Result<(), EngineError> {
    let mut rest = wanted;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().copied().map(entry).collect();
        let written = fd.set_msrs(&list(&entries)?).map_err(refused("set a vcpu's MSRs"))?;
        if let Some(Msr { index, value }) = rest.get(written) {
            tracing::debug!("msr {index:#x} = {value:#x} in a saved state: not taken up");
        }
        rest = &rest[(written + 1).min(rest.len())..];
    }
    Ok(())
}

fn entry(msr: Msr) -> kvm_msr_entry {
    kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, EngineError> {
    Msrs::from_entries(entries)
        .map_err(|error| EngineError::Bug(format!("a list of MSRs: {error:?}")))
}
