//! A TAP interface of the host: Ethernet frames of a network interface, through a file descriptor.
//!
//! Each read gives one frame and each write takes one, with the header of virtio-net before it (the
//! kernel's "vnet header", [`HEADER_LEN`] bytes), by which checksums and segmentation are left to
//! the other side.
//!
//! What it is *not*: it makes no interface and configures none. That takes privileges that a VM
//! should not have; whoever has them makes an interface that belongs to the VM's user:
//!
//! ```text
//! ip tuntap add tap0 mode tap user "$USER"
//! ip address add 192.168.77.1/24 dev tap0
//! ip link set tap0 up
//! ```
//!
//! # Example
//!
//! ```no_run
//! use tap::{Offloads, Tap};
//!
//! let tap = Tap::open("tap0")?;
//! tap.set_offloads(Offloads::default())?;
//! let mut packet = [0; tap::HEADER_LEN + 1514];
//! let length = tap.read(&mut packet)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Unsafe code is here for the ioctls of linux/if_tun.h alone.

mod ioctls;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use thiserror::Error;

/// Where all TAP interfaces are had.
const DEVICE: &str = "/dev/net/tun";

/// Bytes before each frame: `struct virtio_net_hdr_v1`.
pub const HEADER_LEN: usize = 12;

/// Longest name of an interface: IFNAMSIZ with its closing zero.
pub const NAME_MAX: usize = 15;

/// An attached TAP interface. Dropping it detaches it; an interface made as above stays.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    /// Any socket: names of interfaces are asked of one.
    names: OwnedFd,
    name: String,
}

/// What whoever reads frames can do with unfinished ones: the kernel gives it no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames without a checksum. All others need this one.
    pub checksum: bool,
    /// TCP segments over IPv4 beyond the MTU.
    pub tso4: bool,
    /// TCP segments over IPv6 beyond the MTU.
    pub tso6: bool,
    /// Such segments with congestion notification.
    pub ecn: bool,
    /// UDP datagrams beyond the MTU.
    pub ufo: bool,
}

/// A TAP interface cannot be had.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name cannot be one of an interface.
    #[error("tap `{}`: a name has 1 to {NAME_MAX} bytes, no blanks or slashes", name.escape_debug())]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such interface.
    #[error("tap {name}: no such interface: make it: ip tuntap add {name} mode tap user $USER")]
    Absent {
        /// Its name.
        name: String,
    },
    /// Somebody else has it.
    #[error("tap {name}: in use by another program: give each VM an interface of its own")]
    InUse {
        /// Its name.
        name: String,
    },
    /// It belongs to somebody else.
    #[error("tap {name}: not yours: make it with: ip tuntap add {name} mode tap user $USER")]
    NotYours {
        /// Its name.
        name: String,
    },
    /// It is an interface of another kind.
    #[error(
        "tap {name}: not a TAP interface with one queue: make one: ip tuntap add NAME mode tap user $USER"
    )]
    OtherKind {
        /// Its name.
        name: String,
    },
    /// The host refused.
    #[error("tap {name}: {operation}: {source}: {remedy}")]
    Host {
        /// Its name.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// Whether `name` can be one of an interface (dev_valid_name() of Linux).
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| !byte.is_ascii_whitespace() && !b"/:\0".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && ![".", ".."].contains(&name) && name.bytes().all(good)
}

impl Tap {
    /// Attaches the interface `name`, which must be there. Reads and writes never wait.
    ///
    /// # Errors
    /// It is not there, or not for us.
    pub fn open(name: &str) -> Result<Self, TapError> {
        if !is_name(name) {
            return Err(TapError::Name { name: name.to_owned() });
        }
        let host = |operation, remedy| {
            move |errno: Errno| TapError::Host {
                name: name.to_owned(),
                operation,
                source: errno.into(),
                remedy,
            }
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(DEVICE, flags, Mode::empty())
            .map_err(host("open /dev/net/tun", "load the module tun, and be allowed to use it"))?;
        let names = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(host("make a socket", "raise the limit of open files"))?;
        let tap = Self { file, names, name: name.to_owned() };
        tap.attach()?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches the interface of this name again, when it is back after it was deleted.
    ///
    /// # Errors
    /// It is not there, or not for us. Then it can be tried again.
    pub fn attach(&self) -> Result<(), TapError> {
        // Asked to attach what is not there, the kernel would make it: down and without address.
        let there = netdevice::name_to_index(&self.names, &self.name);
        there.map_err(|errno| self.failed("find it", errno))?;
        ioctls::set_interface(&self.file, &self.name)
            .map_err(|errno| self.failed("attach", errno))?;
        ioctls::set_header_len(&self.file, HEADER_LEN as i32)
            .map_err(|errno| self.failed("set its header", errno))?;
        self.set_offloads(Offloads::default()).map_err(|source| TapError::Host {
            name: self.name.clone(),
            operation: "set its offloads",
            source,
            remedy: "use a newer kernel",
        })
    }

    fn failed(&self, operation: &'static str, errno: Errno) -> TapError {
        let name = self.name.clone();
        match errno {
            Errno::NODEV => TapError::Absent { name },
            Errno::BUSY => TapError::InUse { name },
            Errno::PERM => TapError::NotYours { name },
            Errno::INVAL => TapError::OtherKind { name },
            _ => TapError::Host {
                name,
                operation,
                source: errno.into(),
                remedy: "see dmesg of the host",
            },
        }
    }

    /// The largest packet that the interface takes now.
    ///
    /// # Errors
    /// It is gone.
    pub fn mtu(&self) -> io::Result<u32> {
        Ok(ioctls::mtu(&self.names, &self.name)?)
    }

    /// Which of `wanted` the kernel grants. Sets them too.
    pub fn grant_offloads(&self, wanted: Offloads) -> Offloads {
        // Kernels differ in UDP fragmentation only; a kernel without any of it grants nothing.
        let choices = [wanted, Offloads { ufo: false, ..wanted }];
        let granted = choices.into_iter().find(|offloads| self.set_offloads(*offloads).is_ok());
        granted.unwrap_or_default()
    }

    /// Tells the kernel which unfinished frames it may give us from now on.
    ///
    /// # Errors
    /// It knows one of them not; or the interface is gone.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        Ok(ioctls::set_offloads(&self.file, offloads.bits())?)
    }

    /// Reads a header and the frame behind it; how many bytes they have. A frame that is longer
    /// than the buffer is cut.
    ///
    /// # Errors
    /// `WouldBlock` if there is none now; another if the interface is gone.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::read(&self.file, &mut *packet))?)
    }

    /// Writes a header and the frame behind it.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room now; another if the kernel refuses it or the interface is
    /// gone: see [`is_gone`].
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        retry_on_intr(|| rustix::io::write(&self.file, packet))?;
        Ok(())
    }
}

/// Whether an error of [`Tap::read`] or [`Tap::write`] says that the interface was deleted.
pub fn is_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::BADFD)
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Offloads {
    /// TUN_F_* of linux/if_tun.h.
    fn bits(self) -> u32 {
        let bits =
            [(self.checksum, 1), (self.tso4, 2), (self.tso6, 4), (self.ecn, 8), (self.ufo, 16)];
        bits.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_kernel() {
        for name in ["tap0", "a", "vm.web-1_x", "123456789012345"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "1234567890123456", "a b", "a/b", "a:1", "a\n", "a\0b"] {
            assert!(!is_name(name), "{name:?}");
            assert!(matches!(Tap::open(name), Err(TapError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_not_made() {
        let error = Tap::open("fathom-none").expect_err("no such interface");
        let told = error.to_string();
        let here = matches!(error, TapError::Absent { .. });
        // Without the device or the right to it, that is what is told.
        assert!(here || told.contains(DEVICE), "{told}");
        assert!(told.contains("fathom-none"));
    }

    #[test]
    fn offloads_have_the_kernels_bits() {
        assert_eq!(Offloads::default().bits(), 0);
        let some = Offloads { checksum: true, tso6: true, ufo: true, ..Offloads::default() };
        assert_eq!(some.bits(), 0b1_0101);
    }
}
