//! The ioctls of linux/if_tun.h.

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Of linux/sockios.h, from before numbers had a size in them.
const SIOCGIFMTU: Opcode = 0x8921;

/// `struct ifreq` of linux/if.h.
#[repr(C, align(8))]
struct InterfaceRequest {
    /// Ends with a zero.
    name: [u8; 16],
    /// A union: flags, or an MTU, or other things.
    value: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Attaches `file` to the interface `name`, of at most 15 bytes.
pub(crate) fn set_interface(file: impl AsFd, name: &str) -> Result<()> {
    let mut request = InterfaceRequest::of(name);
    request.value[..2].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, despite the size in its number, and
    // writes the interface's name back; the request is one, and outlives the call.
    unsafe { ioctl(file, Updater::<'_, TUNSETIFF, _>::new(&mut request)) }
}

/// The MTU of the interface `name`, asked of any `socket`.
pub(crate) fn mtu(socket: impl AsFd, name: &str) -> Result<u32> {
    let mut request = InterfaceRequest::of(name);
    // SAFETY: SIOCGIFMTU takes a pointer to a `struct ifreq`, of which it reads the name and writes
    // the value; the request is one, and outlives the call.
    unsafe { ioctl(socket, Updater::<'_, SIOCGIFMTU, _>::new(&mut request)) }?;
    let [a, b, c, d, ..] = request.value;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// Sets the length of the header before each frame.
pub(crate) fn set_header_len(file: impl AsFd, len: i32) -> Result<()> {
    // SAFETY: TUNSETVNETHDRSZ takes a pointer to an int, which it reads.
    unsafe { ioctl(file, Setter::<TUNSETVNETHDRSZ, i32>::new(len)) }
}

/// Sets what the reader can do with unfinished frames: TUN_F_* bits.
pub(crate) fn set_offloads(file: impl AsFd, bits: u32) -> Result<()> {
    // SAFETY: TUNSETOFFLOAD takes the bits themselves; the kernel refuses those it does not know.
    unsafe { ioctl(file, IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits as usize)) }
}

impl InterfaceRequest {
    /// About the interface `name`, of at most 15 bytes.
    fn of(name: &str) -> Self {
        let mut request = Self { name: [0; 16], value: [0; 24] };
        for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    #[test]
    fn the_loopback_interface_has_an_mtu() {
        let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None).expect("a socket");
        assert_eq!(mtu(&any, "lo").expect("lo"), 65536);
        assert!(mtu(&any, "fathom-none").is_err());
    }
}
