//! Any events, of frames with any contents, told to what follows the page cache: it ends without a panic, each block
//! comes before it goes, and no more is kept in mind than there are frames.
//!
//! The input is steps of 12 bytes: what kind, which frame, which disk, a number. Some of them write to a frame's
//! contents, which begin as an ext4 with its journal, so that those are read, too.
#![no_main]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use insight::{CacheChange, CacheTracker, Contents, Ghosts};
use libfuzzer_sys::fuzz_target;
use memory::{DiskBlock, Event, FRAME_SIZE, Frame, Stamped};

const FRAMES: u32 = 256;
const GHOSTS: usize = 64;
const JBD2: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
/// Block of the journal.
const LOG: u64 = 40;

type Bytes = [u8; FRAME_SIZE];

/// The contents of the first frames.
#[derive(Clone, Debug)]
struct Ram(Arc<Mutex<Vec<Bytes>>>);

impl Contents for Ram {
    fn of(&self, frame: Frame) -> Option<Bytes> {
        let ram = self.0.lock().expect("nobody panicked with it");
        ram.get(frame.index()).copied()
    }
}

fn put(bytes: &mut Bytes, at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A superblock, group descriptors, a bitmap, the journal's superblock and a descriptor; and zeros.
fn small_disk() -> Vec<Bytes> {
    let mut ram = vec![[0; FRAME_SIZE]; 8];
    for (at, value) in [(0x4, 1000u32), (0x18, 2), (0x20, 500), (0x38, 0xef53), (0x60, 0x280)] {
        put(&mut ram[0], 1024 + at, &value.to_le_bytes());
    }
    put(&mut ram[0], 1024 + 0xfe, &64u16.to_le_bytes());
    put(&mut ram[0], 1024 + 0xfd, &[1]);
    put(&mut ram[0], 1024 + 0x174, &[4]);
    for (at, value) in [0xf30au16, 1, 4, 0, 0, 0, 0, 0, 32, 0, LOG as u16].iter().enumerate() {
        put(&mut ram[0], 1024 + 0x10c + at * 2, &value.to_le_bytes());
    }
    put(&mut ram[1], 0, &2u32.to_le_bytes());
    put(&mut ram[1], 64, &3u32.to_le_bytes());
    ram[2].fill(0xff);
    put(&mut ram[3], 0, &JBD2);
    for (at, value) in [(4, 4u32), (0xc, 4096), (0x10, 32), (0x14, 1), (0x28, 0x12)] {
        put(&mut ram[3], at, &value.to_be_bytes());
    }
    put(&mut ram[4], 0, &JBD2);
    for (at, value) in [(4, 1u32), (12, 2), (16, 2), (28, 3), (32, 10)] {
        put(&mut ram[4], at, &value.to_be_bytes());
    }
    ram
}

fuzz_target!(|input: &[u8]| {
    let ram = Ram(Arc::new(Mutex::new(small_disk())));
    let mut tracker = CacheTracker::new(FRAMES, Box::new(ram.clone()));
    let mut ghosts = Ghosts::new(GHOSTS, 16);
    let mut cached = HashMap::new();
    for (at, step) in input.chunks_exact(12).enumerate() {
        let [kind, disk, low, high, number @ ..] = step else { return };
        let number = u64::from_le_bytes(number.try_into().expect("eight bytes"));
        let frame = Frame(u32::from(*low) | u32::from(*high) << 8);
        // Mostly blocks that there are.
        let small = if kind & 0x80 == 0 { number % 1024 } else { number };
        let block = DiskBlock { disk: disk % 2, block: small };
        let event = match kind % 11 {
            0 | 1 => Event::Read { frame, from: block, changed: disk & 2 != 0 },
            2 => Event::Written { frame, to: block, starts: [0; 4] },
            3 => Event::Written { frame, to: block, starts: JBD2 },
            4 => Event::Overwritten { frame },
            5 => Event::Discarded { first: block, count: number >> 8 },
            6 => Event::Changed { frame, user: disk & 2 != 0 },
            7 => Event::Mapped { frame, writable: disk & 2 != 0 },
            8 => Event::PageTable { frame },
            9 => Event::Copied { from: frame, to: Frame(number as u32 % 512) },
            _ => {
                let mut ram = ram.0.lock().expect("nobody panicked with it");
                if let Some(bytes) = ram.get_mut(frame.index() % 16) {
                    let at = usize::from(*disk) << 4 | usize::from(*kind >> 4);
                    put(bytes, at.min(FRAME_SIZE - 8), &number.to_le_bytes());
                }
                continue;
            }
        };
        tracker.tell(Stamped { at: Duration::from_millis(at as u64), event });
        tracker.take_watch(|_| None);
        for change in tracker.take_events(|_| None) {
            let frame = Some(change.frame);
            match change.change {
                CacheChange::Insert => {
                    assert!(cached.insert(change.block, change.frame).is_none());
                    ghosts.inserted(change.block);
                }
                CacheChange::Evict => {
                    assert_eq!(cached.remove(&change.block), frame);
                    ghosts.evicted(change.block);
                }
                CacheChange::Drop => {
                    assert_eq!(cached.remove(&change.block), frame);
                    ghosts.dropped(change.block);
                }
                CacheChange::Move => {
                    let before = cached.insert(change.block, change.frame);
                    assert!(before.is_some_and(|before| before != change.frame));
                }
            }
        }
        assert!(cached.len() <= FRAMES as usize && ghosts.len() <= GHOSTS * 2);
        assert_eq!(tracker.counts().cached as usize, cached.len());
    }
});
