//! What a guest is shown of the processor.

use engine::EngineError;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;

use crate::error::refused;
use crate::host::Host;

/// Gives vCPU `id` of `vcpus` its table.
pub(crate) fn set(fd: &VcpuFd, host: &Host, id: u32, vcpus: u32) -> Result<(), EngineError> {
    let entries: Vec<kvm_cpuid_entry2> =
        host.supported_cpuid.as_slice().iter().map(|entry| shown(*entry, id, vcpus)).collect();
    let table = CpuId::from_entries(&entries)
        .map_err(|error| EngineError::Bug(format!("CPUID table: {error:?}")))?;
    fd.set_cpuid2(&table).map_err(refused(format!("set CPUID of vcpu {id}")))
}

fn shown(mut entry: kvm_cpuid_entry2, id: u32, vcpus: u32) -> kvm_cpuid_entry2 {
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xffff | id << 24 | vcpus.next_power_of_two() << 16;
            // x2APIC, TSC deadline, hypervisor.
            entry.ecx |= 1 << 21 | 1 << 24 | 1 << 31;
        }
        0xb | 0x1f => entry.edx = id,
        // Steal time, asynchronous page faults and their kin need memory that we don't save.
        0x4000_0001 => entry.eax &= !(1 << 4 | 1 << 5 | 1 << 10 | 1 << 14),
        _ => {}
    }
    entry
}
