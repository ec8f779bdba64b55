//! Blocks in memory, the least recently put or used of which makes room.

use std::collections::HashMap;

use memory::DiskBlock;

use super::BLOCK;

/// Memory is taken in pieces of so many blocks, as it is needed.
const PIECE: usize = 256;

/// No block.
const NONE: u32 = u32::MAX;

/// At most `capacity` blocks with their contents, which take exactly 4 KiB each. Beside them a block takes 16 bytes for
/// its place in the order, 20 to 39 in the index, and up to 8 once its place was empty.
pub(super) struct Blocks {
    /// At most `NONE`.
    capacity: u32,
    /// All of [`PIECE`] blocks but the last, which `capacity` may cut.
    pieces: Vec<Box<[u8]>>,
    /// By slot; at most `capacity`.
    entries: Vec<Entry>,
    /// Slots without a block.
    free: Vec<u32>,
    index: HashMap<Key, u32>,
    newest: u32,
    oldest: u32,
}

/// A block in 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    const SHIFT: u32 = 56;

    /// None for a block that no disk has: its offset would not be a number of 64 bits.
    fn of(block: DiskBlock) -> Option<Self> {
        let fits = block.block >> Self::SHIFT == 0;
        fits.then_some(Self(u64::from(block.disk) << Self::SHIFT | block.block))
    }

    fn block(self) -> DiskBlock {
        let block = self.0 & ((1 << Self::SHIFT) - 1);
        DiskBlock { disk: (self.0 >> Self::SHIFT) as u8, block }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    newer: u32,
    older: u32,
}

/// What became of a block that was to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is there, and so are all others.
    Added,
    /// It is there in place of the oldest.
    Displaced,
    /// It was there already, and has new contents.
    Replaced,
    /// There is no memory for it.
    Refused,
}

impl Blocks {
    pub(super) fn new(capacity: u32) -> Self {
        let capacity = capacity.min(NONE - 1);
        let mut entries = Vec::new();
        // Once, so that it need not be copied as it grows. If there is no room now there may be later.
        let _ = entries.try_reserve_exact(capacity as usize);
        Self {
            capacity,
            pieces: Vec::new(),
            entries,
            free: Vec::new(),
            index: HashMap::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn contains(&self, block: DiskBlock) -> bool {
        self.slot_of(block).is_some()
    }

    pub(super) fn get(&self, block: DiskBlock) -> Option<&[u8]> {
        self.slot_of(block).map(|slot| self.bytes(slot))
    }

    fn slot_of(&self, block: DiskBlock) -> Option<u32> {
        self.index.get(&Key::of(block)?).copied()
    }

    /// `block` was used.
    pub(super) fn touch(&mut self, block: DiskBlock) {
        if let Some(slot) = self.slot_of(block) {
            self.unlink(slot);
            self.link(slot);
        }
    }

    /// `block` has these contents, and is the newest.
    pub(super) fn put(&mut self, block: DiskBlock, bytes: &[u8; BLOCK]) -> Put {
        let Some(key) = Key::of(block) else { return Put::Refused };
        if self.replace(block, bytes) {
            self.touch(block);
            return Put::Replaced;
        }
        let (slot, put) = match self.slot() {
            Some(slot) => (slot, Put::Added),
            None => match self.remove_oldest() {
                Some(slot) => (slot, Put::Displaced),
                None => return Put::Refused,
            },
        };
        self.entries[slot as usize].key = key;
        self.bytes_mut(slot).copy_from_slice(bytes);
        self.index.insert(key, slot);
        self.link(slot);
        put
    }

    /// New contents for `block`, if it is there; its age stays.
    pub(super) fn replace(&mut self, block: DiskBlock, bytes: &[u8; BLOCK]) -> bool {
        let Some(slot) = self.slot_of(block) else { return false };
        self.bytes_mut(slot).copy_from_slice(bytes);
        true
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, block: DiskBlock) -> bool {
        let Some(slot) = Key::of(block).and_then(|key| self.index.remove(&key)) else {
            return false;
        };
        self.unlink(slot);
        self.free.push(slot);
        true
    }

    /// Those of which `is_wanted` says no; how many there were.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(DiskBlock) -> bool) -> u64 {
        let unwanted: Vec<_> =
            self.index.keys().map(|key| key.block()).filter(|&block| !is_wanted(block)).collect();
        unwanted.iter().for_each(|&block| _ = self.remove(block));
        unwanted.len() as u64
    }

    /// One without a block. `None`: all have one, or there is no memory for more.
    fn slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = self.entries.len();
        if slot >= self.capacity as usize {
            return None;
        }
        if slot == self.pieces.len() * PIECE {
            let blocks = PIECE.min(self.capacity as usize - slot);
            self.pieces.push(piece(blocks * BLOCK)?);
        }
        self.entries.push(Entry { key: Key(0), newer: NONE, older: NONE });
        Some(slot as u32)
    }

    /// Its slot, which has no block any more.
    fn remove_oldest(&mut self) -> Option<u32> {
        let slot = self.oldest;
        let key = self.entries.get(slot as usize)?.key;
        self.unlink(slot);
        self.index.remove(&key);
        Some(slot)
    }

    fn bytes(&self, slot: u32) -> &[u8] {
        let (piece, at) = place(slot);
        &self.pieces[piece][at..at + BLOCK]
    }

    fn bytes_mut(&mut self, slot: u32) -> &mut [u8] {
        let (piece, at) = place(slot);
        &mut self.pieces[piece][at..at + BLOCK]
    }

    fn link(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.newest, slot);
        self.entries[slot as usize] = Entry { newer: NONE, older, ..self.entries[slot as usize] };
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { newer, older, .. } = self.entries[slot as usize];
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }
}

fn place(slot: u32) -> (usize, usize) {
    let slot = slot as usize;
    (slot / PIECE, slot % PIECE * BLOCK)
}

/// Of zeros, unless the host has no memory.
fn piece(len: usize) -> Option<Box<[u8]>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).ok()?;
    bytes.resize(len, 0);
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put(u64, u8),
        Replace(u64, u8),
        Remove(u64),
        Touch(u64),
        KeepBelow(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u64..12, any::<u8>()).prop_map(|(block, byte)| Step::Put(block, byte)),
            1 => (0u64..12, any::<u8>()).prop_map(|(block, byte)| Step::Replace(block, byte)),
            2 => (0u64..12).prop_map(Step::Remove),
            2 => (0u64..12).prop_map(Step::Touch),
            1 => (6u64..12).prop_map(Step::KeepBelow),
        ];
        proptest::collection::vec(step, 1..120)
    }

    fn block(block: u64) -> DiskBlock {
        DiskBlock { disk: (block % 2) as u8, block }
    }

    proptest! {
        /// Against a list, the newest last.
        #[test]
        fn the_oldest_makes_room(steps in steps(), capacity in 1u32..6) {
            let mut blocks = Blocks::new(capacity);
            let mut model: Vec<(u64, u8)> = Vec::new();
            for step in steps {
                match step {
                    Step::Put(at, byte) => {
                        let known = model.iter().position(|(other, _)| *other == at);
                        let expected = match known {
                            Some(known) => { model.remove(known); Put::Replaced }
                            None if model.len() == capacity as usize => { model.remove(0); Put::Displaced }
                            None => Put::Added,
                        };
                        model.push((at, byte));
                        prop_assert_eq!(blocks.put(block(at), &[byte; BLOCK]), expected);
                    }
                    Step::Replace(at, byte) => {
                        let known = model.iter_mut().find(|(other, _)| *other == at);
                        let there = known.map(|known| known.1 = byte).is_some();
                        prop_assert_eq!(blocks.replace(block(at), &[byte; BLOCK]), there);
                    }
                    Step::Remove(at) => {
                        let before = model.len();
                        model.retain(|(other, _)| *other != at);
                        prop_assert_eq!(blocks.remove(block(at)), model.len() < before);
                    }
                    Step::Touch(at) => {
                        blocks.touch(block(at));
                        if let Some(known) = model.iter().position(|(other, _)| *other == at) {
                            let known = model.remove(known);
                            model.push(known);
                        }
                    }
                    Step::KeepBelow(end) => {
                        let before = model.len();
                        model.retain(|(other, _)| *other < end);
                        let gone = blocks.retain(|block| block.block < end);
                        prop_assert_eq!(gone as usize, before - model.len());
                    }
                }
                prop_assert_eq!(blocks.len(), model.len());
                for at in 0..12 {
                    let expected = model.iter().find(|(other, _)| *other == at);
                    let found = blocks.get(block(at)).map(|bytes| bytes[BLOCK - 1]);
                    prop_assert_eq!(found, expected.map(|(_, byte)| *byte));
                }
            }
        }
    }

    #[test]
    fn a_block_that_no_disk_has_is_never_there() {
        let mut blocks = Blocks::new(2);
        let nowhere = DiskBlock { disk: 1, block: 1 << 56 };
        blocks.put(DiskBlock { disk: 2, block: 0 }, &[1; BLOCK]);
        assert_eq!(blocks.put(nowhere, &[2; BLOCK]), Put::Refused);
        assert!(!blocks.contains(nowhere) && !blocks.remove(nowhere) && blocks.len() == 1);
    }

    #[test]
    fn memory_is_taken_as_needed_and_never_more_than_allowed() {
        let capacity = PIECE as u32 + 3;
        let mut blocks = Blocks::new(capacity);
        let bytes = |blocks: &Blocks| blocks.pieces.iter().map(|piece| piece.len()).sum::<usize>();
        assert_eq!(bytes(&blocks), 0);
        for at in 0..3 * u64::from(capacity) {
            blocks.put(block(at), &[1; BLOCK]);
        }
        assert_eq!(bytes(&blocks), capacity as usize * BLOCK);
        assert_eq!((blocks.len(), blocks.entries.len()), (capacity as usize, capacity as usize));
    }
}
