//! Why a configuration is refused.

use std::io;
use std::path::PathBuf;

use devices::virtio::net::{MacAddress, NetError};
use devices::virtio::vsock::VsockError;

use super::Bytes;

/// Why a configuration is refused: the user's to mend, all of them.
///
/// Each prints as one line that names the thing and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The name cannot be the name of a socket.
    #[error(
        "name `{name}` is refused: use 1 to {max} letters, digits, dots, dashes or underscores, \
         beginning with a letter or digit"
    )]
    Name {
        /// The name.
        name: String,
        /// Longest name allowed.
        max: usize,
    },
    /// Memory outside what a VM can have.
    #[error("memory {memory} is refused: ask for {min} to {max}, a multiple of 4K")]
    Memory {
        /// What was asked.
        memory: Bytes,
        /// The least.
        min: Bytes,
        /// The most.
        max: Bytes,
    },
    /// A host cache of a size that cannot be.
    #[error("host-cache {size} is refused: ask for {min} to {max}, a multiple of 4K")]
    HostCache {
        /// What was asked.
        size: Bytes,
        /// The least.
        min: Bytes,
        /// The most: what the host has.
        max: Bytes,
    },
    /// A host cache and nothing to be cached.
    #[error("host-cache is refused: there is no disk: give one with --disk, or leave it out")]
    HostCacheAlone,
    /// A number of vCPUs that cannot be had.
    #[error("{cpus} vCPUs are refused: ask for 1 to {max}")]
    Cpus {
        /// What was asked.
        cpus: u32,
        /// The most.
        max: u32,
    },
    /// The command line does not fit, or is not text for a kernel.
    #[error("kernel command line of {length} bytes is refused: at most {max} are possible")]
    CmdlineLength {
        /// Its length.
        length: usize,
        /// The most.
        max: usize,
    },
    /// A control character in the command line.
    #[error("kernel command line is refused: control character at byte {at}: take it out")]
    CmdlineCharacter {
        /// Offset of the character.
        at: usize,
    },
    /// A file could not be opened as asked.
    #[error("{what} {path}: {source}: {remedy}")]
    Open {
        /// What the file was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Neither a file nor (where that is allowed) a device.
    #[error("{what} {path} is a {found}: name a {expected}")]
    FileType {
        /// What the file was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What would do.
        expected: &'static str,
    },
    /// Nothing in the file.
    #[error("{what} {path} is empty: name a file with something in it")]
    Empty {
        /// What the file was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The initial RAM disk cannot fit.
    #[error("initrd {path} has {length} bytes, memory {memory}: ask for more with --memory")]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// Size of guest RAM.
        memory: Bytes,
    },
    /// A socket cannot be made under that name.
    #[error(
        "{what} {path} is refused: its {length} bytes are more than the {max} of a socket's path"
    )]
    SocketPath {
        /// What the socket was to be.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Bytes of the path.
        length: usize,
        /// The most.
        max: usize,
    },
    /// A disk with a broken last sector.
    #[error("disk {path} has {length} bytes: a raw image is a multiple of 512 bytes long")]
    DiskLength {
        /// The image.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// More disks than a VM has places for.
    #[error("{disks} disks are refused: at most {max} are possible")]
    Disks {
        /// What was asked.
        disks: usize,
        /// The most.
        max: usize,
    },
    /// More network interfaces than a VM has places for.
    #[error("{nets} network interfaces beside {disks} disks are refused: at most {max} together")]
    Nets {
        /// Disks asked for.
        disks: usize,
        /// What was asked.
        nets: usize,
        /// The most.
        max: usize,
    },
    /// Two interfaces with one address.
    #[error("two network interfaces with address {mac}: give each its own by mac=")]
    SameMac {
        /// The address.
        mac: MacAddress,
    },
    /// A network interface that cannot be.
    #[error(transparent)]
    Net(#[from] NetError),
    /// One file in two roles, at least one of which writes.
    #[error("{path} would be written as {writer} and used as {other}: give each a file of its own")]
    Shared {
        /// The file.
        path: PathBuf,
        /// The role that writes.
        writer: &'static str,
        /// The other role.
        other: &'static str,
    },
    /// Sockets between guest and host that cannot be had.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The translator is told how to work where it does not.
    #[error("--translate and --translate-stats are refused on engine kvm: add --engine translate")]
    NothingTranslated,
    /// Blocks run at least once.
    #[error("--translate hot=0 is refused: 1 translates a block before it runs for the first time")]
    Hot,
    /// No optimisation has this word.
    #[error("--translate {0} is not known: see --help for what can be left out")]
    Optimisation(String),
    /// Memory for code outside what the engine can have.
    #[error("--translate code={code} is refused: ask for {min} to {max}")]
    Code {
        /// What was asked.
        code: Bytes,
        /// The least.
        min: Bytes,
        /// The most.
        max: Bytes,
    },
    /// KVM asked for where it cannot run a guest.
    #[error("--engine kvm: {source}: {remedy}; --engine translate runs without")]
    NoKvm {
        /// What KVM said.
        source: engine_kvm::ProbeError,
        /// What to do about it.
        remedy: &'static str,
    },
}
