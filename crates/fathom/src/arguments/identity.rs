//! What is changed in VMs that are activated.

use clap::Args;
use vmm::config::Bytes;

/// Texts may have `{n}`, so they are read for each VM by [`crate::identity`].
#[derive(Debug, Default, Clone, Args)]
#[group(id = "identity", multiple = true)]
pub(crate) struct IdentityArguments {
    /// Memory of the guest, at most what it was started with: the rest goes into its balloon
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Bytes>,
    /// Processors that run, at most as many as it was started with
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// The guest's name [default: as it was, or the VM's where something else is told to the agent]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// The Ethernet address of its first interface [default: one that follows from the VM's name]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mac: Option<String>,
    /// An address with the length of its network's prefix, for its first interface or the one that dev= names
    #[arg(long = "address", value_name = "ADDRESS/PREFIX[,gateway=ADDRESS][,dev=NAME]")]
    pub(crate) addresses: Vec<String>,
    /// A server of names, for /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<std::net::IpAddr>,
    /// The host's side of its first interface, instead of the saved one's
    #[arg(long, value_name = "tap=NAME|passt[=SOCKET]")]
    pub(crate) net: Option<String>,
    /// Run this in the guest by its shell when it has become who it is, and show what it printed
    #[arg(long, value_name = "COMMAND")]
    pub(crate) run: Option<String>,
}
