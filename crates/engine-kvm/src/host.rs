//! /dev/kvm and what it can do.

use engine::EngineError;
use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Cap, Kvm};

use crate::error::refused;

/// KVM_GET_API_VERSION of every kernel since 2.6.22.
const API_VERSION: i32 = 12;

/// The opened device with what does not change.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    /// KVM_GET_SUPPORTED_CPUID.
    pub(crate) supported_cpuid: CpuId,
    pub(crate) max_vcpus: u32,
    /// Written pages may stand in a buffer of the processor until it leaves the guest: Intel's page
    /// modification log (SDM volume 3, 29.3.6).
    pub(crate) buffers_writes: bool,
    /// The capability of the dirty ring (one of two, by ordering guarantee) and the largest ring in
    /// bytes; `None` where dirty pages are had by log only.
    pub(crate) dirty_ring: Option<(u32, u32)>,
}

/// What no VM can do without, and since when kernels have it.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::UserMemory, "user memory"),
    (Cap::ImmediateExit, "immediate_exit (Linux 4.11)"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ExtCpuid, "CPUID by table"),
    (Cap::Xsave, "XSAVE state"),
    (Cap::TscDeadlineTimer, "the TSC-deadline timer"),
    (Cap::X2ApicApi, "x2APIC identifiers (Linux 4.7)"),
];

impl Host {
    pub(crate) fn open() -> Result<Self, EngineError> {
        let kvm = Kvm::new().map_err(refused("open /dev/kvm"))?;
        if kvm.get_api_version() != API_VERSION {
            let found = kvm.get_api_version();
            return Err(EngineError::Unsupported(format!(
                "/dev/kvm speaks version {found}, expected {API_VERSION}"
            )));
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(EngineError::Unsupported(format!("KVM of this kernel lacks {name}")));
            }
        }
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("ask KVM for the CPUID it supports"))?;
        Ok(Self {
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            buffers_writes: is_intel(&supported_cpuid),
            dirty_ring: dirty_ring(&kvm),
            supported_cpuid,
            kvm,
        })
    }
}

fn is_intel(cpuid: &CpuId) -> bool {
    let vendor = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    // "Genu", the first four letters of GenuineIntel.
    vendor.is_some_and(|entry| entry.ebx == u32::from_le_bytes(*b"Genu"))
}

/// The ring with acquire-release semantics (Linux 6.2) where present: on x86 both are the same.
fn dirty_ring(kvm: &Kvm) -> Option<(u32, u32)> {
    [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING].into_iter().find_map(|capability| {
        let largest = kvm.check_extension_raw(capability.into());
        u32::try_from(largest).ok().filter(|&bytes| bytes > 0).map(|bytes| (capability, bytes))
    })
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("max_vcpus", &self.max_vcpus)
            .field("dirty_ring", &self.dirty_ring)
            .finish_non_exhaustive()
    }
}
