//! How a machine's life ends.

/// How one life of the machine ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The guest powered off.
    Poweroff,
    /// The guest asked for a reset.
    Reboot,
    /// The guest kernel panicked.
    Panic,
    /// Somebody stopped it from outside.
    Stopped,
    /// The host side failed; the message names what.
    Failed(String),
}

/// What `fathom run` reports as the fate of the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest powered off.
    Poweroff,
    /// The guest kernel panicked.
    Panic,
    /// Somebody stopped it from outside.
    Stopped,
}
