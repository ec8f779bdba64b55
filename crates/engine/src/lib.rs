//! What an execution engine is: the traits that everything above is written against.
//!
//! What it is *not*: it names no engine and no device. An engine runs guest code until something happens
//! that it cannot answer, and returns that as a value, an [`Exit`]; the caller answers. Interrupt
//! controllers and the local timer belong to the engine, as they do in hardware.
//!
//! ```text
//!   Engine --create_vm--> Vm --create_vcpu--> Vcpu::run() -> Exit --(caller answers)--> run() ...
//!                          |                     ^
//!                          +-- set_irq, kick ----+   (from any thread)
//! ```
//!
//! Memory events (first access and first write of a frame in an epoch) are not exits: engines report
//! them to the frame table by calling `GuestMemory::resolve` whenever they cache a translation anew.
#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod debug;
mod error;
mod exit;
mod traits;

pub use debug::{BreakOn, DebugControl, DebugStop, HardwareBreakpoint};
pub use error::EngineError;
pub use exit::Exit;
pub use traits::{Capabilities, Counters, Engine, Tracking, Vcpu, Vm, VmSpec};
