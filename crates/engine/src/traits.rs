//! The traits.

use std::collections::BTreeMap;
use std::sync::Arc;

use memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;
use x86::model::{Difference, Processor, Shown};
use x86::{IoApicState, VcpuState};

use crate::debug::DebugControl;
use crate::error::EngineError;
use crate::exit::Exit;

/// How an engine learns of accesses to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracking {
    /// Every first access of an epoch is seen, with its direction, as it happens.
    Exact,
    /// First accesses of an epoch are found when asked (`GuestMemory::catch_up`); one that falls
    /// into the microseconds in which a frame is looked at may be missed.
    Sampled,
    /// Not at all.
    None,
}

/// What an engine can do; inferences say which of these they had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Guest instructions are counted.
    pub counts_instructions: bool,
    /// First accesses in an epoch.
    pub access_tracking: Tracking,
    /// First writes in an epoch.
    pub write_tracking: Tracking,
    /// The most vCPUs of one VM.
    pub max_vcpus: u32,
}

/// What a VM is made of, for an engine.
#[derive(Clone)]
pub struct VmSpec {
    /// Guest RAM. The engine registers itself as its mapping observer.
    pub memory: Arc<GuestMemory>,
    /// Number of vCPUs, 1 or more; their local APIC ids are 0 to `vcpus - 1`.
    pub vcpus: u32,
    /// Which processor they show.
    pub cpu: Shown,
}

/// A way to execute guest code.
pub trait Engine: Send + Sync {
    /// `kvm` or `translate`.
    fn name(&self) -> &'static str;

    /// What it can do on this machine.
    fn capabilities(&self) -> Capabilities;

    /// Makes a VM with its interrupt controllers: an IO-APIC at 0xfec0_0000 with 24 inputs, and a local
    /// APIC in x2APIC mode per vCPU.
    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError>;
}

/// One VM on an engine. Its methods may be called from any thread.
pub trait Vm: Send + Sync {
    /// Makes vCPU `id`, once each. vCPU 0 is the bootstrap processor; the others wait for a start-up IPI.
    /// A vCPU runs on whichever thread calls [`Vcpu::run`], one at a time.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, EngineError>;

    /// Sets input `gsi` of the IO-APIC. An edge-triggered interrupt is a rise followed by a fall.
    fn set_irq(&self, gsi: u32, high: bool);

    /// An edge-triggered interrupt on input `gsi`: a rise and a fall.
    fn pulse_irq(&self, gsi: u32) {
        self.set_irq(gsi, true);
        self.set_irq(gsi, false);
    }

    /// Asks the engine to signal `event` by itself whenever the guest writes the four bytes `value` to
    /// `gpa`, instead of returning [`Exit::MmioWrite`]. False: this engine does not, the exit will come.
    fn attach_doorbell(&self, gpa: u64, value: u32, event: &EventFd) -> Result<bool, EngineError> {
        let _ = (gpa, value, event);
        Ok(false)
    }

    /// Nanoseconds of the guest's kvmclock: since the VM was made, or as set.
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not tell.
    fn clock_ns(&self) -> Result<u64, EngineError>;

    /// Has the guest's kvmclock go on from `ns`. Before the states of vCPUs are set: what they have in guest
    /// memory of the clock is written then.
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not take it.
    fn set_clock_ns(&self, ns: u64) -> Result<(), EngineError>;

    /// The IO-APIC as it is. The vCPUs stand, and nobody sets inputs.
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not hand it out.
    fn io_apic(&self) -> Result<IoApicState, EngineError>;

    /// Replaces the state of the IO-APIC, before any vCPU runs. Sends nothing but for level-triggered inputs that
    /// are high and not in service.
    ///
    /// # Errors
    /// [`EngineError::State`] where no IO-APIC is like that.
    fn set_io_apic(&self, state: &IoApicState) -> Result<(), EngineError>;

    /// What became of guest code, by name, of an engine that translates it: sums since the VM was made, of each
    /// vCPU as of when its last run returned.
    fn translation(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    /// Makes vCPU `id` return [`Exit::Kicked`] soon, whether it runs, is halted or is about to run: a
    /// kick is never lost, and two before the return count as one.
    fn kick(&self, id: u32);
}

/// What a vCPU has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Guest instructions completed, where the engine counts them.
    pub instructions: Option<u64>,
    /// Times halted by HLT.
    pub halts: u64,
    /// Exceptions delivered to the guest.
    pub exceptions: u64,
    /// External interrupts delivered to the guest.
    pub interrupts: u64,
}

/// One virtual processor.
pub trait Vcpu: Send {
    /// Runs guest code until something needs an answer. HLT and waiting for a start-up IPI block inside.
    /// Pending [`Vcpu::complete_read`] answers are consumed first.
    ///
    /// # Errors
    /// [`EngineError::Memory`] where the contents of an absent frame are lost; where they may come later it is an
    /// [`Exit::Unavailable`]. After an error the vCPU must not run any more.
    fn run(&mut self) -> Result<Exit, EngineError>;

    /// Answers the last [`Exit::PortRead`] or [`Exit::MmioRead`]; bytes beyond the size are ignored.
    fn complete_read(&mut self, value: u64);

    /// A copy of all architectural state. Exact after [`Exit::Kicked`] or [`Exit::Unavailable`] and before the first run; after a
    /// read exit the instruction has not completed and will run again.
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not hand it out.
    fn state(&self) -> Result<VcpuState, EngineError>;

    /// Replaces all architectural state.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError>;

    /// What it shows its guest.
    fn processor(&self) -> &Processor;

    /// What of `shown`, the processor that a guest has seen elsewhere, is not so here.
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not tell what it has.
    fn differences(&self, shown: &Processor) -> Result<Vec<Difference>, EngineError>;

    /// What makes the guest's TSC from the host's, modulo 2^64: equal on vCPUs whose TSCs are in step, which two
    /// reads of them one after the other cannot tell. `None` where the host does not tell.
    fn tsc_offset(&self) -> Option<u64>;

    /// Changes it, after [`Vcpu::set_state`].
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not take it.
    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), EngineError>;

    /// Tells the guest by its kvmclock that it stood still, so that its watchdogs do not bark (PVCLOCK_GUEST_STOPPED,
    /// Linux `Documentation/virt/kvm/x86/msr.rst`). Nothing to do for a guest that uses no kvmclock. After
    /// [`Vcpu::set_state`].
    ///
    /// # Errors
    /// [`EngineError::Host`] where the host does not do it.
    fn tell_stopped(&mut self) -> Result<(), EngineError>;

    /// Where to stop for a debugger from the next run on; replaces what was set before.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for what this engine cannot stop on.
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError>;

    /// What it has done so far.
    fn counters(&self) -> Counters;
}
