//! What a guest is shown of the processor: the shared model of [`x86::model`], over what KVM can do.

use std::arch::x86_64::__cpuid;

use engine::EngineError;
use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, Msrs,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;
use x86::cpuid::{EXTENDED, Leaf, Table};
use x86::model::{self, Capability, Difference, Processor, Shown, Topology};
use x86::{Msr, msr};

use crate::error::refused;
use crate::host::Host;

/// What KVM has and does not say: it is asked for by capability.
const ALSO: [&str; 2] = ["x2apic", "tsc_deadline_timer"];
/// x87, SSE and AVX: what the neutral state has room for.
const STATE_COMPONENTS: u64 = 7;
/// KVM's APIC timer counts nanoseconds.
const APIC_KHZ: u32 = 1_000_000;

/// The leaves of the processor's name.
const BRAND: [u32; 3] = [EXTENDED + 2, EXTENDED + 3, EXTENDED + 4];

/// Gives a vCPU its table, and the MSRs that go with it; returns both.
pub(crate) fn set(
    fd: &VcpuFd,
    host: &Host,
    shown: &Shown,
    topology: Topology,
) -> Result<Processor, EngineError> {
    let id = topology.id;
    let supported = table(&host.supported_cpuid);
    let processor = shown.processor(&capability(fd, host, &supported)?, topology);
    let processor = processor.map_err(|error| EngineError::Unsupported(error.to_string()))?;
    let entries: Vec<_> = processor.cpuid.leaves.iter().map(entry).collect();
    let table = CpuId::from_entries(&entries)
        .map_err(|error| EngineError::Bug(format!("CPUID table: {error:?}")))?;
    fd.set_cpuid2(&table).map_err(refused(format!("set CPUID of vcpu {id}")))?;
    set_msrs(fd, &processor.msrs)?;
    hide_paravirtual_msrs(fd);
    Ok(processor)
}

/// What of a processor that a guest was shown is not so here.
pub(crate) fn differences(
    fd: &VcpuFd,
    host: &Host,
    shown: &Processor,
) -> Result<Vec<Difference>, EngineError> {
    let supported = table(&host.supported_cpuid);
    Ok(model::differences(shown, &capability(fd, host, &supported)?))
}

fn capability<'a>(
    fd: &VcpuFd,
    host: &Host,
    supported: &'a Table,
) -> Result<Capability<'a>, EngineError> {
    Ok(Capability {
        supported,
        also: &ALSO,
        arch_capabilities: arch_capabilities(host)?,
        state_components: STATE_COMPONENTS,
        tsc_khz: fd.get_tsc_khz().ok(),
        apic_khz: APIC_KHZ,
    })
}

fn table(supported: &CpuId) -> Table {
    let leaf = |entry: &kvm_cpuid_entry2| Leaf {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    };
    let mut table = Table { leaves: supported.as_slice().iter().map(leaf).collect() };
    // KVM leaves the processor's name out.
    if __cpuid(EXTENDED).eax >= BRAND[2] {
        for function in BRAND {
            let part = __cpuid(function);
            table.put(function, 0, [part.eax, part.ebx, part.ecx, part.edx]);
        }
    }
    table
}

fn entry(leaf: &Leaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..Default::default()
    }
}

/// What KVM can show in IA32_ARCH_CAPABILITIES on this host; 0 where it does not say.
fn arch_capabilities(host: &Host) -> Result<u64, EngineError> {
    let mut msrs = list(&[Msr { index: msr::ARCH_CAPABILITIES, value: 0 }])?;
    match host.kvm.get_msrs(&mut msrs) {
        Ok(1) => Ok(msrs.as_slice()[0].data),
        _ => Ok(0),
    }
}

/// One that KVM keeps to itself (IA32_ARCH_CAPABILITIES on some) has the host's value, which is true too.
fn set_msrs(fd: &VcpuFd, msrs: &[Msr]) -> Result<(), EngineError> {
    for msr in msrs {
        if fd.set_msrs(&list(&[*msr])?).map_err(refused("set a vcpu's first MSRs"))? == 0 {
            tracing::debug!("msr {:#x}: KVM does not take {:#x}", msr.index, msr.value);
        }
    }
    Ok(())
}

/// MSRs of KVM features that the guest is not shown are not there for it either (Linux 5.10).
fn hide_paravirtual_msrs(fd: &VcpuFd) {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        args: [1, 0, 0, 0],
        ..Default::default()
    };
    if let Err(errno) = fd.enable_cap(&cap) {
        tracing::debug!("this KVM keeps its MSRs whatever CPUID says: {errno}");
    }
}

fn list(msrs: &[Msr]) -> Result<Msrs, EngineError> {
    let entry =
        |msr: &Msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() };
    let entries: Vec<_> = msrs.iter().map(entry).collect();
    Msrs::from_entries(&entries)
        .map_err(|error| EngineError::Bug(format!("a list of MSRs: {error:?}")))
}
