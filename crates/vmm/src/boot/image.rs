//! A kernel file, whatever its format: recognised by its content, unpacked, checked.

use std::io::Write;
use std::ops::Range;

use super::bzimage::{self, SetupHeader};
use super::contents::SegmentWriter;
use super::elf::{self, Vmlinux};
use super::error::ImageError;
use super::little_endian::u32_at;
use super::unpack::Compression;
use super::{BootError, BootMemory};

/// The largest kernel: `KERNEL_IMAGE_SIZE`, all that the kernel's own mapping can hold.
const UNPACKED_MAX: u64 = 1 << 30;
/// Unpacked bytes that are not loaded (relocations, section tables): a guest that is too small by less
/// gets the error that says how much memory the kernel needs.
const NOT_LOADED: u64 = 64 << 20;
/// A vmlinux.gz may hold a bzImage, which holds a packed vmlinux: no file has a reason to go deeper.
const NESTING_MAX: u32 = 2;

/// How a kernel file was packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageFormat {
    /// An ELF vmlinux, possibly in a compressed file.
    Vmlinux,
    /// What distributions install as vmlinuz.
    BzImage,
}

/// Program headers follow the ELF header directly, and there are few.
const HEAD: usize = 64 << 10;

/// A kernel that has been recognised and checked, ready to be loaded.
#[derive(Clone, Debug)]
pub struct KernelImage {
    elf: Elf,
    vmlinux: Vmlinux,
    header: SetupHeader,
    version: Option<String>,
    format: ImageFormat,
    compression: Option<Compression>,
}

/// An ELF file.
#[derive(Clone, Debug)]
enum Elf {
    Whole(Vec<u8>),
    /// Packed in a part of a bzImage; unpacked on its way to guest memory.
    Packed {
        file: Vec<u8>,
        payload: Range<usize>,
        compression: Compression,
        unpacked: u32,
    },
}

impl KernelImage {
    /// Recognises the kernel in `file`, for a guest with `ram` bytes of memory.
    ///
    /// Any bytes are safe to give: what comes out is sound (see [`Vmlinux`]) or an error, and no more
    /// memory is used than a little more than `ram`, or 1 GiB. Damage in what a bzImage has packed may be
    /// found as late as in [`super::load`].
    pub fn parse(file: Vec<u8>, ram: u64) -> Result<Self, ImageError> {
        Self::parse_nested(file, ram.saturating_add(NOT_LOADED).min(UNPACKED_MAX), 0)
    }

    fn parse_nested(file: Vec<u8>, limit: u64, depth: u32) -> Result<Self, ImageError> {
        if file.is_empty() {
            return Err(ImageError::Empty);
        }
        if file.starts_with(elf::MAGIC) {
            return Self::from_elf(file, SetupHeader::for_vmlinux());
        }
        if bzimage::detect(&file) {
            return Self::from_bzimage(file, limit);
        }
        match Compression::detect(&file) {
            Some(compression) if depth < NESTING_MAX => {
                let unpacked = compression.unpack(&file, 0, limit)?;
                let image = Self::parse_nested(unpacked, limit, depth + 1)?;
                Ok(Self { compression: image.compression.or(Some(compression)), ..image })
            }
            _ => Err(ImageError::NotAKernel { found: describe(&file) }),
        }
    }

    fn from_elf(elf: Vec<u8>, header: SetupHeader) -> Result<Self, ImageError> {
        let vmlinux = Vmlinux::parse(&elf)?;
        let (elf, format) = (Elf::Whole(elf), ImageFormat::Vmlinux);
        Ok(Self { elf, vmlinux, header, version: None, format, compression: None })
    }

    fn from_bzimage(file: Vec<u8>, limit: u64) -> Result<Self, ImageError> {
        let header = SetupHeader::parse(&file)?;
        let (version, format) = (bzimage::version(&file), ImageFormat::BzImage);
        let payload = bzimage::payload(&file, &header)?;
        let packed = &file[payload.clone()];
        if packed.starts_with(elf::MAGIC) {
            let image = Self::from_elf(packed.to_vec(), header)?;
            return Ok(Self { version, format, ..image });
        }
        let offset = payload.start as u64;
        let (compression, unpacked) = packed_as(packed, offset)?;
        if u64::from(unpacked) > limit {
            return Err(ImageError::UnpackedTooLarge { compression, offset, limit });
        }
        let head = compression.unpack_head(packed, offset, HEAD)?;
        if !head.starts_with(elf::MAGIC) {
            return Err(ImageError::Unsupported {
                what: "its packed part holds no ELF vmlinux: is it a Linux kernel for x86?",
            });
        }
        let vmlinux = Vmlinux::parse_head(&head, unpacked.into())?;
        let elf = Elf::Packed { file, payload, compression, unpacked };
        Ok(Self { elf, vmlinux, header, version, format, compression: Some(compression) })
    }

    /// Writes the segments into guest memory.
    pub(super) fn write_segments(&self, memory: &mut dyn BootMemory) -> Result<(), BootError> {
        let mut writer = SegmentWriter::new(&self.vmlinux.segments, memory);
        let written = self.elf.write(&mut writer);
        match writer.into_failure() {
            Some(error) => Err(error),
            None => written.map_err(BootError::Image),
        }
    }

    /// The unpacked ELF file.
    #[cfg(test)]
    pub(super) fn unpacked(&self) -> Result<Vec<u8>, ImageError> {
        let mut elf = Vec::new();
        self.elf.write(&mut elf)?;
        Ok(elf)
    }

    /// Its segments and entry.
    #[must_use]
    pub fn vmlinux(&self) -> &Vmlinux {
        &self.vmlinux
    }

    /// The setup header of a bzImage, or one made up for a vmlinux.
    #[must_use]
    pub fn header(&self) -> &SetupHeader {
        &self.header
    }

    /// The version that a bzImage names, such as `6.1.0-56-cloud-amd64 (...) #1 SMP ...`.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// What the file was.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// How the vmlinux was packed, if it was.
    #[must_use]
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }
}

impl Elf {
    /// Writes the whole file, unpacked, in pieces.
    fn write(&self, out: &mut dyn Write) -> Result<(), ImageError> {
        let (file, payload, compression, expected) = match self {
            Self::Whole(elf) => return out.write_all(elf).map_err(ImageError::NotTaken),
            Self::Packed { file, payload, compression, unpacked } => {
                (file, payload, *compression, *unpacked)
            }
        };
        let offset = payload.start as u64;
        let packed = &file[payload.clone()];
        let found = compression.unpack_into(packed, offset, UNPACKED_MAX, out)?;
        if found != u64::from(expected) {
            return Err(ImageError::UnpackedLength { compression, offset, expected, found });
        }
        Ok(())
    }
}

/// How a bzImage's payload is packed, and the length that is appended.
fn packed_as(payload: &[u8], offset: u64) -> Result<(Compression, u32), ImageError> {
    let Some(compression) = Compression::detect(payload) else {
        return Err(ImageError::Field {
            field: "packed kernel",
            offset,
            expected: "gzip, xz, lzma, bzip2, lz4 (legacy) or zstd data",
            found: u32_at(payload, 0).unwrap_or(0).into(),
        });
    };
    let length = payload.len().checked_sub(4).and_then(|at| u32_at(payload, at)).unwrap_or(0);
    Ok((compression, length))
}

/// Files that are given for a kernel by mistake, by their first bytes or those at an offset.
const STRANGERS: &[(usize, &[u8], &str)] = &[
    (0, b"070701", "a cpio archive (an initramfs? give it as the initrd)"),
    (0, b"070702", "a cpio archive (an initramfs? give it as the initrd)"),
    (0, b"#!", "a script"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"!<arch>\n", "an ar archive (a Debian package? unpack it first)"),
    (4, b"zimg", "an EFI zboot image (x86 kernels are not built as such)"),
    (0x38, b"ARM\x64", "a kernel for arm64 (x86-64 is needed)"),
    (0x38, b"RSC\x05", "a kernel for RISC-V (x86-64 is needed)"),
    (257, b"ustar", "a tar archive"),
    (510, b"\x55\xaa", "a boot sector or disk image without a Linux setup header"),
    (0, b"MZ", "a Windows or EFI program without a Linux setup header"),
];

/// What `file`, which is not empty, seems to be.
fn describe(file: &[u8]) -> String {
    let known = STRANGERS
        .iter()
        .find(|(offset, magic, _)| file.get(*offset..).is_some_and(|rest| rest.starts_with(magic)));
    if let Some((_, _, name)) = known {
        return (*name).to_owned();
    }
    if let Some(compression) = Compression::detect(file) {
        return format!("{compression} data packed more than twice");
    }
    if file.len() < 0x206 {
        return format!("a file of only {} bytes", file.len());
    }
    format!("a file that starts with {:02x?}", &file[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{ALL_PACKERS, bzimage, pack, packed_kernel, small_kernel};

    const RAM: u64 = 64 << 20;

    #[test]
    fn a_bzimage_of_every_compression_unpacks() {
        for &compression in ALL_PACKERS {
            let image = KernelImage::parse(packed_kernel(compression), RAM).unwrap();
            assert_eq!(image.format(), ImageFormat::BzImage);
            assert_eq!(image.compression(), Some(compression));
            assert_eq!(image.unpacked().unwrap(), small_kernel());
            assert_eq!(image.version(), Some("6.1.0-test (builder@host) #1"));
        }
    }

    #[test]
    fn vmlinux_plain_packed_and_twice_packed() {
        let image = KernelImage::parse(small_kernel(), RAM).unwrap();
        assert_eq!((image.format(), image.compression()), (ImageFormat::Vmlinux, None));
        for &compression in ALL_PACKERS {
            let image = KernelImage::parse(pack(compression, &small_kernel()), RAM).unwrap();
            assert_eq!(image.format(), ImageFormat::Vmlinux);
            assert_eq!(image.compression(), Some(compression));
        }
        let file = pack(Compression::Gzip, &packed_kernel(Compression::Zstd));
        assert_eq!(KernelImage::parse(file, RAM).unwrap().format(), ImageFormat::BzImage);
    }

    #[test]
    fn strangers_are_named() {
        let gzip_thrice = (0..3).fold(small_kernel(), |file, _| pack(Compression::Gzip, &file));
        let mut disk = vec![0; 4096];
        disk[510..512].copy_from_slice(b"\x55\xaa");
        for (file, name) in [
            (b"070701000000".to_vec(), "cpio"),
            (b"#!/bin/sh\n".to_vec(), "script"),
            (b"hello".to_vec(), "only 5 bytes"),
            (vec![0x11; 4096], "starts with [11, 11"),
            (gzip_thrice, "more than twice"),
            (disk, "boot sector"),
        ] {
            let error = KernelImage::parse(file, RAM).unwrap_err().to_string();
            assert!(error.starts_with("not a Linux kernel") && error.contains(name), "{error}");
        }
        assert!(matches!(KernelImage::parse(Vec::new(), RAM), Err(ImageError::Empty)));
    }

    #[test]
    fn a_wrong_appended_length_is_damage() {
        let mut payload = pack(Compression::Zstd, &small_kernel());
        payload.extend((small_kernel().len() as u32 + 1).to_le_bytes());
        let image = KernelImage::parse(bzimage(&payload), RAM).unwrap();
        let error = image.unpacked().unwrap_err();
        assert!(matches!(error, ImageError::UnpackedLength { .. }), "{error}");
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = vec![0; NOT_LOADED as usize + (2 << 20)];
        let packed = pack(Compression::Zstd, &bomb);
        let error = KernelImage::parse(packed, 1 << 20).unwrap_err();
        assert!(matches!(error, ImageError::UnpackedTooLarge { limit, .. } if limit == 65 << 20));
    }

    #[test]
    fn a_payload_that_is_no_kernel_is_named() {
        let error = KernelImage::parse(bzimage(b"payload"), RAM).unwrap_err();
        assert!(error.to_string().contains("packed kernel"), "{error}");
        let mut payload = pack(Compression::Gzip, b"no ELF");
        payload.extend(6u32.to_le_bytes());
        let error = KernelImage::parse(bzimage(&payload), RAM).unwrap_err();
        assert!(error.to_string().contains("no ELF vmlinux"), "{error}");
    }

    #[test]
    fn every_truncation_of_every_format_is_an_error() {
        for &compression in ALL_PACKERS {
            let file = packed_kernel(compression);
            for length in (0..file.len()).step_by(97) {
                let image = KernelImage::parse(file[..length].to_vec(), RAM);
                let unpacked = image.and_then(|image| image.unpacked());
                assert!(unpacked.is_err(), "{compression} cut to {length}");
            }
        }
    }
}
