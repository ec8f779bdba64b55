//! Interfaces, addresses and routes by the kernel's own messages (rtnetlink(7)): no program of the guest is needed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use agent_wire::Address;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::net::{recv, sendto, socket_with};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const ADDRESS_PEER: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ROUTE_OUT: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;

/// IFF_UP, netdevice(7).
const UP: u32 = 1;
/// ARPHRD_ETHER.
const ETHERNET: u16 = 1;
const HEADER: usize = 16;
/// The kernel's messages are at most so long where one has room for that (netlink(7)).
const MESSAGES_MAX: usize = 64 << 10;
/// It answers at once.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// An interface as the kernel has it.
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) is_ethernet: bool,
    pub(crate) is_up: bool,
    pub(crate) mac: Vec<u8>,
}

/// A socket to the kernel.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message that is being made.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Values are addresses and numbers: some bytes each.
        self.0.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn numbered(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // NETLINK_ROUTE is protocol 0.
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All interfaces, in the order of their numbers.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.ask(Message::new(GET_LINK, DUMP, &[0; 16]), |kind, body| {
            if kind == NEW_LINK {
                links.extend(link(body));
            }
        })?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Addresses, each with the number of its interface.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<(u32, Address)>> {
        let mut addresses = Vec::new();
        self.ask(Message::new(GET_ADDRESS, DUMP, &[0; 8]), |kind, body| {
            if kind == NEW_ADDRESS {
                addresses.extend(address(body));
            }
        })?;
        Ok(addresses)
    }

    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let flags = if up { UP } else { 0 };
        self.tell(Message::new(NEW_LINK, ACK, &link_body(index, flags, UP)))
    }

    pub(crate) fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let message = Message::new(NEW_LINK, ACK, &link_body(index, 0, 0));
        self.tell(message.attribute(LINK_ADDRESS, &mac))
    }

    pub(crate) fn add_address(&mut self, index: u32, address: Address) -> io::Result<()> {
        self.tell(address_message(NEW_ADDRESS, ACK | CREATE | REPLACE, index, address))
    }

    pub(crate) fn delete_address(&mut self, index: u32, address: Address) -> io::Result<()> {
        self.tell(address_message(DELETE_ADDRESS, ACK, index, address))
    }

    /// A route to everywhere, in place of one that is there.
    pub(crate) fn set_gateway(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        // Table main (254), protocol static (4), scope universe (0), unicast (1).
        let body = [family(gateway), 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let message = Message::new(NEW_ROUTE, ACK | CREATE | REPLACE, &body);
        let message = message.attribute(ROUTE_GATEWAY, &octets(gateway));
        self.tell(message.attribute(ROUTE_OUT, &index.to_ne_bytes()))
    }

    fn tell(&mut self, message: Message) -> io::Result<()> {
        self.ask(message, |_, _| {})
    }

    /// Sends it, and gives each message of the answer to `take`.
    fn ask(&mut self, message: Message, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence += 1;
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &message.numbered(self.sequence), SendFlags::empty(), &kernel)?;
        let mut buffer = vec![0; MESSAGES_MAX];
        loop {
            let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(result) = each(&buffer[..count], self.sequence, &mut take) {
                return result;
            }
        }
    }
}

/// The result, once there is one.
fn each(
    mut bytes: &[u8],
    sequence: u32,
    take: &mut impl FnMut(u16, &[u8]),
) -> Option<io::Result<()>> {
    while bytes.len() >= HEADER {
        let length = u32_at(bytes, 0) as usize;
        if length < HEADER || length > bytes.len() {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        }
        let (kind, body) = (u16_at(bytes, 4), &bytes[HEADER..length]);
        if u32_at(bytes, 8) == sequence {
            match kind {
                ERROR if body.len() < 4 => return Some(Err(io::ErrorKind::InvalidData.into())),
                ERROR => {
                    let code = u32_at(body, 0).cast_signed();
                    let error = || Err(io::Error::from_raw_os_error(code.saturating_neg()));
                    return Some(if code == 0 { Ok(()) } else { error() });
                }
                DONE => return Some(Ok(())),
                _ => take(kind, body),
            }
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    None
}

fn link_body(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&change.to_ne_bytes());
    body
}

fn address_message(kind: u16, flags: u16, index: u32, address: Address) -> Message {
    let mut body = [family(address.ip), address.prefix, 0, 0, 0, 0, 0, 0];
    body[4..].copy_from_slice(&index.to_ne_bytes());
    let octets = octets(address.ip);
    Message::new(kind, flags, &body)
        .attribute(ADDRESS_LOCAL, &octets)
        .attribute(ADDRESS_PEER, &octets)
}

fn link(body: &[u8]) -> Option<Link> {
    let fixed = body.get(..16)?;
    let mut name = String::new();
    let mut mac = Vec::new();
    for (kind, value) in Attributes(&body[16..]) {
        match kind {
            LINK_NAME => name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            LINK_ADDRESS => mac = value.to_vec(),
            _ => {}
        }
    }
    let is_ethernet = u16_at(fixed, 2) == ETHERNET;
    Some(Link {
        index: u32_at(fixed, 4),
        name,
        is_ethernet,
        is_up: u32_at(fixed, 8) & UP != 0,
        mac,
    })
}

fn address(body: &[u8]) -> Option<(u32, Address)> {
    let fixed = body.get(..8)?;
    let (mut local, mut peer) = (None, None);
    for (kind, value) in Attributes(&body[8..]) {
        match kind {
            ADDRESS_LOCAL => local = ip(value),
            ADDRESS_PEER => peer = ip(value),
            _ => {}
        }
    }
    Some((u32_at(fixed, 4), Address { ip: local.or(peer)?, prefix: fixed[1] }))
}

struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0.get(..4)?, 0));
        let value = self.0.get(4..length)?;
        let kind = u16_at(self.0, 2);
        self.0 = &self.0[length.next_multiple_of(4).min(self.0.len())..];
        Some((kind, value))
    }
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    family.as_raw() as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(|octets| Ipv4Addr::from(octets).into());
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

/// `bytes` has as many.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for ip in ["10.0.0.2", "fd00::2"] {
            let asked = Address { ip: ip.parse().expect("an address"), prefix: 24 };
            let bytes = address_message(NEW_ADDRESS, 0, 7, asked).numbered(9);
            let mut read = Vec::new();
            let end = each(&bytes, 9, &mut |kind, body: &[u8]| read.push((kind, address(body))));
            assert!(end.is_none());
            assert_eq!(read, [(NEW_ADDRESS, Some((7, asked)))]);
            // Somebody else's answer.
            assert!(each(&bytes, 8, &mut |_, _: &[u8]| panic!("taken")).is_none());
        }
    }

    #[test]
    fn results_are_errors_of_the_kernel() {
        let answer = |code: i32| Message::new(ERROR, 0, &code.to_ne_bytes()).numbered(1);
        let result = |code| each(&answer(code), 1, &mut |_, _: &[u8]| {}).expect("a result");
        assert!(result(0).is_ok());
        assert_eq!(result(-17).expect_err("refused").kind(), io::ErrorKind::AlreadyExists);
        assert!(result(i32::MIN).is_err());
    }

    #[test]
    fn what_is_cut_short_is_no_message() {
        let bytes = Message::new(NEW_LINK, 0, &[0; 16]).attribute(LINK_NAME, b"eth0\0").numbered(1);
        for cut in 0..bytes.len() {
            let mut short = bytes[..cut].to_vec();
            let read = each(&short, 1, &mut |_, _: &[u8]| panic!("{cut} bytes are a message"));
            assert!(read.is_none_or(|result| result.is_err()));
            if cut >= HEADER {
                short[..4].copy_from_slice(&(cut as u32).to_ne_bytes());
                let _ = each(&short, 1, &mut |_, body: &[u8]| drop(link(body)));
            }
        }
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let links = Netlink::open().and_then(|mut netlink| netlink.links()).expect("links");
        assert!(links.iter().any(|link| link.name == "lo" && !link.is_ethernet));
    }
}
