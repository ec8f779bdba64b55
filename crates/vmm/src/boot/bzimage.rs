//! The bzImage: a real-mode part with the setup header, then a part that carries the packed vmlinux.
//!
//! Offsets and names are those of Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

use std::ops::Range;

use super::error::ImageError;
use super::little_endian::{put, u16_at, u32_at};

/// Offset of the setup header, in the file and in the zero page alike.
pub(super) const HEADER_START: usize = 0x1f1;
/// End of the room for it in the zero page, `edd_mbr_sig_buffer`.
const HEADER_END_MAX: usize = 0x290;
/// End of the part that every boot protocol from 2.08 on has, after `payload_length`.
const HEADER_END_MIN: usize = 0x250;
const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// Boot protocol 2.08 is the first whose header says where the packed vmlinux is (Linux 2.6.26).
const PROTOCOL_MIN: u16 = 0x0208;
const SECTOR: usize = 512;

const BOOT_FLAG: usize = 0x1fe;
const PROTOCOL: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const LOAD_FLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// `LOADED_HIGH` in `loadflags`: the protected-mode part is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// The longest version that is believed.
const VERSION_MAX: usize = 512;

/// Whether `file` has a setup header.
pub(super) fn detect(file: &[u8]) -> bool {
    file.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len()) == Some(MAGIC)
}

/// The setup header: what a kernel tells its loader, and a loader the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetupHeader {
    /// From `HEADER_START` on; from 0x5f to 0x9f bytes.
    bytes: Vec<u8>,
}

impl SetupHeader {
    /// Reads and checks the header of the bzImage `file`.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        if file.len() < HEADER_END_MIN {
            return Err(truncated(
                "setup header",
                HEADER_START,
                HEADER_END_MIN - HEADER_START,
                file,
            ));
        }
        let protocol = u16_at(file, PROTOCOL).unwrap_or(0);
        if protocol < PROTOCOL_MIN {
            return Err(ImageError::Field {
                field: "boot protocol version",
                offset: PROTOCOL as u64,
                expected: "0x208 (Linux 2.6.26) or later",
                found: protocol.into(),
            });
        }
        // The second byte of the jump over the header gives the header's length.
        let end = MAGIC_OFFSET + usize::from(file[MAGIC_OFFSET - 1]);
        if !(HEADER_END_MIN..=HEADER_END_MAX).contains(&end) {
            return Err(ImageError::Field {
                field: "setup header length (jump)",
                offset: MAGIC_OFFSET as u64 - 1,
                expected: "from 0x4e to 0x8e",
                found: file[MAGIC_OFFSET - 1].into(),
            });
        }
        let bytes = file
            .get(HEADER_START..end)
            .ok_or_else(|| truncated("setup header", HEADER_START, end - HEADER_START, file))?;
        Ok(Self { bytes: bytes.to_vec() })
    }

    /// The header for a kernel that has none, an ELF vmlinux: what Linux 6.1 for x86-64 would say.
    #[must_use]
    pub fn for_vmlinux() -> Self {
        let mut header = Self { bytes: vec![0; 0x26c - HEADER_START] };
        header.put(BOOT_FLAG, 0xaa55u16.to_le_bytes());
        header.put(MAGIC_OFFSET, *b"HdrS");
        header.put(PROTOCOL, 0x020fu16.to_le_bytes());
        header.put(LOAD_FLAGS, [LOADED_HIGH]);
        header.put(INITRD_ADDR_MAX, 0x7fff_ffffu32.to_le_bytes());
        header.put(KERNEL_ALIGNMENT, 0x20_0000u32.to_le_bytes());
        header.put(CMDLINE_SIZE, 2047u32.to_le_bytes());
        header
    }

    /// The header's bytes, to be put at offset 0x1f1 of the zero page.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The longest command line, without its NUL.
    #[must_use]
    pub fn cmdline_size(&self) -> usize {
        self.u32(CMDLINE_SIZE) as usize
    }

    /// The highest address that a byte of the initrd may have.
    #[must_use]
    pub fn initrd_addr_max(&self) -> u64 {
        self.u32(INITRD_ADDR_MAX).into()
    }

    fn u32(&self, offset: usize) -> u32 {
        // Present: a header has at least HEADER_END_MIN - HEADER_START bytes.
        u32_at(&self.bytes, offset - HEADER_START).unwrap_or(0)
    }

    fn put<const N: usize>(&mut self, offset: usize, field: [u8; N]) {
        put(&mut self.bytes, offset - HEADER_START, field);
    }
}

/// Where the packed vmlinux lies in `file`, whose header has been parsed.
pub(super) fn payload(file: &[u8], header: &SetupHeader) -> Result<Range<usize>, ImageError> {
    let length = header.u32(PAYLOAD_LENGTH) as usize;
    if length == 0 {
        return Err(ImageError::Field {
            field: "payload_length",
            offset: PAYLOAD_LENGTH as u64,
            expected: "the size of the packed kernel",
            found: 0,
        });
    }
    let start = setup_size(file).saturating_add(header.u32(PAYLOAD_OFFSET) as usize);
    if start.checked_add(length).is_none_or(|end| end > file.len()) {
        return Err(truncated("packed kernel", start, length, file));
    }
    Ok(start..start + length)
}

/// Bytes of the real-mode part. A `setup_sects` of 0 stands for 4, for old loaders' sake.
fn setup_size(file: &[u8]) -> usize {
    let sectors = match file[HEADER_START] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    (1 + sectors) * SECTOR
}

/// The version string that the real-mode part holds, as `uname -rv` and the builder give it.
pub(super) fn version(file: &[u8]) -> Option<String> {
    let offset = usize::from(u16_at(file, KERNEL_VERSION)?);
    if offset == 0 {
        return None;
    }
    let text = file.get(offset + SECTOR..)?;
    let text = &text[..text.len().min(VERSION_MAX)];
    let text = std::str::from_utf8(&text[..text.iter().position(|&byte| byte == 0)?]).ok()?;
    let printable = !text.is_empty() && !text.chars().any(char::is_control);
    printable.then(|| text.to_owned())
}

fn truncated(what: &'static str, offset: usize, needed: usize, file: &[u8]) -> ImageError {
    ImageError::Truncated {
        what,
        offset: offset as u64,
        needed: needed as u64,
        available: file.len().saturating_sub(offset) as u64,
        length: file.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::bzimage;

    #[test]
    fn a_header_is_read_back() {
        let file = bzimage(b"payload");
        let header = SetupHeader::parse(&file).unwrap();
        assert_eq!(header.cmdline_size(), 2047);
        assert_eq!(header.initrd_addr_max(), 0x7fff_ffff);
        assert_eq!(&file[payload(&file, &header).unwrap()], b"payload");
        assert_eq!(version(&file).as_deref(), Some("6.1.0-test (builder@host) #1"));
    }

    #[test]
    fn the_made_up_header_passes_for_a_real_one() {
        let mut file = vec![0; HEADER_START];
        file.extend(SetupHeader::for_vmlinux().as_bytes());
        file[MAGIC_OFFSET - 1] = 0x6a;
        assert!(detect(&file));
        assert_eq!(SetupHeader::parse(&file).unwrap().cmdline_size(), 2047);
    }

    #[test]
    fn a_payload_outside_the_file_is_truncated() {
        for (offset, value) in [(PAYLOAD_OFFSET, u32::MAX), (PAYLOAD_LENGTH, 8), (HEADER_START, 9)]
        {
            let mut file = bzimage(b"payload");
            put(&mut file, offset, value.to_le_bytes());
            let error =
                SetupHeader::parse(&file).and_then(|header| payload(&file, &header)).unwrap_err();
            assert!(
                matches!(error, ImageError::Truncated { what: "packed kernel", .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn an_empty_payload_an_old_protocol_and_an_odd_length_are_named() {
        for (offset, value, name) in [
            (PAYLOAD_LENGTH, 0u32, "payload_length"),
            (PROTOCOL, 0x207, "boot protocol version"),
            (MAGIC_OFFSET - 1, 0x7264_480a, "setup header length (jump)"),
            (MAGIC_OFFSET - 1, 0x7264_48ff, "setup header length (jump)"),
        ] {
            let mut file = bzimage(b"payload");
            put(&mut file, offset, value.to_le_bytes());
            let error =
                SetupHeader::parse(&file).and_then(|header| payload(&file, &header)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_bad_version_is_no_version() {
        let mut file = bzimage(b"payload");
        for offset in [0u16, 0xffff] {
            put(&mut file, KERNEL_VERSION, offset.to_le_bytes());
            assert_eq!(version(&file), None);
        }
    }
}
