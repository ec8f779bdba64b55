//! Which blocks of an XFS file system are free, by its trees of free space as the guest's memory has them.
//!
//! Each allocation group has a tree of its free extents by their first block. The kernel has a tree's nodes in frames of
//! their own, and changes them there when it gives blocks out and takes them back. Their root is only told in a sector
//! that it has elsewhere; but a leaf says itself what it is and where, so it is known from when a disk has had to do
//! with it. Numbers are big-endian. Layout: "XFS Algorithms & Data Structures", chapters "Allocation Groups" and
//! "Short Format B+trees".

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::ext4::{Bytes, Read};

/// `sb_magicnum`, and what `sb_versionnum` has in its lower bits for file systems with checksums.
const MAGIC: [u8; 4] = *b"XFSB";
const VERSION: u16 = 0xf;
const CHECKED: u16 = 5;
const BLOCK_BYTES: u32 = 4096;
/// A file system has at most 2^63 bytes.
const MOST_BLOCKS: u64 = 1 << 51;

/// Of a node of the tree, without and with checksums: its magic number, and the bytes before its first record.
const PLAIN: ([u8; 4], usize) = (*b"ABTB", 16);
const WITH_CHECKSUM: ([u8; 4], usize) = (*b"AB3B", 56);
/// No sibling.
const NONE: u32 = u32::MAX;
/// First block of the extent, and how many.
const RECORD: usize = 8;

/// Leaves that are known, and compared with what they were, at most; and how long they are not compared again, for
/// each: a log is written some blocks at a time.
const MOST_LEAVES: usize = 256;
const REST: Duration = Duration::from_micros(20);

/// What is where. All numbers are the file system's own: it may be in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Xfs {
    blocks: u64,
    blocks_per_group: u64,
    checked: bool,
    /// The first block of the log, and the one behind its last.
    log: (u64, u64),
}

/// Leaves of the trees of free space, by block; with what they had when they were last compared.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    known: BTreeMap<u64, Option<Box<Bytes>>>,
    /// Not before this again.
    compare_at: Duration,
}

#[derive(Clone, Copy)]
struct Header {
    records: usize,
    left: u32,
    right: u32,
}

impl Xfs {
    /// By the superblock at the beginning of the file system's first block. `None`: it is none, or has blocks of
    /// another size.
    pub(super) fn of(first: &Bytes) -> Option<Self> {
        let blocks = u64::from_be_bytes(array(first, 8));
        let blocks_per_group = u64::from(word(first, 84));
        let plain = first[..4] == MAGIC && word(first, 4) == BLOCK_BYTES;
        if !plain || blocks_per_group == 0 || blocks > MOST_BLOCKS {
            return None;
        }
        // The group, and the block in it: in so many bits. 0: the log is elsewhere.
        let start = u64::from_be_bytes(array(first, 48));
        let bits = u32::from(first[124]);
        let group = start.checked_shr(bits)?;
        let within = start & 1_u64.checked_shl(bits)?.wrapping_sub(1);
        let log = group.checked_mul(blocks_per_group)?.checked_add(within)?;
        let end = log.checked_add(word(first, 96).into())?;
        let checked = half(first, 100) & VERSION == CHECKED;
        let log = if start == 0 { (0, 0) } else { (log, end) };
        Some(Self { blocks, blocks_per_group, checked, log })
    }

    /// Whether `block` is in the log.
    pub(super) fn in_log(&self, block: u64) -> bool {
        (self.log.0..self.log.1).contains(&block)
    }

    fn node(&self) -> ([u8; 4], usize) {
        if self.checked { WITH_CHECKSUM } else { PLAIN }
    }

    /// `block` begins with these bytes: a leaf, perhaps.
    pub(super) fn learn(&self, leaves: &mut Leaves, block: u64, starts: [u8; 4]) {
        if starts != self.node().0 || block >= self.blocks || leaves.known.contains_key(&block) {
            return;
        }
        if leaves.known.len() >= MOST_LEAVES {
            leaves.known.clear();
        }
        leaves.known.insert(block, None);
    }

    /// Of `block`, if that is a leaf.
    fn header(&self, block: u64, read: impl Fn(usize, &mut [u8]) -> bool) -> Option<Header> {
        let (magic, len) = self.node();
        let mut bytes = [0; WITH_CHECKSUM.1];
        let bytes = &mut bytes[..len];
        let level = |bytes: &[u8]| half(bytes, 4);
        if !read(0, bytes) || bytes[..4] != magic || level(bytes) != 0 {
            return None;
        }
        // Its place, in sectors of 512 bytes.
        if self.checked && u64::from_be_bytes(array(bytes, 16)) != block * 8 {
            return None;
        }
        let records = usize::from(half(bytes, 6));
        let fits = records <= (BLOCK_BYTES as usize - len) / RECORD;
        fits.then(|| Header { records, left: word(bytes, 8), right: word(bytes, 12) })
    }

    fn record(&self, n: usize, read: impl Fn(usize, &mut [u8]) -> bool) -> Option<Range<u64>> {
        let mut bytes = [0; RECORD];
        read(self.node().1 + n * RECORD, &mut bytes).then(|| {
            let (first, count) = (u64::from(word(&bytes, 0)), u64::from(word(&bytes, 4)));
            first..first + count
        })
    }

    /// Whether `block` belongs to a file or to the file system. `None`: memory does not tell.
    pub(super) fn is_used(&self, leaves: &Leaves, block: u64, read: impl Read) -> Option<bool> {
        if block >= self.blocks {
            return None;
        }
        let first = block - block % self.blocks_per_group;
        let within = block - first;
        let group = leaves.known.range(first..first.saturating_add(self.blocks_per_group));
        // The leaf that begins last of those that begin before it.
        let mut covering: Option<(u64, u64, Header)> = None;
        for &leaf in group.map(|(leaf, _)| leaf) {
            let read = |at, into: &mut [u8]| read(leaf, at, into);
            let Some(header) = self.header(leaf, read) else { continue };
            let begin = match header.left {
                NONE => 0,
                _ if header.records == 0 => continue,
                _ => self.record(0, read)?.start,
            };
            if begin <= within && covering.is_none_or(|(known, _, _)| known <= begin) {
                covering = Some((begin, leaf, header));
            }
        }
        let (_, leaf, header) = covering?;
        let read = |at, into: &mut [u8]| read(leaf, at, into);
        // Extents that begin before it, or with it.
        let (mut before, mut behind) = (0, header.records);
        while before < behind {
            let middle = before.midpoint(behind);
            if self.record(middle, read)?.start <= within {
                before = middle + 1;
            } else {
                behind = middle;
            }
        }
        if let Some(last) = before.checked_sub(1)
            && self.record(last, read)?.contains(&within)
        {
            return Some(false);
        }
        // Behind the last, it may be in the next leaf.
        let next = first.saturating_add(header.right.into());
        let told =
            before < header.records || header.right == NONE || leaves.known.contains_key(&next);
        told.then_some(true)
    }

    /// The extents that have become free since this was last asked, or are, where it was not.
    pub(super) fn freed(
        &self,
        leaves: &mut Leaves,
        at: Duration,
        read: impl Read,
    ) -> Vec<Range<u64>> {
        let mut freed = Vec::new();
        if at < leaves.compare_at {
            return freed;
        }
        leaves.compare_at = at.saturating_add(REST * leaves.known.len() as u32);
        for (&leaf, before) in &mut leaves.known {
            let mut now = Box::new([0; BLOCK_BYTES as usize]);
            if !read(leaf, 0, &mut now[..]) || before.as_ref() == Some(&now) {
                continue;
            }
            let group = leaf - leaf % self.blocks_per_group;
            let was = before.as_ref().map(|before| self.extents(leaf, before)).unwrap_or_default();
            for extent in without(self.extents(leaf, &now), &was) {
                let place = |within: u64| group.saturating_add(within.min(self.blocks_per_group));
                freed.push(place(extent.start)..place(extent.end));
            }
            *before = Some(now);
        }
        freed
    }

    /// What is free by a leaf.
    fn extents(&self, leaf: u64, bytes: &Bytes) -> Vec<Range<u64>> {
        let read = |at: usize, into: &mut [u8]| {
            let part = at.checked_add(into.len()).and_then(|end| bytes.get(at..end));
            part.map(|part| into.copy_from_slice(part)).is_some()
        };
        let records = self.header(leaf, read).map_or(0, |header| header.records);
        (0..records).filter_map(|n| self.record(n, read)).collect()
    }
}

/// What of `extents` is in none of `others`; both by rising place.
fn without(extents: Vec<Range<u64>>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut others = others.iter().peekable();
    for mut extent in extents {
        while others.next_if(|other| other.end <= extent.start).is_some() {}
        while let Some(other) = others.peek().filter(|other| other.start < extent.end) {
            left.push(extent.start..other.start.max(extent.start));
            extent.start = other.end.max(extent.start);
            if other.end >= extent.end {
                break;
            }
            others.next();
        }
        left.push(extent);
    }
    left.retain(|extent| extent.start < extent.end);
    left
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two groups of 1000 blocks, and a log of 50 in the second one.
    fn superblock(checked: bool) -> Bytes {
        let mut bytes = [0; 4096];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&BLOCK_BYTES.to_be_bytes());
        bytes[8..16].copy_from_slice(&2000_u64.to_be_bytes());
        bytes[48..56].copy_from_slice(&(1 << 10 | 7_u64).to_be_bytes());
        bytes[84..88].copy_from_slice(&1000_u32.to_be_bytes());
        bytes[96..100].copy_from_slice(&50_u32.to_be_bytes());
        bytes[100..102].copy_from_slice(&if checked { 0xb4a5_u16 } else { 0xb4a4 }.to_be_bytes());
        bytes[124] = 10;
        bytes
    }

    fn leaf(checked: bool, block: u64, siblings: [u32; 2], extents: &[(u32, u32)]) -> Bytes {
        let (magic, len) = if checked { WITH_CHECKSUM } else { PLAIN };
        let mut bytes = [0; 4096];
        bytes[..4].copy_from_slice(&magic);
        bytes[6..8].copy_from_slice(&(extents.len() as u16).to_be_bytes());
        bytes[8..12].copy_from_slice(&siblings[0].to_be_bytes());
        bytes[12..16].copy_from_slice(&siblings[1].to_be_bytes());
        if checked {
            bytes[16..24].copy_from_slice(&(block * 8).to_be_bytes());
        }
        for (&(first, count), to) in extents.iter().zip(bytes[len..].chunks_mut(RECORD)) {
            to[..4].copy_from_slice(&first.to_be_bytes());
            to[4..].copy_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    type Disk = BTreeMap<u64, Bytes>;

    fn reader(disk: &Disk) -> impl Read {
        |block, at, into: &mut [u8]| {
            let bytes = disk.get(&block);
            bytes.map(|bytes| into.copy_from_slice(&bytes[at..at + into.len()])).is_some()
        }
    }

    fn known(xfs: &Xfs, disk: &Disk) -> Leaves {
        let mut leaves = Leaves::default();
        for (&block, bytes) in disk {
            xfs.learn(&mut leaves, block, array(bytes, 0));
        }
        leaves
    }

    #[test]
    fn superblocks_tell_the_groups_and_the_log() {
        let xfs = Xfs::of(&superblock(true)).expect("XFS");
        assert_eq!((xfs.blocks, xfs.blocks_per_group, xfs.checked), (2000, 1000, true));
        assert!(xfs.in_log(1007) && xfs.in_log(1056) && !xfs.in_log(1057) && !xfs.in_log(1006));
        assert!(!Xfs::of(&superblock(false)).expect("XFS").checked);
        for (at, byte) in [(0, b'Y'), (6, 0x20), (8, 0xff), (124, 64)] {
            let mut bytes = superblock(true);
            bytes[at] = byte;
            assert_eq!(Xfs::of(&bytes), None, "{at}");
        }
        let mut elsewhere = superblock(true);
        elsewhere[48..56].fill(0);
        assert!(!Xfs::of(&elsewhere).expect("XFS").in_log(0));
    }

    #[test]
    fn blocks_in_the_trees_are_free() {
        for checked in [true, false] {
            let xfs = Xfs::of(&superblock(checked)).expect("XFS");
            let one = leaf(checked, 1, [NONE, NONE], &[(20, 10), (40, 1)]);
            let left = leaf(checked, 1001, [NONE, 9], &[(5, 5)]);
            let right = leaf(checked, 1009, [1, NONE], &[(100, 5), (200, 800)]);
            let disk = Disk::from([(1, one), (1001, left), (1009, right)]);
            let leaves = known(&xfs, &disk);
            let used = |block| xfs.is_used(&leaves, block, reader(&disk));
            for (block, is_used) in [(19, true), (20, false), (29, false), (30, true)] {
                assert_eq!(used(block), Some(is_used), "{block}");
                assert_eq!(used(block + 1000), Some(true), "{block}");
            }
            let far = [used(999), used(1005), used(1099), used(1100), used(1999), used(2000)];
            let [yes, no] = [Some(true), Some(false)];
            assert_eq!(far, [yes, no, yes, no, no, None]);
            // Without the next leaf, or without its memory, what lies behind the first is not told.
            let part = Disk::from([(1001, left)]);
            let leaves = known(&xfs, &part);
            let used = |block| xfs.is_used(&leaves, block, reader(&part));
            assert_eq!([used(1002), used(1006), used(1300), used(30)], [yes, no, None, None]);
        }
    }

    #[test]
    fn what_is_no_leaf_there_tells_nothing() {
        let xfs = Xfs::of(&superblock(true)).expect("XFS");
        let good = leaf(true, 1, [NONE, NONE], &[(20, 10)]);
        // A node further up, of another place, with more records than fit.
        for (at, byte) in [(5, 1), (23, 1), (6, 0xff)] {
            let mut bytes = good;
            bytes[at] = byte;
            let disk = Disk::from([(1, bytes)]);
            assert_eq!(xfs.is_used(&known(&xfs, &disk), 20, reader(&disk)), None, "{at}");
        }
        // Of the other kind.
        let disk = Disk::from([(1, leaf(false, 1, [NONE, NONE], &[(20, 10)]))]);
        assert_eq!(xfs.is_used(&known(&xfs, &disk), 20, reader(&disk)), None);
    }

    #[test]
    fn what_becomes_free_is_told_once() {
        let ms = Duration::from_millis;
        let xfs = Xfs::of(&superblock(true)).expect("XFS");
        let at =
            |extents: &[(u32, u32)]| Disk::from([(1001, leaf(true, 1001, [NONE, NONE], extents))]);
        let mut disk = at(&[(20, 10), (990, 100)]);
        let mut leaves = known(&xfs, &disk);
        assert_eq!(xfs.freed(&mut leaves, ms(1), reader(&disk)), [1020..1030, 1990..2000]);
        assert!(xfs.freed(&mut leaves, ms(2), reader(&disk)).is_empty());
        disk = at(&[(10, 40), (60, 2), (991, 9)]);
        // So soon it is not looked at again.
        assert!(xfs.freed(&mut leaves, ms(2), reader(&disk)).is_empty());
        let freed = xfs.freed(&mut leaves, ms(3), reader(&disk));
        assert_eq!(freed, [1010..1020, 1030..1050, 1060..1062]);
        assert!(xfs.freed(&mut leaves, ms(4), |_, _, _: &mut [u8]| false).is_empty());
    }

    #[test]
    fn there_are_not_too_many_leaves() {
        let xfs = Xfs::of(&superblock(true)).expect("XFS");
        let mut leaves = Leaves::default();
        for block in 0..2500 {
            xfs.learn(&mut leaves, block, WITH_CHECKSUM.0);
        }
        assert!(!leaves.known.is_empty() && leaves.known.len() <= MOST_LEAVES);
        assert!(leaves.known.keys().all(|&block| block < 2000));
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(
            first in prop::collection::vec(any::<u8>(), 128),
            node in prop::collection::vec(any::<u8>(), 200),
            like in any::<bool>(),
            block in any::<u64>(),
        ) {
            let mut bytes = superblock(true);
            if !like {
                bytes[8..128].copy_from_slice(&first[8..]);
            }
            let Some(xfs) = Xfs::of(&bytes) else { return Ok(()) };
            let mut wild = leaf(true, 1, [NONE, NONE], &[]);
            wild[6..8].copy_from_slice(&node[6..8]);
            wild[56..200].copy_from_slice(&node[56..]);
            let disk = Disk::from([(1, wild)]);
            let mut leaves = known(&xfs, &disk);
            xfs.in_log(block);
            xfs.is_used(&leaves, block % 4096, reader(&disk));
            for freed in xfs.freed(&mut leaves, Duration::ZERO, reader(&disk)) {
                prop_assert!(freed.start <= freed.end);
            }
        }

        #[test]
        fn what_is_left_is_what_only_one_has(
            a in prop::collection::vec((0_u64..6, 1_u64..6), 0..8),
            b in prop::collection::vec((0_u64..6, 1_u64..6), 0..8),
        ) {
            let extents = |gaps: &[(u64, u64)]| {
                let mut at = 0;
                let extents = gaps.iter().map(|&(gap, len)| {
                    let first = at + gap;
                    at = first + len;
                    first..at
                });
                extents.collect::<Vec<_>>()
            };
            let (a, b) = (extents(&a), extents(&b));
            let has = |extents: &[Range<u64>], n| extents.iter().any(|extent| extent.contains(&n));
            let left = without(a.clone(), &b);
            for n in 0..100 {
                prop_assert_eq!(has(&left, n), has(&a, n) && !has(&b, n), "{}", n);
            }
        }
    }
}
