//! Which blocks of an ext4 file system are in use, by its bitmaps as the guest's memory has them.
//!
//! The superblock, the group descriptors and the bitmaps of what is in use stay in the guest's cache while it is
//! mounted. Layout: Documentation/filesystems/ext4 (super.rst, group_descr.rst, bitmaps.rst).

use memory::DiskBlock;

/// 4 KiB of a disk.
pub(super) type Bytes = [u8; 4096];

/// What is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ext4 {
    blocks: u64,
    blocks_per_group: u64,
    descriptor_bytes: usize,
}

/// Of the superblock in block 0.
const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `s_log_block_size` of 4 KiB.
const BLOCKS_OF_4_KIB: u32 = 2;
/// Incompatible features: group descriptors elsewhere (`META_BG`), of 64 bytes (`64BIT`).
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
/// The bitmap was never made: `EXT4_BG_BLOCK_UNINIT`.
const UNINITIALISED: u16 = 2;

impl Ext4 {
    /// By the superblock in the file system's first block. `None`: it is none, or of a kind that is not understood.
    pub(super) fn of(first: &Bytes) -> Option<Self> {
        let word = |at: usize| u32_at(first, SUPERBLOCK + at);
        let half = |at: usize| u16_at(first, SUPERBLOCK + at);
        let incompatible = word(0x60);
        let wide = incompatible & WIDE != 0;
        let high = if wide { u64::from(word(0x150)) << 32 } else { 0 };
        let found = Self {
            blocks: u64::from(word(0x4)) | high,
            blocks_per_group: word(0x20).into(),
            descriptor_bytes: if wide { half(0xfe).into() } else { 32 },
        };
        let plain = half(0x38) == MAGIC
            && word(0x18) == BLOCKS_OF_4_KIB
            && word(0x14) == 0
            && incompatible & META_BG == 0;
        // A bitmap is one block, and no descriptor lies in two.
        let sane = (1..=8 * 4096).contains(&found.blocks_per_group)
            && found.descriptor_bytes.is_power_of_two()
            && (32..=1024).contains(&found.descriptor_bytes);
        (plain && sane).then_some(found)
    }

    /// Whether `block` belongs to a file or to the file system. `None`: memory does not tell; `read` answers what it
    /// has of a disk.
    pub(super) fn is_used(
        &self,
        DiskBlock { disk, block }: DiskBlock,
        read: impl Fn(DiskBlock) -> Option<Bytes>,
    ) -> Option<bool> {
        if block >= self.blocks {
            return None;
        }
        let (group, bit) =
            (block / self.blocks_per_group, (block % self.blocks_per_group) as usize);
        let place = group * self.descriptor_bytes as u64;
        let table = read(DiskBlock { disk, block: 1 + place / 4096 })?;
        let descriptor = &table[(place % 4096) as usize..][..self.descriptor_bytes];
        if u16_at(descriptor, 0x12) & UNINITIALISED != 0 {
            return None;
        }
        let high =
            if descriptor.len() >= 64 { u64::from(u32_at(descriptor, 0x20)) << 32 } else { 0 };
        let bitmap = read(DiskBlock { disk, block: u64::from(u32_at(descriptor, 0)) | high })?;
        Some(bitmap[bit / 8] >> (bit % 8) & 1 != 0)
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

    #[test]
    fn a_bit_tells_whether_a_block_is_used() {
        let disk = disk();
        let ext4 = Ext4::of(&disk[&0]).expect("a superblock");
        let read = |DiskBlock { block, .. }: DiskBlock| disk.get(&block).copied();
        let used = |block| ext4.is_used(DiskBlock { disk: 0, block }, read);
        assert_eq!([used(109), used(110), used(111)], [Some(false), Some(true), Some(false)]);
        // A bitmap that was never made, and no block of the file system.
        assert_eq!([used(3), used(200), used(u64::MAX)], [None; 3]);
        assert_eq!(ext4.is_used(DiskBlock { disk: 0, block: 110 }, |_| None), None);
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
                let _ = ext4.is_used(DiskBlock { disk: 0, block }, |_| Some([table; 4096]));
            }
        }
    }
}
