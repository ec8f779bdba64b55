//! What the user asked for ([`VmConfig`]) and the same, checked ([`VmPlan`]).
//!
//! [`VmPlan::new`] looks at everything that can be looked at without starting: sizes, names, and whether
//! each file is there and may be used as asked. It opens nothing for long and creates nothing, so a refused
//! configuration leaves no trace. Whether the kernel file really is a kernel is for `boot` to say.

mod bytes;
mod error;
mod estimate;
mod files;
mod host_cache;
mod network;
mod plan;
#[cfg(test)]
mod tests;
mod translation;

use std::path::PathBuf;

pub use devices::virtio::vsock::VsockConfig;
use serde::{Deserialize, Serialize};
pub use x86::model::CpuModel;

pub use bytes::{Bytes, BytesError};
pub use devices::virtio::net::{
    MacAddress, NetBackend, NetConfig as NetPlan, PortForward, Protocol,
};
pub use engine_translate::Options as TranslationOptions;
pub use error::ConfigError;
pub use estimate::{EstimateLogConfig, EstimateMethods};
pub use host_cache::{HostCacheConfig, HostCachePolicy};
pub use network::NetConfig;
pub use plan::{DiskAccess, DiskPlan, EngineKind, EnginePlan, VmPlan, default_name};
pub use translation::{Paths, ProfileConfig, TranslationConfig};

/// The command line of a guest for which none was asked: a serial console, and a reset after a panic.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=a panic=1";

/// A VM as asked for, unchecked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmConfig {
    /// Name of the VM and of its socket; by default `vm-` and the process id.
    pub name: Option<String>,
    /// The kernel: a bzImage or an ELF vmlinux.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; by default [`DEFAULT_CMDLINE`].
    pub cmdline: Option<String>,
    /// Size of guest RAM.
    pub memory: Bytes,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Which processor they show the guest.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Which engine runs the guest.
    pub engine: EngineChoice,
    /// Where the guest's serial console goes.
    pub console: ConsoleConfig,
    /// Where the report of the run is written.
    pub report: Option<PathBuf>,
    /// Where it is written which disk blocks come into the guest's memory and leave it.
    #[serde(default)]
    pub cache_log: Option<PathBuf>,
    /// Whether the guest's page cache is followed from its start on.
    #[serde(default)]
    pub insight: bool,
    /// A cache of the disks' blocks in this process.
    #[serde(default)]
    pub host_cache: Option<HostCacheConfig>,
    /// Whether the guest's frames are classified, for experiments.
    #[serde(default)]
    pub classes: bool,
    /// Where it is written what estimators of the working set find.
    #[serde(default)]
    pub estimate_log: Option<EstimateLogConfig>,
    /// Where a debugger is awaited.
    #[serde(default)]
    pub gdb: Option<GdbConfig>,
    /// Sockets between guest and host.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// How the translator's engine is to work.
    #[serde(default)]
    pub translation: TranslationConfig,
}

/// A debugger as asked for: gdb, over a UNIX socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GdbConfig {
    /// Where the socket is made.
    pub socket: PathBuf,
    /// Whether the guest waits for gdb before its first instruction.
    pub wait: bool,
}

/// A disk as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskConfig {
    /// A raw image, or a block device.
    pub path: PathBuf,
    /// Never write to `path`. Without an overlay the guest is refused writes.
    pub read_only: bool,
    /// Takes the guest's writes in place of `path`; created when it is not there.
    pub overlay: Option<PathBuf>,
    /// The host cache, where there is one, is not for this disk.
    #[serde(default)]
    pub no_host_cache: bool,
}

/// Which engine the user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The fastest that can run a guest here.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Translation, whether KVM is here or not.
    Translate,
}

/// Where the guest's serial console goes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// Our standard input and output.
    #[default]
    Stdio,
    /// Output into a file (or a terminal device, or a FIFO); no input.
    File(PathBuf),
    /// Nowhere.
    None,
}
