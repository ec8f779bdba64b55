//! Chunks: up to 64 frames, compressed together, and the record that says which and where.

use memory::{FRAME_SIZE, Frame};

use crate::checksum::Checksum;
use crate::codec::{Compression, decompress};
use crate::error::SnapshotError;
use crate::store::PartFile;

/// Frames of a full chunk: 256 KiB, above which compression gains little and a single frame costs more.
pub(crate) const CHUNK_FRAMES: usize = 64;
/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 288;
/// The number that no frame has, for places that a chunk does not use.
const NONE: u32 = u32::MAX;

/// Bytes of a frame.
pub(crate) type Page = [u8; FRAME_SIZE];

/// Frames with their contents, as they are read together. Made once and used for many reads.
#[derive(Default)]
pub struct Batch {
    frames: Vec<Frame>,
    contents: Vec<u8>,
    /// What was read, before it was decompressed.
    stored: Vec<u8>,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Which frames, in the order in which they are stored.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Each frame and its contents.
    pub fn iter(&self) -> impl Iterator<Item = (Frame, &Page)> {
        self.frames.iter().copied().zip(self.contents.as_chunks().0)
    }

    /// What it holds of `frame`.
    pub fn get(&self, frame: Frame) -> Option<&Page> {
        self.iter().find(|(held, _)| *held == frame).map(|(_, contents)| contents)
    }

    /// Makes it hold `frames`; whoever calls fills the contents.
    pub(crate) fn start(&mut self, frames: impl IntoIterator<Item = Frame>) -> &mut [u8] {
        self.frames.clear();
        self.frames.extend(frames);
        self.contents.resize(self.frames.len() * FRAME_SIZE, 0);
        &mut self.contents
    }

    /// Without the memory that only reading takes.
    pub(crate) fn read_only(self) -> Batch {
        Batch { stored: Vec::new(), ..self }
    }

    /// Drops the frames that are not wanted.
    pub(crate) fn retain(&mut self, mut wanted: impl FnMut(Frame) -> bool) {
        let mut kept = 0;
        for from in 0..self.frames.len() {
            let frame = self.frames[from];
            if wanted(frame) {
                self.frames[kept] = frame;
                self.contents
                    .copy_within(from * FRAME_SIZE..(from + 1) * FRAME_SIZE, kept * FRAME_SIZE);
                kept += 1;
            }
        }
        self.frames.truncate(kept);
        self.contents.truncate(kept * FRAME_SIZE);
    }
}

/// A chunk's place in the data, what it must be and whose contents it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// From the start of the data.
    pub(crate) offset: u64,
    /// Bytes in the file: as many as the frames have, or fewer if they are compressed.
    pub(crate) stored: u32,
    /// Of the bytes in the file.
    pub(crate) checksum: Checksum,
    /// How many frames, 1 to 64.
    count: u32,
    frames: [u32; CHUNK_FRAMES],
}

impl Record {
    /// Of `stored` bytes at `offset`. Panics on more than 64 frames.
    pub(crate) fn new(frames: &[Frame], offset: u64, stored: &[u8]) -> Record {
        let mut numbers = [NONE; CHUNK_FRAMES];
        for (place, frame) in numbers[..frames.len()].iter_mut().zip(frames) {
            *place = frame.0;
        }
        let (count, len) = (frames.len() as u32, stored.len() as u32);
        Record { offset, stored: len, checksum: Checksum::of(stored), count, frames: numbers }
    }

    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> {
        self.frames[..self.count as usize].iter().copied().map(Frame)
    }

    /// The frame at `slot`, if the chunk has that many.
    pub(crate) fn frame_at(&self, slot: u32) -> Option<Frame> {
        self.frames().nth(slot as usize)
    }

    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stored.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.checksum.0.to_le_bytes());
        for (place, frame) in bytes[24..280].as_chunks_mut::<4>().0.iter_mut().zip(self.frames) {
            *place = frame.to_le_bytes();
        }
        let checksum = Checksum::of(&bytes[..280]);
        bytes[280..].copy_from_slice(&checksum.0.to_le_bytes());
        bytes
    }

    /// Reads the record at `at` of `file` out of `bytes`. `data_bytes` is how much data there is,
    /// `frames` how many frames the guest has.
    pub(crate) fn decode(
        file: &PartFile,
        at: u64,
        bytes: &[u8; RECORD_BYTES],
        data_bytes: u64,
        frames: u32,
    ) -> Result<Record, SnapshotError> {
        let word =
            |at: usize| bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
        let long =
            |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let (found, expected) = (Checksum(long(280)), Checksum::of(&bytes[..280]));
        if found != expected {
            return Err(file.corrupt(at + 280, "checksum of a chunk's record", expected, found));
        }
        let mut numbers = [NONE; CHUNK_FRAMES];
        for (place, bytes) in numbers.iter_mut().zip(bytes[24..280].as_chunks().0) {
            *place = u32::from_le_bytes(*bytes);
        }
        let (offset, stored, count) = (long(0), word(8), word(12));
        if count == 0 || count as usize > CHUNK_FRAMES {
            return Err(file.corrupt(at + 12, "frames in a chunk", "1 to 64", count));
        }
        let most = count * FRAME_SIZE as u32;
        if stored == 0 || stored > most {
            return Err(file.corrupt(at + 8, "bytes of a chunk", format!("1 to {most}"), stored));
        }
        if offset.checked_add(u64::from(stored)).is_none_or(|end| end > data_bytes) {
            let expected = format!("{stored} bytes before {data_bytes}");
            return Err(file.corrupt(at, "offset of a chunk", expected, offset));
        }
        if let Some(n) = numbers[..count as usize].iter().position(|&frame| frame >= frames) {
            let expected = format!("below {frames}");
            return Err(file.corrupt(at + 24 + 4 * n as u64, "frame", expected, numbers[n]));
        }
        Ok(Record { offset, stored, checksum: Checksum(long(16)), count, frames: numbers })
    }

    /// Reads the chunk out of `file`, whose data begins at `data`.
    pub(crate) fn read(
        &self,
        file: &PartFile,
        data: u64,
        compression: Compression,
        batch: &mut Batch,
    ) -> Result<(), SnapshotError> {
        // Below the data's length, by `decode`, and `data` below the file's.
        let at = data + self.offset;
        let mut stored = std::mem::take(&mut batch.stored);
        stored.resize(self.stored as usize, 0);
        let done = file.read(&mut stored, at).and_then(|()| {
            let found = Checksum::of(&stored);
            if found != self.checksum {
                return Err(file.corrupt(at, "checksum of a chunk", self.checksum, found));
            }
            let into = batch.start(self.frames());
            let bytes = into.len();
            decompress(compression, &stored, into).map_err(|found| {
                file.corrupt(at, "contents of a chunk", format!("{bytes} bytes"), found)
            })
        });
        batch.stored = stored;
        done
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::store::ReadAt;

    struct Nothing;

    impl ReadAt for Nothing {
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }

        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn file() -> PartFile {
        PartFile { path: "chunks".into(), file: Arc::new(Nothing), bytes: 0 }
    }

    fn record() -> Record {
        Record::new(&[Frame(9), Frame(3)], 1000, &[1; 500])
    }

    #[test]
    fn a_record_is_itself_again() {
        let read = Record::decode(&file(), 0, &record().encode(), 1500, 10).expect("a record");
        assert_eq!(read, record());
        assert_eq!(read.frame_at(1), Some(Frame(3)));
        assert_eq!(read.frame_at(2), None);
    }

    #[test]
    fn records_that_cannot_be_are_refused() {
        let refused = |change: &dyn Fn(&mut Record), data, frames, what: &str| {
            let mut record = record();
            change(&mut record);
            let error = Record::decode(&file(), 0, &record.encode(), data, frames).expect_err(what);
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(&|_| (), 1499, 10, "offset of a chunk");
        refused(&|r| r.offset = u64::MAX, 1500, 10, "offset of a chunk");
        refused(&|_| (), 1500, 9, "offset 24: frame");
        refused(&|r| r.count = 0, 1500, 10, "frames in a chunk");
        refused(&|r| r.count = 65, 1500, 10, "frames in a chunk");
        refused(&|r| r.count = 3, 1500, 10, "offset 32: frame");
        refused(&|r| r.stored = 8193, 1 << 20, 10, "bytes of a chunk");
        refused(&|r| r.stored = 0, 1500, 10, "bytes of a chunk");
        let mut bytes = record().encode();
        bytes[30] ^= 1;
        assert!(Record::decode(&file(), 0, &bytes, 1500, 10).is_err());
    }

    #[test]
    fn a_batch_keeps_what_is_wanted() {
        let mut batch = Batch::new();
        let contents = batch.start([1, 2, 3].map(Frame));
        for (n, byte) in contents.iter_mut().enumerate() {
            *byte = (n / FRAME_SIZE) as u8;
        }
        batch.retain(|frame| frame != Frame(2));
        let held: Vec<_> =
            batch.iter().map(|(frame, page)| (frame.0, page[0], page[4095])).collect();
        assert_eq!(held, [(1, 0, 0), (3, 2, 2)]);
        assert!(batch.get(Frame(2)).is_none());
    }
}
