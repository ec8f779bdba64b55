//! What the guest asks of the machine as a whole.

use std::sync::Arc;

/// The guest ends or restarts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerEvent {
    /// The guest entered ACPI S5.
    Poweroff,
    /// The guest asked for a reset.
    Reboot,
    /// The guest kernel reported its own panic.
    Panic,
}

/// Where a device sends a [`PowerEvent`].
///
/// Called on the vCPU thread that wrote the register, inside the guest's instruction: it must only
/// record the event and wake whoever acts on it.
pub type PowerSink = Arc<dyn Fn(PowerEvent) + Send + Sync>;
