//! A network interface as asked for, and with its host's side open.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tap::TapError;

use super::backend::{Backend, Passt, TapBackend, child};
use super::{MacAddress, NetError};
use crate::Watch;

/// Host to guest.
pub(super) const RECEIVE: usize = 0;
/// Guest to host.
pub(super) const TRANSMIT: usize = 1;
/// Queue sizes.
pub(super) const QUEUES: &[u16] = &[256, 256];

/// Bytes of an Ethernet header: less is no frame.
pub(super) const FRAME_MIN: usize = 14;
/// Most bytes of a frame: an Ethernet header, a VLAN's tag, and all that an IP packet can have.
pub(super) const FRAME_MAX: usize = FRAME_MIN + 4 + u16::MAX as usize;

/// Least MTU: of IPv4 (virtio 1.2, 5.1.4.1).
const MTU_MIN: u16 = 68;
/// Largest MTU: a packet that, as a frame, has at most 65,535 bytes in words of 4, as passt has it.
pub(super) const MTU_MAX: u16 = 65520;

/// A network interface as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The host's side.
    pub backend: NetBackend,
    /// The guest's address.
    pub mac: MacAddress,
    /// The largest packet that the guest is told it can send; by default what the host's side takes.
    pub mtu: Option<u16>,
}

/// The host's side of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// A TAP interface of this name. When it is deleted, the link is down until there is one of the
    /// name again: the same descriptor of /dev/net/tun attaches it.
    Tap(String),
    /// A passt that listens at this socket. When it vanishes, the link is down, and once a second the
    /// running VM tries to connect to this path again: what confines its process must allow for it.
    Socket(PathBuf),
    /// A passt of our own, with these ports of the host forwarded to the guest. It ends when our end
    /// of its socket is closed, so with this process at the latest. When it vanishes, the link stays
    /// down: a running VM starts no programs.
    Passt(Vec<PortForward>),
}

/// A port of the host whose connections go to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// Of what.
    pub protocol: Protocol,
    /// The host's address; by default only the host itself can connect.
    pub address: std::net::IpAddr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

/// What a port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A network interface whose host's side is open. It outlives a device: clones are the same.
#[derive(Clone)]
pub struct NetPlan {
    /// Used by one device at a time.
    pub(super) backend: Arc<Mutex<Box<dyn Backend>>>,
    pub(super) watch: Watch,
    pub(super) mac: MacAddress,
    pub(super) mtu: Option<u16>,
}

impl NetConfig {
    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// The MTU is none, or the name is no interface's.
    pub fn check(&self) -> Result<(), NetError> {
        if let Some(mtu) = self.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
            return Err(NetError::Mtu { mtu });
        }
        match &self.backend {
            NetBackend::Tap(name) if !tap::is_name(name) => {
                Err(TapError::Name { name: name.clone() }.into())
            }
            _ => Ok(()),
        }
    }

    /// Opens the host's side; starts passt where that is asked for.
    ///
    /// # Errors
    /// It is not there, or not for us.
    pub fn plan(&self) -> Result<NetPlan, NetError> {
        self.check()?;
        match &self.backend {
            NetBackend::Tap(name) => {
                let backend = TapBackend::open(name)?;
                let mtu = self.mtu.or_else(|| backend.mtu());
                Ok(NetPlan::new(Box::new(backend), self.mac, mtu))
            }
            NetBackend::Socket(path) => {
                let backend = Passt::connect(path)?;
                Ok(NetPlan::new(Box::new(backend), self.mac, self.mtu.or(Some(MTU_MAX))))
            }
            NetBackend::Passt(forwards) => {
                let mtu = self.mtu.unwrap_or(MTU_MAX);
                let stream = child::start(mtu, forwards)?;
                NetPlan::over_stream(stream, self.mac, Some(mtu))
            }
        }
    }
}

impl NetPlan {
    fn new(backend: Box<dyn Backend>, mac: MacAddress, mtu: Option<u16>) -> Self {
        let watch = backend.watch();
        Self { backend: Arc::new(Mutex::new(backend)), watch, mac, mtu }
    }

    /// An interface whose other end speaks as passt does, frames with their lengths before them, on
    /// `stream`.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn over_stream(
        stream: UnixStream,
        mac: MacAddress,
        mtu: Option<u16>,
    ) -> Result<Self, NetError> {
        Ok(Self::new(Box::new(Passt::over(stream.into())?), mac, mtu))
    }
}

impl fmt::Debug for NetPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetPlan")
            .field("mac", &self.mac)
            .field("mtu", &self.mtu)
            .finish_non_exhaustive()
    }
}
