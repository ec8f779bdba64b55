//! One request, taken apart (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::DeviceView;
use crate::virtio::GuestError;
use crate::virtio::queue::{Chain, QueueError, Segments};

/// Type, reserved, sector.
const HEADER_LEN: u64 = 16;
/// The status, last byte of the device-writable part.
const STATUS_LEN: u64 = 1;
/// One range to discard or zero: sector, count, flags.
pub(super) const RANGE_LEN: usize = 16;

/// What the guest asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Id,
    Discard,
    WriteZeroes,
    Unknown,
}

/// What the guest is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A request. However the guest cut its buffers, these are its parts (2.7.4.1).
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) operation: Operation,
    pub(super) sector: u64,
    /// Data from the guest.
    pub(super) from_guest: Segments,
    /// Space for data to the guest.
    pub(super) to_guest: Segments,
    status: Segments,
}

impl Request {
    /// Takes `chain` apart.
    ///
    /// # Errors
    /// There is no header, or no place for the answer: then there is none.
    pub(super) fn parse(chain: Chain, memory: &DeviceView) -> Result<Self, GuestError> {
        let (head, writable) = (chain.head, chain.writable);
        let (header, from_guest) = chain.readable.split_at(HEADER_LEN);
        let mut bytes = [0; HEADER_LEN as usize];
        header.read(memory, 0, &mut bytes)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = bytes;
        let data_len = writable.len().checked_sub(STATUS_LEN);
        let data_len = data_len.ok_or(QueueError::Short { want: STATUS_LEN, have: 0 })?;
        let (to_guest, status) = writable.split_at(data_len);
        Ok(Self {
            head,
            operation: Operation::new(u32::from_le_bytes([t0, t1, t2, t3])),
            sector: u64::from_le_bytes(sector),
            from_guest,
            to_guest,
            status,
        })
    }

    /// Writes the answer, when `filled` bytes of the data are. Returns how many device-writable
    /// bytes are valid from the first one on: the status counts if nothing is missing before it.
    pub(super) fn answer(
        &self,
        status: Status,
        filled: u64,
        memory: &DeviceView,
    ) -> Result<u64, GuestError> {
        self.status.write(memory, 0, &[status as u8])?;
        Ok(if filled == self.to_guest.len() { filled + STATUS_LEN } else { filled })
    }
}

impl Operation {
    fn new(code: u32) -> Self {
        match code {
            VIRTIO_BLK_T_IN => Self::Read,
            VIRTIO_BLK_T_OUT => Self::Write,
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_GET_ID => Self::Id,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Unknown,
        }
    }
}

/// A range to discard or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SectorRange {
    pub(super) sector: u64,
    pub(super) count: u32,
    pub(super) flags: u32,
}

impl SectorRange {
    pub(super) fn parse(bytes: &[u8; RANGE_LEN]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = *bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            count: u32::from_le_bytes([c0, c1, c2, c3]),
            flags: u32::from_le_bytes(flags),
        }
    }
}
