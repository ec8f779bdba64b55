//! The x86-64 architecture as data: registers, flags, exceptions, MSRs, CPUID, segment and page-table
//! formats. Shared by both engines, the boot loader and everything that reads a guest's state.
//!
//! What it is *not*: it executes nothing, touches no guest memory and makes no system call. The numbers
//! are those of the Intel SDM and the AMD APM; each module names its chapters.
//!
//! ```
//! use x86::{Segment, VcpuState};
//! let mut state = VcpuState::long_mode();
//! state.rip = 0x100_0000;
//! assert_eq!(state.cs, Segment::CODE64);
//! ```
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod exception;
pub mod model;
pub mod msr;
pub mod paging;
pub mod rflags;
mod segment;
mod state;

pub use exception::{Exception, Vector};
pub use segment::{DescriptorTable, Segment};
pub use state::{
    ApicState, Event, Gpr, IO_APIC_INPUTS, IoApicState, Msr, VcpuState, XSTATE_SIZE, cr0, cr4, efer,
};
