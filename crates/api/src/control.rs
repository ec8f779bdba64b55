//! What the server asks of the VM.

use std::os::fd::OwnedFd;

use insight::picture::Picture;

use crate::wire::{
    BalloonTarget, KernelInfo, KernelSymbol, KernelType, SaveReport, SaveRequest, VmStatus,
};

/// A VM that can be looked at and driven. Called from many threads at a time; may block while the VM does
/// what was asked, but not for longer than a client waits (3 s).
pub trait VmControl: Send + Sync {
    /// How it is.
    fn status(&self) -> Result<VmStatus, ControlError>;
    /// What is known of its guest's memory.
    fn memory(&self) -> Result<Picture, ControlError>;
    /// What its guest's kernel says of itself, read from the guest's memory while it runs.
    fn kernel(&self) -> Result<KernelInfo, ControlError>;
    /// A symbol of its guest's kernel, by name or by an address, `0x...`.
    fn kernel_symbol(&self, wanted: &str) -> Result<KernelSymbol, ControlError>;
    /// A structure of its guest's kernel, or a member: `page`, `page.lru`.
    fn kernel_type(&self, wanted: &str) -> Result<KernelType, ControlError>;
    /// What each class of frames is held for, as inferred, against what the guest's kernel says: for experiments, of a
    /// form that changes with them.
    fn classes(&self) -> Result<serde_json::Value, ControlError> {
        Err(ControlError::State("frames are not classified: run it with --classes".to_owned()))
    }
    /// Has its working set measured for the next minute; the status has it from the next second on.
    fn watch(&self) -> Result<(), ControlError>;
    /// Stops every vCPU; no error if they stand still already.
    fn pause(&self) -> Result<(), ControlError>;
    /// Lets the vCPUs go on; no error if they run already.
    fn resume(&self) -> Result<(), ControlError>;
    /// Ends the VM. Returns as soon as that is certain.
    fn stop(&self) -> Result<(), ControlError>;
    /// Sends it on sockets of the client's while it stands: its memory and its state. May take long.
    fn save(
        &self,
        lanes: Vec<OwnedFd>,
        request: SaveRequest,
    ) -> Result<SaveReport, ControlError> {
        let _ = (lanes, request);
        Err(ControlError::State("it cannot be saved".to_owned()))
    }
    /// Sets what the balloon is to hold. Returns at once; the guest needs time.
    fn set_balloon(&self, target: BalloonTarget) -> Result<(), ControlError>;
}

/// Why the VM did not do it; each message is one line for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer asked for something impossible: 400.
    #[error("{0}")]
    Invalid(String),
    /// Not in this state of the VM: 409.
    #[error("{0}")]
    State(String),
    /// The VM or the host failed: 500.
    #[error("{0}")]
    Failed(String),
}
