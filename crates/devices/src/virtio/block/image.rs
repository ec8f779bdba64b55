//! A disk's file, through the host's page cache or past it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use super::file::HostFile;
use crate::virtio::queue::GuestBuffer;

/// What transfers past the page cache are multiples of, in the file and in memory (open(2), O_DIRECT): at least a
/// logical block of any disk.
const UNIT: u64 = 4096;
/// The most in one transfer.
const PIECE: u64 = 256 << 10;
/// Buffers that are kept: for the I/O thread, and for who reads evicted blocks.
const BUFFERS: usize = 2;

/// Whether a disk's contents are in the host's page cache, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// As any file's: nobody asked for something else.
    #[default]
    Used,
    /// No: read and written with O_DIRECT.
    Bypassed,
    /// As any file's, although it was to be bypassed. Why.
    Unavoidable(String),
}

/// A file that is open.
pub(super) enum Image {
    Buffered(File),
    Direct(Direct),
}

/// A file past the page cache. Its length is a multiple of [`UNIT`].
pub(super) struct Direct {
    /// The same file by the page cache: has the lock, and does all but transfers.
    file: File,
    direct: File,
    buffers: Mutex<Vec<Buffer>>,
}

impl Image {
    /// `file`, which was opened at `path` and has `len` bytes; past the page cache if `bypass` says so and the host
    /// can.
    pub(super) fn new(
        path: &Path,
        file: File,
        len: u64,
        write: bool,
        bypass: bool,
    ) -> (Self, PageCache) {
        if !bypass {
            return (Self::Buffered(file), PageCache::Used);
        }
        match open_direct(path, &file, len, write) {
            Ok(direct) => (
                Self::Direct(Direct { file, direct, buffers: Mutex::default() }),
                PageCache::Bypassed,
            ),
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                (Self::Buffered(file), PageCache::Unavoidable(why))
            }
        }
    }
}

fn open_direct(path: &Path, file: &File, len: u64, write: bool) -> io::Result<File> {
    if !len.is_multiple_of(UNIT) {
        return Err(io::Error::other("its length is not a multiple of 4096"));
    }
    let flags = OFlags::DIRECT.bits().cast_signed();
    let direct = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)?;
    let [one, other] = [file.metadata()?, direct.metadata()?];
    if (one.dev(), one.ino()) != (other.dev(), other.ino()) {
        return Err(io::Error::other("it was replaced while it was opened"));
    }
    // Some file systems take the flag and refuse the first transfer.
    Buffer::new().read(&direct, 0, UNIT.min(len))?;
    Ok(direct)
}

/// Aligned memory for one transfer.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        // Room for a piece that is nowhere aligned, and for the memory's own alignment.
        Self(vec![0; (PIECE + 3 * UNIT) as usize])
    }

    fn bytes(&mut self, len: u64) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(UNIT as usize);
        &mut self.0[start..][..len as usize]
    }

    fn read(&mut self, file: &File, offset: u64, len: u64) -> io::Result<&mut [u8]> {
        let bytes = self.bytes(len);
        file.read_exact_at(bytes, offset)?;
        Ok(bytes)
    }
}

/// A part of a transfer, and the units that it lies in.
struct Piece {
    /// From the transfer's beginning.
    done: u64,
    len: u64,
    /// In the file.
    start: u64,
    end: u64,
    /// From `start`.
    skip: usize,
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.end - self.start == self.len
    }

    fn of<'b>(&self, units: &'b mut [u8]) -> &'b mut [u8] {
        &mut units[self.skip..][..self.len as usize]
    }
}

fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done;
        let part = (PIECE - at % PIECE).min(len - done);
        let start = at / UNIT * UNIT;
        let end = (at + part).next_multiple_of(UNIT);
        let piece = Piece { done, len: part, start, end, skip: (at - start) as usize };
        done += part;
        (part > 0).then_some(piece)
    })
}

impl Direct {
    fn with_buffer<T>(&self, transfer: impl FnOnce(&mut Buffer) -> T) -> T {
        let buffers = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = buffers().pop();
        let mut buffer = kept.unwrap_or_else(Buffer::new);
        let done = transfer(&mut buffer);
        let mut buffers = buffers();
        if buffers.len() < BUFFERS {
            buffers.push(buffer);
        }
        done
    }

    /// `take` gets each part of the range, and how far it is from the beginning.
    fn read(
        &self,
        offset: u64,
        len: u64,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.with_buffer(|buffer| {
            pieces(offset, len).try_for_each(|piece| {
                let units = buffer.read(&self.direct, piece.start, piece.end - piece.start)?;
                take(piece.done, piece.of(units))
            })
        })
    }

    /// `give` fills each part of the range. What lies beside it in the same units is written again as it is: nobody
    /// else writes, for a disk's requests are done one after the other.
    fn write(
        &self,
        offset: u64,
        len: u64,
        mut give: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.with_buffer(|buffer| {
            pieces(offset, len).try_for_each(|piece| {
                let len = piece.end - piece.start;
                let units = match piece.is_whole() {
                    true => buffer.bytes(len),
                    false => buffer.read(&self.direct, piece.start, len)?,
                };
                give(piece.done, piece.of(units))?;
                self.direct.write_all_at(units, piece.start)
            })
        })
    }
}

impl HostFile for Direct {
    fn read_guest(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        self.read(offset, to.len(), |done, bytes| {
            to.part(done, bytes.len() as u64)?.copy_from(bytes)
        })
    }

    fn write_guest(&self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        self.write(offset, from.len(), |done, bytes| {
            bytes.copy_from_slice(&from.part(done, bytes.len() as u64)?.to_vec()?);
            Ok(())
        })
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.read(offset, to.len() as u64, |done, bytes| {
            to[done as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_host(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.write(offset, from.len() as u64, |done, bytes| {
            bytes.copy_from_slice(&from[done as usize..][..bytes.len()]);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        // It is the file that is synced, whichever way it was written.
        self.file.sync()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.file.punch(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.file.zero(offset, len)
    }
}

impl Image {
    fn file(&self) -> &dyn HostFile {
        match self {
            Self::Buffered(file) => file,
            Self::Direct(direct) => direct,
        }
    }
}

impl HostFile for Image {
    fn read_guest(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        self.file().read_guest(offset, to)
    }

    fn write_guest(&self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        self.file().write_guest(offset, from)
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file().read_host(offset, to)
    }

    fn write_host(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file().write_host(offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        self.file().sync()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.file().punch(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.file().zero(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 3 * PIECE;

    fn open(path: &Path, len: u64) -> (Image, PageCache) {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Image::new(path, file, len, true, true)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// On a file system without O_DIRECT this is the page cache's.
        #[test]
        fn any_range_is_read_and_written(
            steps in proptest::collection::vec((0..LEN, 1..=LEN, any::<u8>(), any::<bool>()), 1..12),
        ) {
            // Not in /tmp, which may be a tmpfs.
            let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let path = folder.path().join("image");
            let mut model: Vec<u8> = (0..LEN).map(|at| (at / 512) as u8).collect();
            std::fs::write(&path, &model).unwrap();
            let (image, _) = open(&path, LEN);
            for (offset, len, fill, is_write) in steps {
                let len = len.min(LEN - offset) as usize;
                let here = &mut model[offset as usize..][..len];
                if is_write {
                    here.fill(fill);
                    image.write_host(offset, here).unwrap();
                } else {
                    let mut bytes = vec![0; len];
                    image.read_host(offset, &mut bytes).unwrap();
                    prop_assert!(bytes == here);
                }
            }
            drop(image);
            prop_assert!(std::fs::read(&path).unwrap() == model);
        }
    }

    #[test]
    fn what_cannot_be_bypassed_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, vec![7; 4096 + 512]).unwrap();
        let (image, used) = open(&path, 4096 + 512);
        let PageCache::Unavoidable(why) = used else { panic!("{used:?}") };
        assert!(why.contains("not a multiple of 4096"), "{why}");
        let mut bytes = [0; 512];
        image.read_host(4096, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 512]);
    }
}
