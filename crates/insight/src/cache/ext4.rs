//! Which blocks of an ext4 file system are in use, by its bitmaps as the guest's memory has them.
//!
//! The superblock, the group descriptors and the bitmaps of what is in use stay in the guest's cache while it is
//! mounted. Layout: Documentation/filesystems/ext4 (super.rst, group_descr.rst, bitmaps.rst).

use super::journal::Log;

/// 4 KiB of a disk.
pub(super) type Bytes = [u8; 4096];

/// What is where. All numbers are the file system's own: it may be in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ext4 {
    blocks: u64,
    blocks_per_group: u64,
    descriptor_bytes: usize,
    /// Whose bitmaps lie together.
    groups_together: u64,
}

/// Of the superblock in block 0.
const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `s_log_block_size` of 4 KiB.
const BLOCKS_OF_4_KIB: u32 = 2;
/// Incompatible features: group descriptors elsewhere (`META_BG`), of 64 bytes (`64BIT`), bitmaps of several groups
/// together (`FLEX_BG`).
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const FLEX: u32 = 0x200;
/// The bitmap was never made: `EXT4_BG_BLOCK_UNINIT`.
const UNINITIALISED: u16 = 2;
/// `EXT4_MAX_BLOCKS` is less.
const MOST_BLOCKS: u64 = 1 << 48;
/// Of two to the power of so many groups that have their bitmaps together, one is looked for.
const MOST_TOGETHER: u32 = 7;
/// `EXT3_JNL_BACKUP_BLOCKS`: there is a copy of what the journal's inode has for its blocks.
const JOURNAL_COPIED: u8 = 1;

/// Reads so many bytes of one of the file system's blocks, from an offset on, as memory has them.
pub(super) trait Read: Fn(u64, usize, &mut [u8]) -> bool {}
impl<F: Fn(u64, usize, &mut [u8]) -> bool> Read for F {}

/// A group of blocks, with the bitmap of what is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Ext4 {
    /// By the superblock in the file system's first block. `None`: it is none, or of a kind that is not understood.
    pub(super) fn of(first: &Bytes) -> Option<Self> {
        let word = |at: usize| u32_at(first, SUPERBLOCK + at);
        let half = |at: usize| u16_at(first, SUPERBLOCK + at);
        let incompatible = word(0x60);
        let wide = incompatible & WIDE != 0;
        let high = if wide { u64::from(word(0x150)) << 32 } else { 0 };
        let flex = incompatible & FLEX != 0;
        let together = if flex { u32::from(first[SUPERBLOCK + 0x174]) } else { 0 };
        let found = Self {
            blocks: u64::from(word(0x4)) | high,
            blocks_per_group: word(0x20).into(),
            descriptor_bytes: if wide { half(0xfe).into() } else { 32 },
            groups_together: 1 << together.min(MOST_TOGETHER),
        };
        let plain = half(0x38) == MAGIC
            && word(0x18) == BLOCKS_OF_4_KIB
            && word(0x14) == 0
            && incompatible & META_BG == 0;
        // A bitmap is one block, and no descriptor lies in two.
        let sane = (1..=8 * 4096).contains(&found.blocks_per_group)
            && found.blocks <= MOST_BLOCKS
            && found.descriptor_bytes.is_power_of_two()
            && (32..=1024).contains(&found.descriptor_bytes);
        (plain && sane).then_some(found)
    }

    /// Where its journal is, if the superblock has a copy of that.
    pub(super) fn log(first: &Bytes) -> Log {
        let copy = &first[SUPERBLOCK + 0x10c..][..60];
        match copy.try_into() {
            Ok(copy) if first[SUPERBLOCK + 0xfd] == JOURNAL_COPIED => Log::of(copy),
            _ => Log::default(),
        }
    }

    /// Whether `block` belongs to a file or to the file system. `None`: memory does not tell.
    pub(super) fn is_used(&self, block: u64, read: impl Read) -> Option<bool> {
        if block >= self.blocks {
            return None;
        }
        let (group, bit) =
            (block / self.blocks_per_group, (block % self.blocks_per_group) as usize);
        let mut bits = [0];
        read(self.bitmap(group, &read)?, bit / 8, &mut bits).then(|| bits[0] >> (bit % 8) & 1 != 0)
    }

    /// The group of which `block` is the bitmap.
    pub(super) fn group_of_bitmap(&self, block: u64, read: impl Read) -> Option<Group> {
        if block >= self.blocks {
            return None;
        }
        // Where several groups have theirs together, it is in the first of them.
        let near = (block / self.blocks_per_group) & !(self.groups_together - 1);
        let groups = self.blocks.div_ceil(self.blocks_per_group);
        let found = (near..groups.min(near + self.groups_together))
            .find(|&group| self.bitmap(group, &read) == Some(block))?;
        let first = found * self.blocks_per_group;
        Some(Group { first, count: self.blocks_per_group.min(self.blocks - first) })
    }

    /// Where a group has its bitmap; none while that was not made.
    fn bitmap(&self, group: u64, read: &impl Read) -> Option<u64> {
        let place = group * self.descriptor_bytes as u64;
        let mut descriptor = [0; 64];
        let descriptor = &mut descriptor[..self.descriptor_bytes.min(64)];
        if !read(1 + place / 4096, (place % 4096) as usize, descriptor)
            || u16_at(descriptor, 0x12) & UNINITIALISED != 0
        {
            return None;
        }
        let high =
            if descriptor.len() >= 64 { u64::from(u32_at(descriptor, 0x20)) << 32 } else { 0 };
        Some(u64::from(u32_at(descriptor, 0)) | high)
    }
}

/// The signature of a swap area, at the end of its first page (Linux, include/linux/swap.h).
pub(super) fn is_swap(first: &Bytes) -> bool {
    first[4086..] == *b"SWAPSPACE2"
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn put(bytes: &mut Bytes, at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// Two groups of 100 blocks; the bitmap of the second is block 7.
    fn disk() -> HashMap<u64, Bytes> {
        let (mut first, mut table, mut bitmap) = ([0; 4096], [0; 4096], [0; 4096]);
        put(&mut first, SUPERBLOCK + 0x4, &200u32.to_le_bytes());
        put(&mut first, SUPERBLOCK + 0x18, &2u32.to_le_bytes());
        put(&mut first, SUPERBLOCK + 0x20, &100u32.to_le_bytes());
        put(&mut first, SUPERBLOCK + 0x38, &MAGIC.to_le_bytes());
        put(&mut first, SUPERBLOCK + 0x60, &WIDE.to_le_bytes());
        put(&mut first, SUPERBLOCK + 0xfe, &64u16.to_le_bytes());
        put(&mut table, 0x12, &UNINITIALISED.to_le_bytes());
        put(&mut table, 64, &7u32.to_le_bytes());
        bitmap[1] = 0x04;
        HashMap::from([(0, first), (1, table), (7, bitmap)])
    }

    fn reader(disk: &HashMap<u64, Bytes>) -> impl Read {
        |block: u64, at: usize, into: &mut [u8]| match disk.get(&block) {
            Some(bytes) => {
                into.copy_from_slice(&bytes[at..at + into.len()]);
                true
            }
            None => false,
        }
    }

    #[test]
    fn a_bit_tells_whether_a_block_is_used() {
        let disk = disk();
        let ext4 = Ext4::of(&disk[&0]).expect("a superblock");
        let used = |block| ext4.is_used(block, reader(&disk));
        assert_eq!([used(109), used(110), used(111)], [Some(false), Some(true), Some(false)]);
        // A bitmap that was never made, and no block of the file system.
        assert_eq!([used(3), used(200), used(u64::MAX)], [None; 3]);
        assert_eq!(ext4.is_used(110, reader(&HashMap::new())), None);
    }

    #[test]
    fn a_bitmap_is_of_one_group() {
        let mut disk = disk();
        let group = |disk: &HashMap<u64, Bytes>, block| {
            let ext4 = Ext4::of(&disk[&0]).expect("a superblock");
            ext4.group_of_bitmap(block, reader(disk))
        };
        // By its place it is the first group's, unless bitmaps of several lie together.
        assert_eq!(group(&disk, 7), None);
        let first = disk.get_mut(&0).expect("it is there");
        put(first, SUPERBLOCK + 0x60, &(WIDE | FLEX).to_le_bytes());
        put(first, SUPERBLOCK + 0x174, &[4]);
        assert_eq!(group(&disk, 7), Some(Group { first: 100, count: 100 }));
        assert_eq!((group(&disk, 8), group(&disk, u64::MAX)), (None, None));
    }

    #[test]
    fn others_are_not_taken_for_one() {
        let mut first = disk()[&0];
        assert_eq!(Ext4::of(&[0; 4096]), None);
        put(&mut first, SUPERBLOCK + 0x18, &0u32.to_le_bytes());
        assert_eq!(Ext4::of(&first), None);
        let mut swap = [0; 4096];
        assert!(!is_swap(&swap));
        put(&mut swap, 4086, b"SWAPSPACE2");
        assert!(is_swap(&swap));
    }

    proptest! {
        #[test]
        fn whatever_a_guest_writes_there_is_an_answer(
            at in proptest::collection::vec((0usize..1024, any::<u8>()), 0..64),
            block in any::<u64>(),
            table in any::<u8>(),
        ) {
            let mut first = disk()[&0];
            at.into_iter().for_each(|(at, byte)| first[SUPERBLOCK + at] = byte);
            if let Some(ext4) = Ext4::of(&first) {
                let read = |_, at: usize, into: &mut [u8]| {
                    assert!(at + into.len() <= 4096);
                    into.fill(table);
                    true
                };
                let _ = ext4.is_used(block, read);
                let _ = ext4.group_of_bitmap(block, read);
                let _ = Ext4::log(&first);
            }
        }
    }
}
