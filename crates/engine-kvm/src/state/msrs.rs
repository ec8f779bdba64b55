//! Model-specific registers that are in no field of their own.

use engine::EngineError;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use x86::{Msr, model};

use crate::error::refused;

/// Those of `wanted` that KVM has.
pub(super) fn save(fd: &VcpuFd, wanted: &[u32]) -> Result<Vec<Msr>, EngineError> {
    let mut saved = Vec::with_capacity(wanted.len());
    let mut rest = wanted;
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

/// One that this KVM does not have may hold only what it would after a reset: then nothing is lost.
pub(super) fn load(fd: &VcpuFd, id: u32, wanted: &[Msr]) -> Result<(), EngineError> {
    let mut rest = wanted;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().copied().map(entry).collect();
        let written = fd.set_msrs(&list(&entries)?).map_err(refused("set a vcpu's MSRs"))?;
        if let Some(refused) = rest.get(written).filter(|msr| !model::is_reset(msr, id)) {
            let Msr { index, value } = refused;
            return Err(EngineError::State(format!(
                "msr {index:#x} = {value:#x}: KVM does not have it here, or not the value"
            )));
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
