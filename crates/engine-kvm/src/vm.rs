//! One VM: memory slots, controllers, vCPUs.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use engine::{EngineError, Vcpu, Vm, VmSpec};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS, KVM_CAP_X2APIC_API, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X86_QUIRK_LINT0_REENABLED, kvm_clock_data, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use memory::{Frame, FrameRange, GuestMemory};
use vmm_sys_util::eventfd::EventFd;
use x86::IoApicState;
use x86::model::Shown;

use crate::dirty::{Dirty, DirtyLog, DirtyRing};
use crate::error::refused;
use crate::guest_ram::GuestRam;
use crate::host::Host;
use crate::irq::{self, Edges};
use crate::kick::Kicker;
use crate::observer::Observer;
use crate::userfault::{Failure, UserFaultHandler};
use crate::vcpu::KvmVcpu;

/// Three pages that Intel processors without unrestricted guests need for real mode, and one for its page
/// table: in the hole below 4 GiB, away from devices and the IO-APIC.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A run of RAM as KVM knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) gpa: u64,
    pub(crate) frames: FrameRange,
}

/// What the VM, its vCPUs and the observer share. Fields drop in this order: first the VM, then the
/// mapping that its slots show.
pub(crate) struct Inner {
    pub(crate) vm: VmFd,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) host: Arc<Host>,
    pub(crate) vcpus: u32,
    pub(crate) cpu: Shown,
    slots: Vec<Slot>,
    dirty: Dirty,
    /// Slots have the flag that makes KVM note writes.
    noting_writes: Mutex<bool>,
    /// The answerer of page faults; `None` where the host has no userfaultfd for us.
    faults: Option<Arc<UserFaultHandler>>,
    pub(crate) kickers: Vec<OnceLock<Arc<Kicker>>>,
}

/// The VM as the caller holds it.
pub(crate) struct KvmVm {
    inner: Arc<Inner>,
    edges: Edges,
    made: Mutex<Vec<u32>>,
}

impl KvmVm {
    pub(crate) fn new(host: &Arc<Host>, spec: VmSpec) -> Result<Self, EngineError> {
        let vm = host.kvm.create_vm().map_err(refused("create a VM"))?;
        prepare(&vm)?;
        let dirty = host.dirty_ring.and_then(|(capability, largest)| {
            DirtyRing::enable(&vm, capability, largest).map(Dirty::Ring)
        });
        let ram = Arc::new(GuestRam::of(&spec.memory)?);
        let inner = Arc::new(Inner {
            slots: slots(&spec.memory),
            vm,
            ram,
            host: Arc::clone(host),
            vcpus: spec.vcpus,
            cpu: spec.cpu,
            dirty: dirty.unwrap_or(Dirty::Log(DirtyLog)),
            noting_writes: Mutex::new(false),
            faults: UserFaultHandler::open().map(Arc::new),
            kickers: (0..spec.vcpus).map(|_| OnceLock::new()).collect(),
            memory: Arc::clone(&spec.memory),
        });
        inner.set_slots(false)?;
        if !spec.memory.is_anonymous() {
            inner.cover();
        }
        let observer = Observer::new(Arc::downgrade(&spec.memory));
        observer.connect(Arc::downgrade(&inner));
        spec.memory.set_observer(Arc::new(observer));
        Ok(Self { inner, edges: Edges::default(), made: Mutex::default() })
    }
}

/// Everything that must be there before the first vCPU.
fn prepare(vm: &VmFd) -> Result<(), EngineError> {
    vm.set_tss_address(TSS_ADDRESS).map_err(refused("place the TSS"))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(refused("place the identity map"))?;
    enable(
        vm,
        KVM_CAP_X2APIC_API,
        KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    )?;
    // The local interrupt pin 0 is masked after a reset, as the manual has it: there is no PIC behind it.
    enable(vm, KVM_CAP_DISABLE_QUIRKS, KVM_X86_QUIRK_LINT0_REENABLED)?;
    vm.create_irq_chip().map_err(refused("create interrupt controllers"))?;
    irq::route(vm)
}

fn enable(vm: &VmFd, capability: u32, argument: u32) -> Result<(), EngineError> {
    let cap =
        kvm_enable_cap { cap: capability, args: [argument.into(), 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).map_err(refused(format!("enable KVM capability {capability}")))
}

/// A slot for each run of RAM in the physical address space.
fn slots(memory: &GuestMemory) -> Vec<Slot> {
    let mut first = 0;
    let slot = |range: memory::RamRange| {
        let count = (range.bytes / memory::FRAME_SIZE as u64) as u32;
        let frames = FrameRange { first: Frame(first), count };
        first += count;
        Slot { gpa: range.start.0, frames }
    };
    memory.layout().ranges().map(slot).collect()
}

impl Inner {
    /// Tells KVM where RAM is, and whether it notes which pages are written.
    fn set_slots(&self, note_writes: bool) -> Result<(), EngineError> {
        for (number, slot) in (0..).zip(&self.slots) {
            let region = kvm_userspace_memory_region {
                slot: number,
                flags: if note_writes { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: slot.gpa,
                memory_size: u64::from(slot.frames.count) * memory::FRAME_SIZE as u64,
                userspace_addr: self.ram.address(slot.frames.first),
            };
            // SAFETY: the range is inside the mapping of RAM, which outlives the VM: it is a later field
            // of this structure. Nobody makes a Rust reference to it.
            unsafe { self.vm.set_user_memory_region(region) }
                .map_err(refused(format!("give KVM RAM at {:#x}", slot.gpa)))?;
        }
        Ok(())
    }

    /// From now on KVM notes what the guest writes.
    pub(crate) fn note_writes(&self) -> Result<(), EngineError> {
        let mut noting = self.noting_writes();
        if !*noting {
            self.set_slots(true)?;
            *noting = true;
        }
        Ok(())
    }

    /// Tells of every frame that the guest wrote since the last call, where writes are noted at all.
    pub(crate) fn take_listed(&self, mut tell: impl FnMut(Frame)) -> Result<(), EngineError> {
        if !*self.noting_writes() {
            return Ok(());
        }
        match &self.dirty {
            Dirty::Ring(ring) => {
                if self.host.buffers_writes {
                    self.kickers.iter().filter_map(OnceLock::get).for_each(|kicker| kicker.flush());
                }
                ring.harvest(&self.vm, &self.slots, &mut tell)
            }
            Dirty::Log(log) => log.harvest(&self.vm, &self.slots, &mut tell),
        }
    }

    /// For a vCPU whose own list is full: it is outside of the guest, and must not wait for others.
    pub(crate) fn empty_full_list(&self) -> Result<(), EngineError> {
        match &self.dirty {
            Dirty::Ring(ring) => ring.harvest(&self.vm, &self.slots, |frame| {
                self.memory.note(frame, memory::Access::Write);
            }),
            Dirty::Log(_) => Ok(()),
        }
    }

    fn noting_writes(&self) -> MutexGuard<'_, bool> {
        self.noting_writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the guest's first access to each of these frames comes to the table.
    pub(crate) fn watch_absent(
        &self,
        memory: &Weak<GuestMemory>,
        ranges: &[FrameRange],
    ) -> Result<(), EngineError> {
        self.faults()?.watch(&self.ram, memory, ranges)
    }

    /// From now on the guest's first write to each frame comes to the table.
    pub(crate) fn protect(&self, memory: &Weak<GuestMemory>) -> Result<(), EngineError> {
        self.faults()?.protect(&self.ram, memory)
    }

    /// The guest may write to these frames.
    pub(crate) fn unprotect(&self, memory: &Weak<GuestMemory>, frames: FrameRange) {
        if let Some(faults) = &self.faults {
            faults.unprotect(&self.ram, memory, frames);
        }
    }

    fn faults(&self) -> Result<&Arc<UserFaultHandler>, EngineError> {
        self.faults.as_ref().ok_or_else(|| {
            EngineError::Unsupported(
                "this process may not use userfaultfd: set vm.unprivileged_userfaultfd=1".into(),
            )
        })
    }

    /// Has the guest's accesses to memory in a file counted exactly.
    pub(crate) fn cover(&self) {
        if self.faults.as_ref().is_none_or(|faults| faults.cover(&self.ram).is_err()) {
            tracing::warn!(
                "no userfaultfd here: working sets count the neighbours of what is read, and absent \
                 frames cannot be waited for"
            );
        }
    }

    /// To be asked before a run.
    pub(crate) fn fault_failures_taken(&self) -> u64 {
        self.faults.as_ref().map_or(0, |faults| faults.failures_taken())
    }

    /// Why the guest could not have a frame, if that ended a run that began when failures had been `taken` so often.
    pub(crate) fn take_fault_failure(&self, taken: u64) -> Option<Failure> {
        self.faults.as_ref()?.take_failure(&self.ram, taken)
    }

    /// Adds a vCPU to those whose writes are listed.
    pub(crate) fn list_writes_of(&self, vcpu: &kvm_ioctls::VcpuFd) -> Result<(), EngineError> {
        match &self.dirty {
            Dirty::Ring(ring) => ring.add(vcpu),
            Dirty::Log(_) => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(faults) = &self.faults {
            faults.stop();
        }
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if id >= self.inner.vcpus || made.contains(&id) {
            let count = self.inner.vcpus;
            return Err(EngineError::Bug(format!(
                "vcpu {id} of {count} is made twice or too many"
            )));
        }
        let vcpu = KvmVcpu::new(&self.inner, id)?;
        made.push(id);
        Ok(Box::new(vcpu))
    }

    fn set_irq(&self, gsi: u32, high: bool) {
        if let Err(errno) = self.inner.vm.set_irq_line(gsi, high) {
            tracing::error!("interrupt {gsi}: {errno}: the guest misses it");
        }
    }

    fn pulse_irq(&self, gsi: u32) {
        self.edges.pulse(&self.inner.vm, gsi);
    }

    fn attach_doorbell(&self, gpa: u64, value: u32, event: &EventFd) -> Result<bool, EngineError> {
        let address = IoEventAddress::Mmio(gpa);
        self.inner
            .vm
            .register_ioevent(event, &address, value)
            .map_err(refused(format!("register an ioeventfd at {gpa:#x}")))?;
        Ok(true)
    }

    fn io_apic(&self) -> Result<IoApicState, EngineError> {
        irq::save(&self.inner.vm)
    }

    fn set_io_apic(&self, state: &IoApicState) -> Result<(), EngineError> {
        state.check().map_err(|what| EngineError::State(format!("io-apic: {what}")))?;
        irq::load(&self.inner.vm, state)
    }

    fn clock_ns(&self) -> Result<u64, EngineError> {
        Ok(self.inner.vm.get_clock().map_err(refused("read a VM's clock"))?.clock)
    }

    fn set_clock_ns(&self, ns: u64) -> Result<(), EngineError> {
        let clock = kvm_clock_data { clock: ns, ..Default::default() };
        self.inner.vm.set_clock(&clock).map_err(refused("set a VM's clock"))
    }

    fn kick(&self, id: u32) {
        // One that is not made yet has nothing to leave; it looks before it first runs.
        if let Some(kicker) = self.inner.kickers.get(id as usize).and_then(OnceLock::get) {
            kicker.kick();
        }
    }
}
