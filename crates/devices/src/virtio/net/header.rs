//! The header before each frame: `struct virtio_net_hdr` (virtio 1.2, 5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
};

/// Bytes of it, in every guest with VERSION_1.
pub(super) const HEADER_LEN: usize = 12;

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u32 = VIRTIO_NET_HDR_GSO_NONE;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// What whoever takes the frame must finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    segment_len: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Header {
    /// Of a frame whose checksums somebody has looked at.
    pub(super) fn validated() -> Self {
        Self { flags: DATA_VALID, ..Self::default() }
    }

    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1, _, _] = *bytes;
        Self {
            flags,
            gso_type,
            header_len: u16::from_le_bytes([h0, h1]),
            segment_len: u16::from_le_bytes([s0, s1]),
            checksum_start: u16::from_le_bytes([c0, c1]),
            checksum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// As it stands before a frame that takes up `buffers` buffers.
    pub(super) fn bytes(self, buffers: u16) -> [u8; HEADER_LEN] {
        let [h0, h1] = self.header_len.to_le_bytes();
        let [s0, s1] = self.segment_len.to_le_bytes();
        let [c0, c1] = self.checksum_start.to_le_bytes();
        let [o0, o1] = self.checksum_offset.to_le_bytes();
        let [b0, b1] = buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, s0, s1, c0, c1, o0, o1, b0, b1]
    }

    /// Where the checksum starts and how far behind that it is, if it is to be finished.
    pub(super) fn checksum(self) -> Option<(u16, u16)> {
        let needed = self.flags & NEEDS_CHECKSUM != 0;
        needed.then_some((self.checksum_start, self.checksum_offset))
    }

    /// The header of a guest's frame of `frame_len` bytes with what is not the guest's to set taken
    /// out; `None` if it asks for what was not agreed on, or what cannot be (5.1.6.2).
    pub(super) fn sanitized(self, frame_len: usize, features: u64) -> Option<Self> {
        let has = |feature: u32| features & 1 << feature != 0;
        let header = Self { flags: self.flags & NEEDS_CHECKSUM, ..self };
        if let Some((start, offset)) = header.checksum() {
            let end = usize::from(start) + usize::from(offset) + 2;
            if !has(VIRTIO_NET_F_CSUM) || end > frame_len {
                return None;
            }
        }
        let segments = match u32::from(header.gso_type & !ECN) {
            // "... MUST NOT set VIRTIO_NET_HDR_GSO_ECN" with it.
            GSO_NONE if header.gso_type == 0 => return Some(Self { segment_len: 0, ..header }),
            VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
            VIRTIO_NET_HDR_GSO_UDP => has(VIRTIO_NET_F_HOST_UFO),
            _ => false,
        };
        let notifies = header.gso_type & ECN == 0 || has(VIRTIO_NET_F_HOST_ECN);
        let sound = header.checksum().is_some() && header.segment_len > 0;
        (segments && notifies && sound).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
    const TSO4: u64 = CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    const ECN_TOO: u64 = TSO4 | 1 << VIRTIO_NET_F_HOST_ECN;

    fn header(flags: u8, gso_type: u8, segment_len: u16) -> Header {
        let (checksum_start, checksum_offset) = (34, 16);
        Header { flags, gso_type, header_len: 54, segment_len, checksum_start, checksum_offset }
    }

    #[test]
    fn bytes_go_both_ways() {
        let bytes = [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0, 3, 0];
        let header = Header::parse(&bytes);
        assert_eq!((header.header_len, header.segment_len), (54, 1460));
        assert_eq!(header.checksum(), Some((34, 16)));
        assert_eq!(header.bytes(3), bytes);
    }

    #[test]
    fn only_what_was_agreed_on_passes() {
        for (header, features, passes) in [
            (header(0, 0, 0), 0, true),
            (header(1, 0, 0), CSUM, true),
            (header(1, 0, 0), 0, false),
            (header(1, 1, 1460), TSO4, true),
            (header(1, 1, 1460), CSUM, false),
            (header(1, 4, 1460), TSO4, false),
            (header(1, 3, 1460), TSO4, false),
            (header(1, 0x81, 1460), TSO4, false),
            (header(1, 0x81, 1460), ECN_TOO, true),
            (header(0, 1, 1460), TSO4, false),
            (header(1, 1, 0), TSO4, false),
            (header(1, 0x80, 0), ECN_TOO, false),
            (header(1, 2, 1460), u64::MAX, false),
            (header(1, 5, 1460), u64::MAX, false),
        ] {
            assert_eq!(header.sanitized(1514, features).is_some(), passes, "{header:?}");
        }
    }

    #[test]
    fn what_is_the_devices_to_say_is_taken_out() {
        let said = header(0xfe, 0, 77).sanitized(60, u64::MAX).unwrap();
        assert_eq!((said.flags, said.segment_len), (0, 0));
    }

    #[test]
    fn the_checksum_lies_in_the_frame() {
        assert!(header(1, 0, 0).sanitized(52, CSUM).is_some());
        assert!(header(1, 0, 0).sanitized(51, CSUM).is_none());
        let beyond = Header { checksum_start: u16::MAX, ..header(1, 0, 0) };
        assert!(beyond.sanitized(65549, CSUM).is_none());
    }
}
