//! Packet headers as they lie in guest memory (virtio 1.2, 5.10.6).

/// Bytes of `struct virtio_vsock_hdr`.
pub(super) const HEADER_LEN: usize = 44;

/// The host's address (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// VMADDR_PORT_ANY of vsock(7): the port of nobody.
pub(super) const PORT_ANY: u32 = u32::MAX;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const TYPE_STREAM: u16 = 1;

/// Bits of `flags` in a shutdown (5.10.6.5): the sender takes no more.
const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender sends no more.
const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for (5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one.
    Reset = 3,
    /// One side is done with one direction or both.
    Shutdown = 4,
    /// Bytes of the stream.
    ReadWrite = 5,
    /// How much room the sender has.
    CreditUpdate = 6,
    /// Asks how much room the other has.
    CreditRequest = 7,
}

impl Op {
    pub(super) fn new(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header, whatever its fields say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload that follow.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Size of the sender's buffer for this stream.
    pub(super) buf_alloc: u32,
    /// Bytes that have left that buffer since the stream began, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let double = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            src_cid: double(0),
            dst_cid: double(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: word(28) as u16,
            op: (word(28) >> 16) as u16,
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        let kind_and_op = u32::from(self.kind) | u32::from(self.op) << 16;
        let words = [
            self.src_port,
            self.dst_port,
            self.len,
            kind_and_op,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        for (to, word) in bytes[16..].as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// The reset that answers this packet: from where it went, to where it came from.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            // Also where it is not a stream: the driver looks for a socket of that type.
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

/// Directions of a stream that one side is done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Halves {
    /// It sends no more.
    pub(super) send: bool,
    /// It takes no more.
    pub(super) receive: bool,
}

impl Halves {
    pub(super) const SEND: Self = Self { send: true, receive: false };
    pub(super) const RECEIVE: Self = Self { send: false, receive: true };
    pub(super) const BOTH: Self = Self { send: true, receive: true };

    /// Bits that mean nothing are passed over.
    pub(super) fn from_flags(flags: u32) -> Self {
        Self { send: flags & SHUTDOWN_SEND != 0, receive: flags & SHUTDOWN_RECEIVE != 0 }
    }

    pub(super) fn flags(self) -> u32 {
        u32::from(self.send) * SHUTDOWN_SEND + u32::from(self.receive) * SHUTDOWN_RECEIVE
    }

    pub(super) fn and(self, more: Self) -> Self {
        Self { send: self.send || more.send, receive: self.receive || more.receive }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|i| i as u8 + 1);
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!(header.dst_cid, 0x100f_0e0d_0c0b_0a09);
        assert_eq!((header.src_port, header.dst_port), (0x1413_1211, 0x1817_1615));
        assert_eq!(header.len, 0x1c1b_1a19);
        assert_eq!((header.kind, header.op), (0x1e1d, 0x201f));
        assert_eq!(header.flags, 0x2423_2221);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (0x2827_2625, 0x2c2b_2a29));
        assert_eq!(header.bytes(), bytes);
    }

    #[test]
    fn operations_and_halves_have_their_numbers() {
        for value in 0..=u16::MAX {
            assert_eq!(
                Op::new(value).map(|op| op as u16),
                (1..=7).contains(&value).then_some(value)
            );
        }
        for flags in 0..4 {
            assert_eq!(Halves::from_flags(flags | 0xff00).flags(), flags);
        }
        assert_eq!(Halves::SEND.flags(), 2);
        assert_eq!(Halves::SEND.and(Halves::RECEIVE), Halves::BOTH);
    }
}
