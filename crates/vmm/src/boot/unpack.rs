//! Unpacking: every compression that the kernel's build offers.
//!
//! A kernel image carries one compressed stream; for all methods but gzip the build appends the unpacked
//! length as four little-endian bytes, which gzip's own trailer has in the same place
//! (Documentation/arch/x86/boot.rst, `payload_length`; scripts/Makefile.lib, `size_append`).

use std::fmt;
use std::io::{self, Read, Write};

use super::error::ImageError;
use super::little_endian::u32_at;

/// How a kernel is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz container, with the x86 filter that the kernel's build uses.
    Xz,
    /// The older .lzma format.
    Lzma,
    /// bzip2.
    Bzip2,
    /// The legacy LZ4 frame, `lz4 -l`.
    Lz4,
    /// RFC 8878.
    Zstd,
    /// lzop; recognised, not unpacked.
    Lzo,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Lzo => "lzo",
        })
    }
}

/// First bytes, by which the kernel's own decompressor chooses (lib/decompress.c).
const MAGICS: &[(&[u8], Compression)] = &[
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x5d, 0, 0], Compression::Lzma),
    (b"BZh", Compression::Bzip2),
    (&LZ4_LEGACY_MAGIC.to_le_bytes(), Compression::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
];

const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// What one block of a legacy LZ4 frame unpacks to, at most.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// What the other methods hand out at once, at most.
const PIECE: usize = 256 << 10;
/// Most memory that an lzma or xz decoder may use, in KiB: the kernel's builds ask for dictionaries of
/// up to 128 MiB.
const LZMA_MEMORY_KIB: u32 = 192 << 10;

impl Compression {
    /// The method that `bytes` begin with.
    #[must_use]
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        let (_, compression) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic))?;
        Some(*compression)
    }

    /// Unpacks the one stream at the start of `packed`, ignoring what follows it.
    ///
    /// `offset` is where `packed` lies in its file, for messages. Fails where the data is damaged or
    /// unpacks to more than `limit` bytes; never uses much more memory than `limit`.
    pub fn unpack(self, packed: &[u8], offset: u64, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut unpacked = Vec::new();
        self.unpack_into(packed, offset, limit, &mut unpacked)?;
        Ok(unpacked)
    }

    /// The first `length` bytes that `packed` unpacks to, or all if there are fewer.
    pub(super) fn unpack_head(
        self,
        packed: &[u8],
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, ImageError> {
        let mut head = Head { bytes: Vec::new(), length };
        match self.unpack_into(packed, offset, u64::MAX, &mut head) {
            // It refuses what is beyond.
            Err(_) if head.bytes.len() == length => Ok(head.bytes),
            unpacked => unpacked.map(|_| head.bytes),
        }
    }

    /// As [`Compression::unpack`], piece by piece into `out`; answers how many bytes. An error of `out` is
    /// one of the data here. More than `limit` bytes may have gone out when that is found.
    pub(super) fn unpack_into(
        self,
        packed: &[u8],
        offset: u64,
        limit: u64,
        out: &mut dyn Write,
    ) -> Result<u64, ImageError> {
        let damaged = |source| ImageError::Unpack { compression: self, offset, source };
        let unpacked = match self {
            Self::Gzip => copy_up_to(flate2::read::GzDecoder::new(packed), limit, out),
            Self::Xz => copy_up_to(
                lzma_rust2::XzReader::new_mem_limit(packed, false, LZMA_MEMORY_KIB),
                limit,
                out,
            ),
            Self::Lzma => lzma_rust2::LzmaReader::new_mem_limit(packed, LZMA_MEMORY_KIB, None)
                .and_then(|reader| copy_up_to(reader, limit, out)),
            Self::Bzip2 => copy_up_to(bzip2::read::BzDecoder::new(packed), limit, out),
            Self::Lz4 => unpack_lz4_legacy(packed, limit, out),
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(packed)
                .and_then(|reader| copy_up_to(reader.single_frame(), limit, out)),
            Self::Lzo => {
                return Err(ImageError::Unsupported {
                    what: "its compression is lzo: use a kernel with another compression, or its \
                           unpacked vmlinux",
                });
            }
        };
        unpacked.map_err(damaged)?.ok_or(ImageError::UnpackedTooLarge {
            compression: self,
            offset,
            limit,
        })
    }
}

/// Takes so many bytes and refuses more.
struct Head {
    bytes: Vec<u8>,
    length: usize,
}

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.length - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes `reader` gave, or nothing if that is more than `limit`.
fn copy_up_to(reader: impl Read, limit: u64, out: &mut dyn Write) -> io::Result<Option<u64>> {
    let mut reader = reader.take(limit.saturating_add(1));
    let mut piece = vec![0; PIECE];
    let mut copied = 0;
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok((copied <= limit).then_some(copied)),
            Ok(length) => {
                out.write_all(&piece[..length])?;
                copied += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A legacy LZ4 frame: the magic, then blocks, each with its packed length in front. It has no end mark:
/// it ends with the data, or where the kernel's build has appended the unpacked length.
fn unpack_lz4_legacy(packed: &[u8], limit: u64, out: &mut dyn Write) -> io::Result<Option<u64>> {
    let mut unpacked = 0;
    // One buffer for all blocks: a hostile file of many tiny blocks must not cost 8 MiB each.
    let mut block = memmap2::MmapMut::map_anon(LZ4_LEGACY_BLOCK)?;
    let mut position = size_of::<u32>();
    while position < packed.len() {
        let length = u32_at(packed, position).ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = position + size_of::<u32>();
        if length == LZ4_LEGACY_MAGIC {
            position = start; // a frame may follow another
            continue;
        }
        if start == packed.len() && unpacked as u32 == length {
            break; // the appended unpacked length
        }
        let end = start.saturating_add(length as usize);
        let bytes = packed.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        let filled = lz4_flex::block::decompress_into(bytes, &mut block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        unpacked += filled as u64;
        if unpacked > limit {
            return Ok(None);
        }
        out.write_all(&block[..filled])?;
        position = end;
    }
    Ok(Some(unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{ALL_PACKERS, pack};

    fn sample() -> Vec<u8> {
        (0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    #[test]
    fn every_method_gives_back_what_was_packed() {
        for &compression in ALL_PACKERS {
            let packed = pack(compression, &sample());
            assert_eq!(Compression::detect(&packed), Some(compression));
            let unpacked = compression.unpack(&packed, 0, 1 << 20).unwrap();
            assert!(unpacked == sample(), "{compression}");
        }
    }

    #[test]
    fn a_head_is_the_beginning_or_all() {
        for &compression in ALL_PACKERS {
            let packed = pack(compression, &sample());
            let head = |length| compression.unpack_head(&packed, 0, length).unwrap();
            assert!(head(1000) == sample()[..1000], "{compression}");
            assert!(head(sample().len()) == sample(), "{compression}");
            assert!(head(sample().len() + 1) == sample(), "{compression}");
            assert!(compression.unpack_head(&packed[..7], 0, 1000).is_err(), "{compression}");
        }
    }

    #[test]
    fn the_length_appended_by_the_build_is_no_data() {
        for &compression in ALL_PACKERS {
            let mut packed = pack(compression, &sample());
            packed.extend((sample().len() as u32).to_le_bytes());
            let unpacked = compression.unpack(&packed, 0, 1 << 20).unwrap();
            assert!(unpacked == sample(), "{compression}");
        }
    }

    #[test]
    fn the_limit_is_exact() {
        let length = sample().len() as u64;
        for &compression in ALL_PACKERS {
            let packed = pack(compression, &sample());
            assert!(compression.unpack(&packed, 0, length).is_ok(), "{compression}");
            let error = compression.unpack(&packed, 0x40, length - 1).unwrap_err();
            assert!(
                matches!(error, ImageError::UnpackedTooLarge { offset: 0x40, .. }),
                "{compression}: {error}"
            );
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for &compression in ALL_PACKERS {
            let packed = pack(compression, &sample());
            for cut in [packed.len() / 2, packed.len() - 5, 7] {
                let error = compression.unpack(&packed[..cut], 0, 1 << 20).unwrap_err();
                assert!(matches!(error, ImageError::Unpack { .. }), "{compression}: {error}");
            }
        }
    }

    #[test]
    fn lzo_is_named_and_refused() {
        let file = [0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a];
        let error = Compression::detect(&file).unwrap().unpack(&file, 0, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("lzo"), "{error}");
    }

    #[test]
    fn an_lzma_dictionary_beyond_the_limit_is_refused() {
        let mut packed = pack(Compression::Lzma, &sample());
        packed[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Compression::Lzma.unpack(&packed, 0, 1 << 20).is_err());
    }
}
