//! The few system calls that neither the standard library nor rustix has in a safe form.

use std::fs::File;
use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Callers that wait to be let in.
const BACKLOG: libc::c_int = 16;
/// `RNDRESEEDCRNG` of linux/random.h: `_IO('R', 0x07)`.
const RESEED: libc::c_ulong = 0x5207;

/// A socket of AF_VSOCK that listens.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// On `port` of whatever address the machine has: that may change when it goes on elsewhere.
    pub(crate) fn open(port: u32) -> Result<Self> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: takes numbers only.
        let socket = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
        if socket < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all of a sockaddr_vm are numbers, for which zero is a value.
        let mut address: libc::sockaddr_vm = unsafe { zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        // SAFETY: the address is as long as is said and outlives the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        done(bound)?;
        // SAFETY: takes a descriptor and a number.
        done(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
        Ok(Self(socket))
    }

    /// The next caller, and his address.
    pub(crate) fn accept(&self) -> Result<(File, u32)> {
        // SAFETY: as in `open`.
        let mut address: libc::sockaddr_vm = unsafe { zeroed() };
        let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        let (fd, to) = (self.0.as_raw_fd(), (&raw mut address).cast());
        // SAFETY: `address` has room for `length` bytes.
        let taken = unsafe { libc::accept4(fd, to, &raw mut length, libc::SOCK_CLOEXEC) };
        if taken < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nobody else has.
        let stream = unsafe { OwnedFd::from_raw_fd(taken) };
        Ok((File::from(stream), address.svm_cid))
    }
}

/// Has the kernel draw from what was mixed into its random numbers from now on (random(4)).
pub(crate) fn reseed(urandom: &File) -> Result<()> {
    // SAFETY: this request takes no argument.
    done(unsafe { libc::ioctl(urandom.as_raw_fd(), RESEED, 0) })
}

fn done(result: libc::c_int) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
