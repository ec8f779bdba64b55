//! What a debugger asks of a vCPU.

/// Where a vCPU stops for its debugger. The default stops nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DebugControl {
    /// Stop after one instruction, or one repetition of a string instruction. Interrupts wait meanwhile.
    /// One that faults is a step to its handler, or over it.
    pub single_step: bool,
    /// INT3 stops the vCPU before the instruction instead of raising #BP in the guest.
    pub int3_stops: bool,
    /// Stops of the debugger's own, independent of the guest's DR0 to DR3; on KVM they take the place
    /// of the guest's, whose breakpoints do not fire meanwhile.
    pub breakpoints: [Option<HardwareBreakpoint>; 4],
}

impl DebugControl {
    /// Whether it stops anywhere at all.
    #[must_use]
    pub fn is_active(&self) -> bool {
        *self != Self::default()
    }
}

/// A stop on an access to a linear address, as a debug register describes it (SDM volume 3, 18.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardwareBreakpoint {
    /// Linear address, a multiple of `size`.
    pub address: u64,
    /// What stops.
    pub on: BreakOn,
    /// 1, 2, 4 or 8 bytes; 1 for [`BreakOn::Execute`].
    pub size: u8,
}

/// The kind of access that a [`HardwareBreakpoint`] stops on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BreakOn {
    /// The instruction there is about to run.
    Execute,
    /// Data there was written.
    Write,
    /// Data there was read or written.
    Access,
}

/// Why a vCPU stopped for its debugger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugStop {
    /// One instruction has run.
    Step,
    /// RIP is at an INT3, which has not run.
    Int3,
    /// The hardware breakpoint of this index: RIP is at the instruction ([`BreakOn::Execute`]) or
    /// behind it.
    Breakpoint(u8),
}
