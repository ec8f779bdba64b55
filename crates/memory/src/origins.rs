//! Where on a disk a frame's contents were read from.
//!
//! A hint, and no more: it is written when a disk has read a block into the frame, and stays whatever the guest does
//! with the frame after that. Who relies on it compares. It costs a store for each block read, and memory only where
//! something is told of: 8 bytes a frame.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::address::Frame;
use crate::events::DiskBlock;
use crate::guest_memory::GuestMemory;

/// Below it there is the block, above it the disk's number and one.
const DISK_SHIFT: u32 = 55;

/// Frames that are known to have been filled last.
const NEWEST: usize = 4096;

/// One word a frame, 0 where nothing is known.
pub(crate) struct OriginTable {
    words: Box<[AtomicU64]>,
    /// The frames filled last, each and one, at the number of its fill modulo their number.
    newest: Box<[AtomicU32; NEWEST]>,
    fills: AtomicU64,
}

impl OriginTable {
    pub(crate) fn new(frames: u32) -> OriginTable {
        // SAFETY: all zeros is a value of an atomic integer.
        let words = unsafe { Box::new_zeroed_slice(frames as usize).assume_init() };
        // SAFETY: as above.
        let newest = unsafe { Box::new_zeroed().assume_init() };
        OriginTable { words, newest, fills: AtomicU64::new(0) }
    }
}

impl GuestMemory {
    /// A disk has read something into `frame`: all of a block, or else what is nowhere as such.
    pub fn note_origin(&self, frame: Frame, block: Option<DiskBlock>) {
        let told = block.filter(|at| at.block < 1 << DISK_SHIFT);
        let word = told.map_or(0, |at| (u64::from(at.disk) + 1) << DISK_SHIFT | at.block);
        let OriginTable { words, newest, fills } = &self.origins;
        if let Some(origin) = words.get(frame.index()) {
            origin.store(word, Ordering::Relaxed);
            if word != 0 {
                let fill = fills.fetch_add(1, Ordering::Relaxed);
                newest[fill as usize % NEWEST].store(frame.0 + 1, Ordering::Relaxed);
            }
        }
    }

    /// The block that was last read into `frame`, which may have other contents by now. `None` if there was none.
    pub fn origin(&self, frame: Frame) -> Option<DiskBlock> {
        let word = self.origins.words.get(frame.index())?.load(Ordering::Relaxed);
        let disk = (word >> DISK_SHIFT).checked_sub(1)?;
        Some(DiskBlock { disk: disk as u8, block: word & ((1 << DISK_SHIFT) - 1) })
    }

    /// The frames that blocks were read into since there had been `since` such reads, the newest first, and how many reads there
    /// have been now. Of more than 4096 the oldest are left out; one that is being told of may be, too.
    pub fn filled_since(&self, since: u64) -> (u64, Vec<Frame>) {
        let OriginTable { newest, fills, .. } = &self.origins;
        let now = fills.load(Ordering::Relaxed);
        let oldest = since.max(now.saturating_sub(NEWEST as u64)).min(now);
        let frame = |fill: u64| newest[fill as usize % NEWEST].load(Ordering::Relaxed);
        let frames = (oldest..now).rev().filter_map(|fill| frame(fill).checked_sub(1).map(Frame));
        (now, frames.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::FRAME_SIZE;

    #[test]
    fn the_last_that_was_told_is_known() {
        let memory = GuestMemory::with_bytes(4 * FRAME_SIZE as u64).unwrap();
        assert_eq!(memory.origin(Frame(1)), None);
        for at in [
            DiskBlock { disk: 0, block: 0 },
            DiskBlock { disk: 255, block: (1 << 55) - 1 },
            DiskBlock { disk: 3, block: 77 },
        ] {
            memory.note_origin(Frame(1), Some(at));
            assert_eq!(memory.origin(Frame(1)), Some(at));
        }
        memory.note_origin(Frame(1), None);
        memory.note_origin(Frame(2), Some(DiskBlock { disk: 0, block: 1 << 55 }));
        memory.note_origin(Frame(4), Some(DiskBlock { disk: 0, block: 1 }));
        assert!((0..5).all(|frame| memory.origin(Frame(frame)).is_none()));
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_not_at_all() {
        let memory = GuestMemory::with_bytes(8192 * FRAME_SIZE as u64).unwrap();
        let fill = |frame| memory.note_origin(Frame(frame), Some(DiskBlock { disk: 0, block: 1 }));
        assert_eq!(memory.filled_since(0), (0, vec![]));
        [7, 3, 7].into_iter().for_each(fill);
        memory.note_origin(Frame(5), None);
        assert_eq!(memory.filled_since(0), (3, vec![Frame(7), Frame(3), Frame(7)]));
        assert_eq!(memory.filled_since(2), (3, vec![Frame(7)]));
        // Nobody has told of so many.
        assert_eq!(memory.filled_since(9), (3, vec![]));
        (0..5000).for_each(fill);
        let (now, frames) = memory.filled_since(1);
        assert_eq!((now, frames.len()), (5003, NEWEST));
        assert!(frames.iter().copied().eq((5000 - NEWEST as u32..5000).rev().map(Frame)));
    }
}
