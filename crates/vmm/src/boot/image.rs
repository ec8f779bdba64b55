//! A kernel file, whatever its format: recognised by its content, unpacked, checked.

use super::bzimage::{self, SetupHeader};
use super::elf::{self, Vmlinux};
use super::error::ImageError;
use super::little_endian::u32_at;
use super::unpack::Compression;

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

/// A kernel that has been unpacked and checked, ready to be loaded.
#[derive(Clone, Debug)]
pub struct KernelImage {
    /// The unpacked ELF file.
    elf: Vec<u8>,
    vmlinux: Vmlinux,
    header: SetupHeader,
    version: Option<String>,
    format: ImageFormat,
    compression: Option<Compression>,
}

impl KernelImage {
    /// Recognises and unpacks the kernel in `file`, for a guest with `ram` bytes of memory.
    ///
    /// Any bytes are safe to give: what comes out is sound (see [`Vmlinux`]) or an error, and no more
    /// memory is used than a little more than `ram`, or 1 GiB.
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
            return Self::from_bzimage(&file, limit);
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
        let format = ImageFormat::Vmlinux;
        Ok(Self { elf, vmlinux, header, version: None, format, compression: None })
    }

    fn from_bzimage(file: &[u8], limit: u64) -> Result<Self, ImageError> {
        let header = SetupHeader::parse(file)?;
        let payload = bzimage::payload(file, &header)?;
        let (elf, compression) =
            unpack_payload(&file[payload.clone()], payload.start as u64, limit)?;
        if !elf.starts_with(elf::MAGIC) {
            return Err(ImageError::Unsupported {
                what: "its packed part holds no ELF vmlinux: is it a Linux kernel for x86?",
            });
        }
        let image = Self::from_elf(elf, header)?;
        let version = bzimage::version(file);
        Ok(Self { version, format: ImageFormat::BzImage, compression, ..image })
    }

    /// The unpacked ELF file.
    #[must_use]
    pub fn elf(&self) -> &[u8] {
        &self.elf
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

/// The ELF file in a bzImage's payload: packed with its length appended, or as it is.
fn unpack_payload(
    payload: &[u8],
    offset: u64,
    limit: u64,
) -> Result<(Vec<u8>, Option<Compression>), ImageError> {
    if payload.starts_with(elf::MAGIC) {
        return Ok((payload.to_vec(), None));
    }
    let Some(compression) = Compression::detect(payload) else {
        return Err(ImageError::Field {
            field: "packed kernel",
            offset,
            expected: "gzip, xz, lzma, bzip2, lz4 (legacy) or zstd data",
            found: u32_at(payload, 0).unwrap_or(0).into(),
        });
    };
    let unpacked = compression.unpack(payload, offset, limit)?;
    let expected = payload.len().checked_sub(4).and_then(|at| u32_at(payload, at)).unwrap_or(0);
    if unpacked.len() as u32 != expected {
        let found = unpacked.len() as u64;
        return Err(ImageError::UnpackedLength { compression, offset, expected, found });
    }
    Ok((unpacked, Some(compression)))
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
            assert_eq!(image.elf(), small_kernel());
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
        let error = KernelImage::parse(bzimage(&payload), RAM).unwrap_err();
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
                assert!(
                    KernelImage::parse(file[..length].to_vec(), RAM).is_err(),
                    "{compression} cut to {length}"
                );
            }
        }
    }
}
