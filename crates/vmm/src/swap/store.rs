//! A file with contents of frames. It means nothing to anybody but the VM that wrote it, and nothing when that has ended.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memory::{FRAME_SIZE, SourceError};
use rustix::fs::{FallocateFlags, fallocate};
use twox_hash::XxHash3_64;

use super::slots::{Slot, Slots, UNIT};

/// Compressed contents that are longer save nothing: a slot of the last class takes them as they are.
const COMPRESSED_MAX: usize = FRAME_SIZE - UNIT;

/// Contents that are in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    slot: Slot,
    /// In the file; all of a frame if it is not compressed.
    bytes: u16,
    /// XXH3 of the contents.
    pub(super) checksum: u64,
}

/// Why contents could not be put.
#[derive(Debug)]
pub(super) enum PutError {
    /// There is no room.
    Full,
    /// The file cannot be written.
    Io(io::Error),
}

#[derive(Debug)]
pub(super) struct Store {
    file: File,
    slots: Slots,
    /// Bytes that it may have.
    limit: u64,
}

/// By which it is seen whether contents are what they were.
pub(super) fn checksum(contents: &[u8; FRAME_SIZE]) -> u64 {
    XxHash3_64::oneshot(contents)
}

impl Store {
    /// All of `file` is the store's.
    pub(super) fn new(file: File) -> Self {
        Self { file, slots: Slots::new(), limit: u64::MAX }
    }

    /// What it may take of the file system from now on; what it has it keeps.
    pub(super) fn set_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Slots in use.
    pub(super) fn slots(&self) -> u64 {
        self.slots.used()
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.bytes()
    }

    /// Writes contents.
    pub(super) fn put(
        &mut self,
        contents: &[u8; FRAME_SIZE],
        checksum: u64,
    ) -> Result<Kept, PutError> {
        let mut buffer = [0; lz4_flex::block::get_maximum_output_size(FRAME_SIZE)];
        let stored = match lz4_flex::block::compress_into(contents, &mut buffer) {
            Ok(bytes) if bytes <= COMPRESSED_MAX => &buffer[..bytes],
            _ => &contents[..],
        };
        let slot = self.slots.take(stored.len(), self.limit).ok_or(PutError::Full)?;
        if let Err(error) = self.file.write_all_at(stored, slot.offset()) {
            self.end(slot);
            return Err(PutError::Io(error));
        }
        Ok(Kept { slot, bytes: stored.len() as u16, checksum })
    }

    /// Reads contents, which are what was written or an error.
    pub(super) fn get(&self, kept: Kept, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        let bytes = usize::from(kept.bytes);
        if bytes == FRAME_SIZE {
            self.file.read_exact_at(into, kept.slot.offset())?;
        } else {
            let mut buffer = [0; COMPRESSED_MAX];
            let stored = &mut buffer[..bytes];
            self.file.read_exact_at(stored, kept.slot.offset())?;
            let length = lz4_flex::block::decompress_into(stored, into);
            let length = length.map_err(|error| SourceError::Corrupt(error.to_string()))?;
            if length != FRAME_SIZE {
                return Err(SourceError::Corrupt(format!("{length} bytes of a frame")));
            }
        }
        if checksum(into) != kept.checksum {
            return Err(SourceError::Corrupt("wrong checksum".to_owned()));
        }
        Ok(())
    }

    /// The contents are needed no more.
    pub(super) fn forget(&mut self, kept: Kept) {
        self.end(kept.slot);
    }

    fn end(&mut self, slot: Slot) {
        let Some(gone) = self.slots.free(slot) else { return };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where the file system cannot, the file stays as large until the segment is used again.
        let _ = fallocate(&self.file, flags, gone.start, gone.end - gone.start);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::swap::slots::SEGMENT;

    fn random(seed: u64) -> [u8; FRAME_SIZE] {
        let mut state = seed;
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
    }

    fn put(store: &mut Store, contents: &[u8; FRAME_SIZE]) -> Kept {
        store.put(contents, checksum(contents)).expect("room")
    }

    fn get(store: &Store, kept: Kept) -> Result<[u8; FRAME_SIZE], SourceError> {
        let mut contents = [0; FRAME_SIZE];
        store.get(kept, &mut contents).map(|()| contents)
    }

    #[test]
    fn contents_come_back_compressed_or_not() {
        let mut store = Store::new(tempfile::tempfile().expect("a file"));
        let all = [[7; FRAME_SIZE], random(1), [0; FRAME_SIZE], random(2)];
        let kept = all.each_ref().map(|contents| put(&mut store, contents));
        assert!(kept[0].bytes < 100 && usize::from(kept[1].bytes) == FRAME_SIZE);
        assert_eq!((store.slots(), store.bytes()), (4, 2 * SEGMENT));
        for (kept, contents) in kept.into_iter().zip(&all) {
            assert_eq!(&get(&store, kept).expect("read"), contents);
            store.forget(kept);
        }
        assert_eq!((store.slots(), store.bytes()), (0, 0));
    }

    #[test]
    fn a_full_store_and_a_failing_one_say_so_and_have_what_they_had() {
        let mut store = Store::new(tempfile::tempfile().expect("a file"));
        store.set_limit(SEGMENT);
        let kept: Vec<Kept> = (0..16).map(|seed| put(&mut store, &random(seed))).collect();
        assert!(matches!(store.put(&random(99), 0), Err(PutError::Full)));
        assert_eq!(get(&store, kept[5]).expect("read"), random(5));
        store.forget(kept[0]);
        put(&mut store, &random(99));

        let full =
            OpenOptions::new().read(true).write(true).open("/dev/full").expect("it is there");
        let mut store = Store::new(full);
        assert!(matches!(store.put(&random(1), 0), Err(PutError::Io(_))));
        assert_eq!((store.slots(), store.bytes()), (0, 0));
    }

    #[test]
    fn what_is_not_what_it_was_is_an_error() {
        let file = tempfile::tempfile().expect("a file");
        let mut store = Store::new(file.try_clone().expect("a file"));
        let (raw, small) = (put(&mut store, &random(1)), put(&mut store, &[7; FRAME_SIZE]));
        file.write_all_at(&[!random(1)[100]], raw.slot.offset() + 100).expect("written");
        assert!(matches!(get(&store, raw), Err(SourceError::Corrupt(_))));
        file.write_all_at(&[0xff; 16], small.slot.offset()).expect("written");
        assert!(matches!(get(&store, small), Err(SourceError::Corrupt(_))));
        // It may come back: one waits for that.
        file.set_len(10).expect("cut short");
        assert!(matches!(get(&store, raw), Err(SourceError::Io(_))));
    }
}
