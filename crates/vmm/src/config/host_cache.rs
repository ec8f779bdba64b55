//! A cache of disk blocks in the VM's process.

use std::fs;

pub use devices::virtio::block::HostCachePolicy;
use serde::{Deserialize, Serialize};

use super::{Bytes, ConfigError};

/// A host cache as asked for: see [`devices::virtio::block::HostCache`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostCacheConfig {
    /// What it may take for contents; about 60 bytes a block of 4 KiB come on top.
    pub size: Bytes,
    /// When a block enters.
    #[serde(default)]
    pub policy: HostCachePolicy,
}

const LEAST: Bytes = Bytes(1 << 20);
/// What a host can have if it does not tell.
const MOST: Bytes = Bytes(1 << 40);
const STEP: u64 = 4096;

impl HostCacheConfig {
    /// Sizes are whole blocks, not more than the host has of memory; `disks` are there to be cached.
    pub(super) fn check(&self, disks: usize) -> Result<(), ConfigError> {
        let most = host_memory().unwrap_or(MOST).min(MOST);
        if !(LEAST..=most).contains(&self.size) || !self.size.0.is_multiple_of(STEP) {
            return Err(ConfigError::HostCache { size: self.size, min: LEAST, max: most });
        }
        if disks == 0 {
            return Err(ConfigError::HostCacheAlone);
        }
        Ok(())
    }
}

fn host_memory() -> Option<Bytes> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}
