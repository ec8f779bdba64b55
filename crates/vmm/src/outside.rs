//! What a VM has of the host beside files.

use std::sync::Arc;

use devices::virtio::net::{NetConfig, NetPlan};
use devices::virtio::vsock::VsockListener;

use crate::config::VmPlan;
use crate::error::VmError;

/// What a VM has of the host beside files, open. It outlives a reboot of the guest, and is closed at the VM's
/// end.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// The host's sides of its network interfaces.
    pub(crate) networks: Vec<NetPlan>,
    /// Where programs of the host call the guest.
    pub(crate) vsock: Option<Arc<VsockListener>>,
}

impl VmPlan {
    /// Opens it, and starts passt where that is asked for. To be called before the process confines itself and
    /// starts threads: later it may not be able to, and what it starts would inherit from it.
    ///
    /// # Errors
    /// The vsock's path cannot be listened on; a TAP interface or passt is not there, or not for us.
    pub fn open_outside(&self) -> Result<Outside, VmError> {
        let networks = self.nets.iter().map(NetConfig::plan).collect::<Result<_, _>>()?;
        let vsock = self.vsock.as_ref().map(VsockListener::open).transpose()?;
        Ok(Outside { networks, vsock: vsock.map(Arc::new) })
    }
}
