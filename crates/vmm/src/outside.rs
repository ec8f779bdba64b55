//! What a VM has of the host beside files.

use std::sync::Arc;

use devices::virtio::vsock::VsockListener;

use crate::config::VmPlan;
use crate::error::VmError;

/// What a VM has of the host beside files, open. It outlives a reboot of the guest, and is closed at the VM's
/// end.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Where programs of the host call the guest.
    pub(crate) vsock: Option<Arc<VsockListener>>,
}

impl VmPlan {
    /// Opens it. To be called before the process confines itself: later it may not be able to.
    ///
    /// # Errors
    /// The vsock's path cannot be listened on.
    pub fn open_outside(&self) -> Result<Outside, VmError> {
        let vsock = self.vsock.as_ref().map(VsockListener::open).transpose()?;
        Ok(Outside { vsock: vsock.map(Arc::new) })
    }
}
