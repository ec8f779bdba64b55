//! Interrupt controllers: a local APIC for each vCPU, and the IO-APIC (SDM volume 3, chapter 11; Intel
//! 82093AA data sheet).

mod inbox;
mod io_apic;
mod local;
mod message;

pub(crate) use inbox::Inbox;
pub(crate) use io_apic::{IO_APIC_BASE, IO_APIC_SIZE, IoApic};
pub(crate) use local::{Effect, LocalApic};
pub(crate) use message::{Delivery, Message};
