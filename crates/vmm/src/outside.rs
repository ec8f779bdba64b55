//! What a VM has of the host beside files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::net::{NetConfig, NetPlan};
use devices::virtio::vsock::VsockListener;
use engine_translate::{Profile, ProfileError};

use crate::config::{EstimateLogConfig, VmPlan};
use crate::error::VmError;
use crate::estimate_log::EstimateFiles;
use crate::saved::Images;

/// What a VM has of the host beside files, open. It outlives a reboot of the guest, and is closed at the VM's
/// end.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// The host's sides of its network interfaces.
    pub(crate) networks: Vec<NetPlan>,
    /// Where programs of the host call the guest.
    pub(crate) vsock: Option<Arc<VsockListener>>,
    /// Where names of generated code go.
    pub(crate) perf_map: Option<Arc<File>>,
    /// Which blocks became hot in an earlier run.
    pub(crate) profile: Option<Profile>,
    /// Where those of this run are written down.
    pub(crate) profile_out: Option<Arc<File>>,
    /// Where it is written which blocks come and go.
    pub(crate) cache_log: Option<Arc<File>>,
    /// Where it is written what estimators of the working set find.
    pub(crate) estimates: Option<EstimateFiles>,
    /// Images of disks that nobody writes.
    pub(crate) images: Arc<Images>,
}

impl VmPlan {
    /// Opens it, and starts passt where that is asked for. To be called before the process confines itself and
    /// starts threads: later it may not be able to, and what it starts would inherit from it.
    ///
    /// # Errors
    /// The vsock's path cannot be listened on; the map for perf cannot be made; a TAP interface or passt is not there, or not for us.
    pub fn open_outside(&self) -> Result<Outside, VmError> {
        let networks = self.nets.iter().map(NetConfig::plan).collect::<Result<_, _>>()?;
        let vsock = self.vsock.as_ref().map(VsockListener::open).transpose()?;
        let perf_map = self.perf_map.then(perf_map).transpose()?.map(Arc::new);
        let profile = self.profile.as_deref().map(read_profile).transpose()?;
        let profile_out = self.profile_out.as_deref().map(make_profile).transpose()?.map(Arc::new);
        let cache_log = self.cache_log.as_deref().map(make_cache_log).transpose()?.map(Arc::new);
        let vsock = vsock.map(Arc::new);
        let estimates = self.estimate_log.as_ref().map(make_estimate_log).transpose()?;
        let images = Arc::new(Images::that_can_be_read(&self.images_that_stay()));
        Ok(Outside {
            networks,
            vsock,
            perf_map,
            profile,
            profile_out,
            cache_log,
            estimates,
            images,
        })
    }
}

/// Where `perf report` looks for it. New: in /tmp somebody else's file or link may be in its place.
fn perf_map() -> Result<File, VmError> {
    let path = format!("/tmp/perf-{}.map", std::process::id());
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    made.map_err(|error| VmError::Host(format!("make {path}, the map for perf"), error))
}

fn read_profile(path: &Path) -> Result<Profile, VmError> {
    let profile = File::open(path).map_err(ProfileError::Read).and_then(Profile::read);
    profile.map_err(|error| {
        VmError::Host(format!("read {}, the profile", path.display()), io::Error::other(error))
    })
}

fn make_cache_log(path: &Path) -> Result<File, VmError> {
    let made = File::create(path);
    made.map_err(|error| VmError::Host(format!("make {}, the cache log", path.display()), error))
}

fn make_estimate_log(config: &EstimateLogConfig) -> Result<EstimateFiles, VmError> {
    let make = |path: &PathBuf| match File::create(path) {
        Ok(file) => Ok(Arc::new(file)),
        Err(error) => {
            Err(VmError::Host(format!("make {}, the estimate log", path.display()), error))
        }
    };
    Ok(EstimateFiles {
        estimates: make(&config.path)?,
        methods: config.methods,
        accesses: config.accesses.as_ref().map(make).transpose()?,
    })
}

fn make_profile(path: &Path) -> Result<File, VmError> {
    let made = File::create(path);
    made.map_err(|error| VmError::Host(format!("make {}, the profile", path.display()), error))
}
