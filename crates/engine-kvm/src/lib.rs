//! The engine on /dev/kvm: guest code runs on the processor itself.
//!
//! ```text
//!   KvmEngine --create_vm--> KvmVm ------------------> KvmVcpu::run -> KVM_RUN -> Exit
//!                             | slots over             | exits.rs turns kvm_run into Exit
//!                             | a second mapping       | kick.rs makes KVM_RUN return
//!                             | of guest RAM           | state/ is VcpuState, both ways
//!                             |
//!             guest_ram.rs: which frames were accessed (zap + pagemap), absent frames (userfaultfd)
//!             dirty/: which frames were written (ring or log)
//! ```
//!
//! Interrupt controllers, local timers and clocks are the kernel's: an IO-APIC and local APICs in x2APIC
//! mode, no PIC pins in use and no PIT.
//!
//! What it is *not*: it names no device, and it never resolves a frame before the guest touches it. KVM
//! faults guest pages in by itself, so the frame table hears of an access when it asks
//! (`GuestMemory::catch_up`), not when it happens: see `docs/decisions/0005-kvm-memory.md`.

mod cpuid;
mod debug;
mod dirty;
mod error;
mod exits;
mod guest_ram;
mod host;
mod irq;
mod kick;
mod observer;
mod probe;
mod run_page;
mod state;
mod uffd;
mod userfault;
mod vcpu;
mod vm;

use std::sync::Arc;

use engine::{Capabilities, Engine, EngineError, Tracking, Vm, VmSpec};

pub use crate::probe::{ProbeError, probe};

use crate::host::Host;

/// The most vCPUs of one VM: the machine above describes as many.
const MAX_VCPUS: u32 = 64;

/// The engine that runs guests by the processor's virtualization extensions.
#[derive(Debug)]
pub struct KvmEngine {
    host: Arc<Host>,
}

impl KvmEngine {
    /// Opens /dev/kvm and looks at what it can do. That a kernel can run is for [`probe`] to find out.
    ///
    /// # Errors
    /// [`EngineError::Host`] where the device cannot be opened, [`EngineError::Unsupported`] where KVM
    /// lacks something that every VM needs; both say what to do.
    pub fn new() -> Result<Self, EngineError> {
        Ok(Self { host: Arc::new(Host::open()?) })
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            counts_instructions: false,
            access_tracking: Tracking::Sampled,
            write_tracking: Tracking::Sampled,
            max_vcpus: MAX_VCPUS.min(self.host.max_vcpus),
        }
    }

    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        let max = self.capabilities().max_vcpus;
        if !(1..=max).contains(&spec.vcpus) {
            let asked = spec.vcpus;
            return Err(EngineError::Unsupported(format!(
                "{asked} vcpus: KVM on this host runs 1 to {max} in one guest"
            )));
        }
        Ok(Arc::new(vm::KvmVm::new(&self.host, spec)?))
    }
}
