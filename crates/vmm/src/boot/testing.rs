//! Small kernels and guest memories for the tests of this module.

use std::io::Write;
use std::ops::Range;

use lzma_rust2::filter::FilterType;

use super::error::BootError;
use super::little_endian::put;
use super::unpack::Compression;
use super::{BootMemory, layout};

/// Every compression that a kernel can have and that is unpacked.
pub(super) const ALL_PACKERS: &[Compression] = &[
    Compression::Gzip,
    Compression::Xz,
    Compression::Lzma,
    Compression::Bzip2,
    Compression::Lz4,
    Compression::Zstd,
];

/// A loadable segment to be built.
#[derive(Clone, Copy)]
pub(super) struct ElfSegment {
    pub(super) va: u64,
    pub(super) gpa: u64,
    /// Bytes in the file.
    pub(super) data: u64,
    /// Bytes in memory.
    pub(super) size: u64,
}

/// An ELF vmlinux with these segments, filled with bytes that tell their position.
pub(super) fn elf(entry: u64, segments: &[ElfSegment]) -> Vec<u8> {
    let mut file = vec![0; 64 + segments.len() * 56];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, 2u16.to_le_bytes());
    put(&mut file, 18, 62u16.to_le_bytes());
    put(&mut file, 24, entry.to_le_bytes());
    put(&mut file, 32, 64u64.to_le_bytes());
    put(&mut file, 54, 56u16.to_le_bytes());
    put(&mut file, 56, (segments.len() as u16).to_le_bytes());
    for (index, segment) in segments.iter().enumerate() {
        let header = 64 + index * 56;
        let offset = file.len() as u64;
        put(&mut file, header, 1u32.to_le_bytes());
        let fields = [offset, segment.va, segment.gpa, segment.data, segment.size, 0x1000];
        for (field, value) in fields.into_iter().enumerate() {
            put(&mut file, header + 8 + field * 8, value.to_le_bytes());
        }
        file.extend((0..segment.data).map(|at| (at ^ at >> 5 ^ segment.gpa >> 12) as u8));
    }
    file
}

/// A vmlinux at 16 MiB with two segments, the second with 8 KiB of zeros behind its bytes.
pub(super) fn small_kernel() -> Vec<u8> {
    let text = ElfSegment { va: 0xffff_ffff_8100_0000, gpa: 0x100_0000, data: 5000, size: 5000 };
    let data = ElfSegment { va: 0xffff_ffff_8120_0000, gpa: 0x120_0000, data: 100, size: 8292 };
    elf(0x100_0000, &[text, data])
}

/// `bytes` packed as the kernel's build would, without the appended length.
pub(super) fn pack(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(1);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Lzma => {
            let options = lzma_rust2::LzmaOptions::with_preset(1);
            let mut writer =
                lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), Default::default());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Lz4 => {
            let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in bytes.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Compression::Zstd => zstd::encode_all(bytes, 3).unwrap(),
        Compression::Lzo => panic!("nothing here packs lzo"),
    }
}

/// A bzImage around `payload`: one sector of boot code, one of setup, then the payload.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let version = b"6.1.0-test (builder@host) #1\0";
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    put(&mut file, 0x1fe, 0xaa55u16.to_le_bytes());
    put(&mut file, 0x200, [0xeb, 0x6a]);
    put(&mut file, 0x202, *b"HdrS");
    put(&mut file, 0x206, 0x020fu16.to_le_bytes());
    put(&mut file, 0x20e, 0x100u16.to_le_bytes());
    put(&mut file, 0x22c, 0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x238, 2047u32.to_le_bytes());
    put(&mut file, 0x248, 16u32.to_le_bytes());
    put(&mut file, 0x24c, (payload.len() as u32).to_le_bytes());
    file[0x300..0x300 + version.len()].copy_from_slice(version);
    file.extend([0; 16]);
    file.extend(payload);
    file
}

/// A bzImage of [`small_kernel`], packed and with the length behind.
pub(super) fn packed_kernel(compression: Compression) -> Vec<u8> {
    let mut payload = pack(compression, &small_kernel());
    if compression != Compression::Gzip {
        payload.extend((small_kernel().len() as u32).to_le_bytes());
    }
    bzimage(&payload)
}

/// RAM from 0 on, which panics on a write outside it.
pub(super) struct Ram {
    pub(super) bytes: Vec<u8>,
    ranges: Vec<Range<u64>>,
}

impl Ram {
    /// `size` bytes of RAM below the device hole.
    pub(super) fn new(size: usize) -> Self {
        Self { bytes: vec![0; size], ranges: layout::ram_ranges(size as u64) }
    }

    /// The `length` bytes at `gpa`.
    pub(super) fn at(&self, gpa: u64, length: usize) -> &[u8] {
        &self.bytes[gpa as usize..gpa as usize + length]
    }
}

impl BootMemory for Ram {
    fn ram_ranges(&self) -> Vec<Range<u64>> {
        self.ranges.clone()
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
        self.bytes[gpa as usize..gpa as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}
