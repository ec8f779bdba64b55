//! What the server asks of the VM.

use std::fs::File;
use std::os::fd::OwnedFd;

use insight::picture::Picture;

use crate::wire::{
    BalloonTarget, CloneReport, CloneRequest, KernelInfo, KernelSymbol, KernelType, ReclaimRequest,
    SaveReport, SaveRequest, ShareReport, ShareRequest, VmStatus,
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
    fn save(&self, lanes: Vec<OwnedFd>, request: SaveRequest) -> Result<SaveReport, ControlError> {
        let _ = (lanes, request);
        Err(ControlError::State("it cannot be saved".to_owned()))
    }
    /// Has its memory become what clones lie over, and writes the state that they go on from into `machine`; `memory` is
    /// an empty file for memory. The descriptors are of what clones lie over: an image, and perhaps a layer on it.
    fn make_clonable(
        &self,
        machine: File,
        memory: OwnedFd,
        request: CloneRequest,
    ) -> Result<(CloneReport, Vec<OwnedFd>), ControlError> {
        let _ = (machine, memory, request);
        Err(ControlError::State("it cannot be cloned".to_owned()))
    }
    /// Has memory of its guest taken, which may be written to `store`. Returns at once; it takes time.
    fn reclaim(&self, request: ReclaimRequest, store: Option<File>) -> Result<(), ControlError> {
        let _ = (request, store);
        Err(ControlError::State("nothing can be taken of its memory".to_owned()))
    }
    /// Looks for frames that others may have, and shares those that they have; `attach`: in this pool from now on, with a file
    /// for contents.
    fn share(
        &self,
        request: ShareRequest,
        attach: Option<(OwnedFd, File)>,
    ) -> Result<ShareReport, ControlError> {
        let _ = (request, attach);
        Err(ControlError::State("its memory cannot be shared".to_owned()))
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
