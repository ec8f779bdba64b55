//! The overlay's header: docs/formats/overlay.md.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::OverlayError;

/// Bytes of a cluster: a page, so that a guest's page-sized write never copies from the image.
pub(in super::super) const CLUSTER_LEN: u64 = 4096;
/// Bytes of the header, and the unit in which the bitmap is written.
pub(super) const PAGE_LEN: u64 = 4096;
pub(super) const BITMAP_OFFSET: u64 = PAGE_LEN;
/// The data starts at a multiple of this, so that clusters are aligned for any file system.
const DATA_ALIGN: u64 = 64 << 10;

const MAGIC: [u8; 8] = *b"FATHOMOV";
const VERSION: u32 = 1;
/// Bytes of the header that the checksum covers; the checksum follows.
const CHECKED_LEN: usize = 48;
/// Bytes of a header with its checksum.
pub(super) const HEADER_LEN: usize = CHECKED_LEN + 4;

/// Tells whether an image is the one the overlay was made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Identity {
    pub(super) len: u64,
    pub(super) modified_secs: i64,
    pub(super) modified_nanos: u32,
}

impl Identity {
    /// The identity of `image`, which has `len` bytes.
    pub(in super::super) fn of(image: &File, len: u64) -> io::Result<Self> {
        let metadata = image.metadata()?;
        // The time of a device node says nothing about the contents.
        let (modified_secs, modified_nanos) = if metadata.is_file() {
            (metadata.mtime(), metadata.mtime_nsec() as u32)
        } else {
            (0, 0)
        };
        Ok(Self { len, modified_secs, modified_nanos })
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the disk: those of the image.
    pub(super) disk_len: u64,
    pub(super) image: Identity,
}

impl Header {
    pub(super) fn new(image: Identity) -> Self {
        Self { disk_len: image.len, image }
    }

    pub(super) fn clusters(&self) -> u64 {
        self.disk_len.div_ceil(CLUSTER_LEN)
    }

    pub(super) fn bitmap_len(&self) -> u64 {
        self.clusters().div_ceil(8).next_multiple_of(PAGE_LEN)
    }

    pub(super) fn data_offset(&self) -> u64 {
        (BITMAP_OFFSET + self.bitmap_len()).next_multiple_of(DATA_ALIGN)
    }

    pub(super) fn file_len(&self) -> u64 {
        self.data_offset() + self.disk_len
    }

    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(CLUSTER_LEN as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.disk_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.image.len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.image.modified_secs.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.image.modified_nanos.to_le_bytes());
        let checksum = crc32(&bytes[..CHECKED_LEN]);
        bytes[CHECKED_LEN..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, OverlayError> {
        if bytes[..8] != MAGIC {
            return Err(OverlayError::NotAnOverlay);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(OverlayError::Version { version, known: VERSION });
        }
        if crc32(&bytes[..CHECKED_LEN]) != u32_at(bytes, CHECKED_LEN) {
            return Err(OverlayError::Damaged { what: "checksum" });
        }
        if u64::from(u32_at(bytes, 12)) != CLUSTER_LEN {
            return Err(OverlayError::Damaged { what: "cluster size" });
        }
        let image = Identity {
            len: u64_at(bytes, 24),
            modified_secs: u64_at(bytes, 32) as i64,
            modified_nanos: u32_at(bytes, 40),
        };
        let disk_len = u64_at(bytes, 16);
        if disk_len != image.len {
            return Err(OverlayError::Damaged { what: "disk size" });
        }
        Ok(Self { disk_len, image })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u64_at(bytes, at) as u32
}

/// Little-endian, zero beyond the end.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let low_first = bytes.iter().skip(at).take(8).enumerate();
    low_first.fold(0, |value, (i, &byte)| value | u64::from(byte) << (8 * i))
}

/// CRC-32 as in Ethernet and gzip (reflected polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        disk_len: 10 << 30,
        image: Identity { len: 10 << 30, modified_secs: -1, modified_nanos: 999_999_999 },
    };

    #[test]
    fn a_header_is_read_as_written() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(Header::decode(&HEADER.encode()).unwrap(), HEADER);
        assert_eq!(HEADER.bitmap_len(), 320 << 10);
        assert_eq!(HEADER.data_offset(), 384 << 10);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for at in 0..HEADER_LEN {
            let mut bytes = HEADER.encode();
            bytes[at] ^= 0x40;
            assert!(Header::decode(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = HEADER.encode();
        bytes[8] = 2;
        let error = Header::decode(&bytes).unwrap_err();
        assert!(matches!(error, OverlayError::Version { version: 2, known: 1 }));
    }
}
