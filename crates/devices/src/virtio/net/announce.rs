//! What an interface says when its guest goes on elsewhere: a request of reverse ARP (RFC 903), which nobody answers, but
//! from which switches learn where the guest's address is now. The guest has no part in it.

use super::MacAddress;
use super::header::{HEADER_LEN, Header};

/// Least length of an Ethernet frame without its checksum.
const LEN: usize = 60;
const REVERSE_ARP: [u8; 2] = 0x8035_u16.to_be_bytes();
/// Ethernet and IPv4, with addresses of 6 and 4 bytes; operation 3, "request reverse".
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];

/// A header, and the frame behind it.
pub(super) fn packet(mac: MacAddress) -> [u8; HEADER_LEN + LEN] {
    let mut packet = [0; HEADER_LEN + LEN];
    let (header, frame) = packet.split_at_mut(HEADER_LEN);
    header.copy_from_slice(&Header::default().bytes(0));
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.bytes());
    frame[12..14].copy_from_slice(&REVERSE_ARP);
    frame[14..22].copy_from_slice(&REQUEST);
    // Sender and target; the protocol's addresses are what a guest without one would ask for: zero.
    frame[22..28].copy_from_slice(&mac.bytes());
    frame[32..38].copy_from_slice(&mac.bytes());
    packet
}
