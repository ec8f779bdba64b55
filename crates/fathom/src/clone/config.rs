//! What a clone has of its own.

use std::path::{Path, PathBuf};

use vmm::config::{ConsoleConfig, NetBackend, VmConfig};

/// The configuration of the clone `name`, the one of `index` among those that are made of `parent`; `overlays` are its
/// own, in the order of the disks that have one.
pub(super) fn of_clone(
    parent: &VmConfig,
    name: &str,
    index: usize,
    overlays: &[PathBuf],
    output: Option<&Path>,
) -> VmConfig {
    let mut config = parent.clone();
    config.name = Some(name.to_owned());
    config.console = match output {
        Some(folder) => ConsoleConfig::File(folder.join(format!("{name}.console"))),
        None => ConsoleConfig::None,
    };
    let mut overlays = overlays.iter();
    for overlay in config.disks.iter_mut().filter_map(|disk| disk.overlay.as_mut()) {
        if let Some(own) = overlays.next() {
            overlay.clone_from(own);
        }
    }
    for net in &mut config.nets {
        // The host's ports are the parent's.
        if let NetBackend::Passt(forwards) = &mut net.backend {
            forwards.clear();
        }
    }
    if let Some(vsock) = &mut config.vsock {
        // Addresses are each VM's own matter: no two need differ, but guests may want to tell each other apart.
        let next = u32::try_from(index + 1).ok().and_then(|next| vsock.cid.checked_add(next));
        vsock.cid = next.filter(|cid| *cid < u32::MAX).unwrap_or(vsock.cid);
        let mut path = vsock.path.clone().into_os_string();
        path.push(".");
        path.push(name);
        vsock.path = path.into();
    }
    config.translation.profile_out = None;
    config
}

/// The parent's overlays, in the order of its disks.
pub(super) fn overlays(config: &VmConfig) -> Vec<PathBuf> {
    config.disks.iter().filter_map(|disk| disk.overlay.clone()).collect()
}
