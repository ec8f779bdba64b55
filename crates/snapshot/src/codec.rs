//! Compression of chunks.

use std::cell::RefCell;
use std::io;

use serde::{Deserialize, Serialize};
use zstd::bulk;

/// How a memory image is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: each frame at its place in a sparse file, which can be mapped.
    #[default]
    None,
    /// LZ4 blocks: fast both ways.
    Lz4,
    /// Zstandard frames, level 1: a smaller file.
    Zstd,
}

/// Higher levels of zstd gain a few percent on memory and take several times as long.
const ZSTD_LEVEL: i32 = 1;

/// Compresses chunk after chunk, on one thread.
pub(crate) struct Compressor {
    method: Method,
    output: Vec<u8>,
}

enum Method {
    None,
    Lz4,
    Zstd(bulk::Compressor<'static>),
}

impl Compressor {
    pub(crate) fn new(compression: Compression) -> io::Result<Self> {
        let method = match compression {
            Compression::None => Method::None,
            Compression::Lz4 => Method::Lz4,
            Compression::Zstd => Method::Zstd(bulk::Compressor::new(ZSTD_LEVEL)?),
        };
        Ok(Self { method, output: Vec::new() })
    }

    /// What to store for `input`: its compressed form, or itself where that is not smaller.
    pub(crate) fn compress<'a>(&'a mut self, input: &'a [u8]) -> io::Result<&'a [u8]> {
        let bound = match self.method {
            Method::None => return Ok(input),
            Method::Lz4 => lz4_flex::block::get_maximum_output_size(input.len()),
            Method::Zstd(_) => zstd::zstd_safe::compress_bound(input.len()),
        };
        self.output.resize(bound, 0);
        let output = self.output.as_mut_slice();
        let len = match &mut self.method {
            Method::None => input.len(),
            Method::Lz4 => {
                lz4_flex::block::compress_into(input, output).map_err(io::Error::other)?
            }
            Method::Zstd(zstd) => zstd.compress_to_buffer(input, output)?,
        };
        Ok(if len < input.len() { &self.output[..len] } else { input })
    }
}

thread_local! {
    /// Made once a thread: it is large.
    static ZSTD: RefCell<Option<bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The inverse: fills `into`, or says why `stored` cannot be that.
pub(crate) fn decompress(
    compression: Compression,
    stored: &[u8],
    into: &mut [u8],
) -> Result<(), String> {
    if stored.len() == into.len() {
        into.copy_from_slice(stored);
        return Ok(());
    }
    let len = match compression {
        Compression::None => return Err(format!("{} bytes", stored.len())),
        Compression::Lz4 => {
            lz4_flex::block::decompress_into(stored, into).map_err(|error| error.to_string())?
        }
        Compression::Zstd => unzstd(stored, into).map_err(|error| error.to_string())?,
    };
    if len == into.len() { Ok(()) } else { Err(format!("{len} bytes")) }
}

fn unzstd(stored: &[u8], into: &mut [u8]) -> io::Result<usize> {
    ZSTD.with_borrow_mut(|zstd| {
        let zstd = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert(bulk::Decompressor::new()?),
        };
        zstd.decompress_to_buffer(stored, into)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    #[test]
    fn what_is_compressed_comes_back() {
        let text: Vec<u8> = (0..40_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let noise: Vec<u8> = (0..5000u64)
            .flat_map(|n| crate::Checksum::of(&n.to_le_bytes()).0.to_le_bytes())
            .collect();
        for (compression, input) in ALL.iter().flat_map(|c| [(*c, &text), (*c, &noise)]) {
            let mut compressor = Compressor::new(compression).expect("a compressor");
            let stored = compressor.compress(input).expect("compressed").to_vec();
            assert!(stored.len() <= input.len());
            let mut output = vec![0xff; input.len()];
            decompress(compression, &stored, &mut output).expect("decompressed");
            assert_eq!(&output, input);
            let smaller = compression != Compression::None && input == &text;
            assert_eq!(stored.len() < input.len(), smaller, "{compression:?}");
        }
    }

    #[test]
    fn what_has_another_length_is_refused() {
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut compressor = Compressor::new(compression).expect("a compressor");
            let stored = compressor.compress(&[7; 8192]).expect("compressed");
            for len in [4096, 8191, 8193, 12288] {
                assert!(decompress(compression, stored, &mut vec![0; len]).is_err(), "{len}");
            }
            assert!(decompress(compression, b"", &mut [0; 4096]).is_err());
            assert!(decompress(compression, b"no such thing", &mut [0; 4096]).is_err());
        }
        assert!(decompress(Compression::None, &[1; 100], &mut [0; 4096]).is_err());
    }
}
