//! Where a file system's journal is, and which block each of its copies is of.
//!
//! A block goes to the journal first and to its own place later, from the same frame: that is no second block. JBD2
//! begins its descriptor, commit and revoke blocks with a magic number, all of them inside the journal, which is
//! filled from its beginning to its end and round again. A descriptor has a tag for each block that follows it: its
//! place at home. So a block is known that has never been there: the bitmap of a part of the disk that has just begun
//! to be used is made in memory. Layout: Documentation/filesystems/ext4/journal.rst, include/linux/jbd2.h.

use std::collections::{HashMap, VecDeque};

use memory::{DiskBlock, Frame};

use super::ext4::Bytes;

/// `JBD2_MAGIC_NUMBER`, big-endian.
pub(super) const JBD2: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// Journals at most: one a file system.
const MOST: usize = 16;

/// Blocks between two of the journal's own, at most: one descriptor has tags for fewer than this.
const NEAR: u64 = 2048;

/// Places of which it is known what comes there, and places written of which it is not, at most.
const MOST_HOMES: usize = 4096;
const MOST_RECENT: usize = 512;

/// What is known of journals.
#[derive(Debug, Default)]
pub(super) struct Journals {
    extents: Vec<Extent>,
    /// By the journal's block: where the next copy that is written there has its home. `None`: its frame does not stay
    /// what it is.
    homes: HashMap<DiskBlock, Option<DiskBlock>>,
    /// Copies written before the descriptor that tells of them: a disk may be given them in another order.
    recent: VecDeque<(DiskBlock, Frame)>,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    disk: u8,
    first: u64,
    /// Behind the last.
    end: u64,
}

/// A copy in the journal: the frame that it was written from, and its home.
pub(super) type Copied = (Frame, DiskBlock);

impl Journals {
    /// `block` was written with the journal's magic number.
    pub(super) fn learn(&mut self, DiskBlock { disk, block }: DiskBlock) {
        let near = |extent: &&mut Extent| {
            let from = extent.first.saturating_sub(NEAR)..extent.end.saturating_add(NEAR);
            extent.disk == disk && from.contains(&block)
        };
        if let Some(extent) = self.extents.iter_mut().find(near) {
            extent.first = extent.first.min(block);
            extent.end = extent.end.max(block.saturating_add(1));
        } else if self.extents.len() < MOST {
            self.extents.push(Extent { disk, first: block, end: block.saturating_add(1) });
        }
    }

    /// Whether `block` is in a journal, or right behind what is known of it.
    pub(super) fn contains(&self, DiskBlock { disk, block }: DiskBlock) -> bool {
        let inside = |extent: &Extent| {
            extent.disk == disk && (extent.first..extent.end.saturating_add(NEAR)).contains(&block)
        };
        self.extents.iter().any(inside)
    }

    /// A descriptor tells what is, or will be, written to these places; answers those that were already.
    pub(super) fn expect(&mut self, tags: &[(DiskBlock, Option<DiskBlock>)]) -> Vec<Copied> {
        if self.homes.len() + tags.len() > MOST_HOMES {
            self.homes.clear();
        }
        let mut copied = Vec::new();
        for &(place, home) in tags {
            // The latest: what was there a round ago is of another descriptor.
            let written = self.recent.iter().rposition(|(recent, _)| *recent == place);
            match written.and_then(|at| self.recent.remove(at)) {
                Some((_, frame)) => copied.extend(home.map(|home| (frame, home))),
                None => drop(self.homes.insert(place, home)),
            }
        }
        copied
    }

    /// `frame` was written to `place`, in a journal: the home of what it holds, if that is known by now.
    pub(super) fn copy(&mut self, frame: Frame, place: DiskBlock) -> Option<DiskBlock> {
        if let Some(home) = self.homes.remove(&place) {
            return home;
        }
        if self.recent.len() >= MOST_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((place, frame));
        None
    }
}

/// The journal of one file system, by the copy of its inode in the superblock and by its own superblock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// Where its blocks are one after the other: the first of the file system's, and how many.
    parts: Vec<(u64, u64)>,
    shape: Option<Shape>,
}

/// What the journal's superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Blocks of the log: it goes on with `first` where it comes to `end`.
    first: u64,
    end: u64,
    tag_bytes: usize,
    /// A tag has its upper half at 8.
    wide: bool,
    /// Tags of the third version: flags of 32 bits.
    third: bool,
    checksum_bytes: usize,
}

/// `h_blocktype`.
const DESCRIPTOR: u32 = 1;
const SUPERBLOCK_V2: u32 = 4;
/// `JBD2_FEATURE_INCOMPAT_*`.
const WIDE: u32 = 2;
const CHECKSUM_V2: u32 = 8;
const CHECKSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
/// Which others there are makes no difference to descriptors: revoke blocks, asynchronous commits.
const OTHERS: u32 = 1 | 4;
/// `JBD2_FLAG_*`.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;
const HEADER: usize = 12;

impl Log {
    /// By `s_jnl_blocks`: what an inode has for its blocks, as extents within the inode.
    pub(super) fn of(inode_blocks: &[u8; 60]) -> Self {
        const MAGIC: u16 = 0xf30a;
        const ENTRY: usize = 12;
        let half = |at: usize| u16::from_le_bytes([inode_blocks[at], inode_blocks[at + 1]]);
        let mut parts = Vec::new();
        let (entries, depth) = (usize::from(half(2)), half(6));
        if half(0) == MAGIC && depth == 0 && entries <= (60 - ENTRY) / ENTRY {
            let mut next = 0;
            for at in (1..=entries).map(|entry| entry * ENTRY) {
                let logical = u64::from(half(at)) | u64::from(half(at + 2)) << 16;
                let low = u64::from(half(at + 8)) | u64::from(half(at + 10)) << 16;
                let (count, first) = (u64::from(half(at + 4)), u64::from(half(at + 6)) << 32 | low);
                if logical != next || count == 0 || count > 0x8000 {
                    return Self::default();
                }
                next += count;
                parts.push((first, count));
            }
        }
        Self { parts, shape: None }
    }

    /// The file system's block that is the log's `at`th.
    fn block(&self, mut at: u64) -> Option<u64> {
        for &(first, count) in &self.parts {
            if at < count {
                return Some(first + at);
            }
            at -= count;
        }
        None
    }

    fn position(&self, block: u64) -> Option<u64> {
        let mut before = 0;
        for &(first, count) in &self.parts {
            if (first..first + count).contains(&block) {
                return Some(before + block - first);
            }
            before += count;
        }
        None
    }

    /// Whether it is known where all of it is.
    pub(super) fn is_known(&self) -> bool {
        !self.parts.is_empty()
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        self.position(block).is_some()
    }

    /// The block with the journal's superblock.
    pub(super) fn superblock(&self) -> Option<u64> {
        self.block(0)
    }

    /// Takes in the journal's superblock, if this is it.
    pub(super) fn shape(&mut self, superblock: &Bytes) {
        let word = |at| u32_at(superblock, at);
        if superblock[..4] != JBD2 || word(4) != SUPERBLOCK_V2 {
            return;
        }
        let features = word(0x28);
        let fast = match (features & FAST_COMMIT, word(0x54)) {
            (0, _) => 0,
            // `JBD2_DEFAULT_FAST_COMMIT_BLOCKS`.
            (_, 0) => 256,
            (_, blocks) => u64::from(blocks),
        };
        let third = features & CHECKSUM_V3 != 0;
        let second = features & CHECKSUM_V2 != 0 && !third;
        let wide = features & WIDE != 0;
        let shape = Shape {
            first: word(0x14).into(),
            end: u64::from(word(0x10)).saturating_sub(fast),
            tag_bytes: match third {
                true => 16,
                false => 8 + 4 * usize::from(wide) + 2 * usize::from(second),
            },
            wide: wide || third,
            third,
            checksum_bytes: if second || third { 4 } else { 0 },
        };
        let understood = features & !(OTHERS | WIDE | CHECKSUM_V2 | CHECKSUM_V3 | FAST_COMMIT) == 0;
        let sane = word(0xc) == 4096 && shape.first > 0 && shape.first < shape.end;
        self.shape = (understood && sane).then_some(shape);
    }

    /// Of a descriptor at `place`: each place behind it, with the home of what goes there, or `None` where the frame is
    /// one of the journal's. Empty if it is no descriptor, or the journal is not understood. In the file system's
    /// blocks.
    pub(super) fn tags(&self, place: u64, bytes: &Bytes) -> Vec<(u64, Option<u64>)> {
        let mut tags = Vec::new();
        let (Some(shape), Some(mut at)) = (self.shape, self.position(place)) else { return tags };
        if bytes[..4] != JBD2 || u32_at(bytes, 4) != DESCRIPTOR {
            return tags;
        }
        let mut tag = HEADER;
        while tag + shape.tag_bytes <= bytes.len() - shape.checksum_bytes {
            let low = u64::from(u32_at(bytes, tag));
            let high = if shape.wide { u64::from(u32_at(bytes, tag + 8)) << 32 } else { 0 };
            let flags = match shape.third {
                true => u32_at(bytes, tag + 4),
                false => u32_at(bytes, tag + 4) & 0xffff,
            };
            at = if at + 1 >= shape.end { shape.first } else { at + 1 };
            let Some(block) = self.block(at) else { break };
            // What begins with the magic number by chance is copied to be written.
            tags.push((block, (flags & ESCAPED == 0).then_some(high | low)));
            if flags & LAST != 0 {
                break;
            }
            tag += shape.tag_bytes + if flags & SAME_UUID == 0 { 16 } else { 0 };
        }
        tags
    }
}

fn u32_at(bytes: &Bytes, at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_journal_grows_with_what_is_seen_of_it() {
        let block = |block| DiskBlock { disk: 1, block };
        let mut journals = Journals::default();
        assert!(!journals.contains(block(1000)));
        journals.learn(block(1000));
        assert!(journals.contains(block(1010)) && !journals.contains(block(999)));
        journals.learn(block(1040));
        journals.learn(block(990));
        assert!(journals.contains(block(990)) && journals.contains(block(1041)));
        assert!(!journals.contains(DiskBlock { disk: 2, block: 1000 }));
        assert_eq!(journals.extents.len(), 1);
        journals.learn(block(90_000));
        assert_eq!(journals.extents.len(), 2);
    }

    #[test]
    fn there_are_not_too_many() {
        let mut journals = Journals::default();
        (0..100).for_each(|n| journals.learn(DiskBlock { disk: 0, block: n * 100_000 }));
        assert_eq!(journals.extents.len(), MOST);
        for block in 0..100_000 {
            let place = DiskBlock { disk: 0, block };
            journals.expect(&[(place, Some(place))]);
            journals.copy(Frame(0), DiskBlock { disk: 1, block });
        }
        assert!(journals.homes.len() <= MOST_HOMES && journals.recent.len() <= MOST_RECENT);
    }

    #[test]
    fn a_copy_is_known_in_either_order() {
        let block = |block| DiskBlock { disk: 1, block };
        let mut journals = Journals::default();
        let tags = [(block(10), Some(block(900))), (block(11), None), (block(12), Some(block(7)))];
        assert_eq!(journals.copy(Frame(5), block(12)), None);
        assert_eq!(journals.expect(&tags), [(Frame(5), block(7))]);
        assert_eq!(journals.copy(Frame(6), block(10)), Some(block(900)));
        assert_eq!(journals.copy(Frame(8), block(11)), None);
        // Of the next round nothing is known.
        assert_eq!(journals.copy(Frame(6), block(10)), None);
    }

    fn put(bytes: &mut [u8], at: usize, words: &[u32]) {
        for (word, to) in words.iter().zip(bytes[at..].chunks_mut(4)) {
            to.copy_from_slice(&word.to_be_bytes());
        }
    }

    /// Of a log of 8 blocks in two parts, with these features.
    fn log(features: u32) -> Log {
        let mut inode = [0; 60];
        let halves: [u16; 18] = [0xf30a, 2, 4, 0, 0, 0, 0, 0, 6, 0, 100, 0, 6, 0, 2, 0, 50, 0];
        for (half, to) in halves.iter().zip(inode.chunks_mut(2)) {
            to.copy_from_slice(&half.to_le_bytes());
        }
        let mut log = Log::of(&inode);
        let mut superblock = [0; 4096];
        put(&mut superblock, 0, &[u32::from_be_bytes(JBD2), SUPERBLOCK_V2, 1, 4096, 8, 1]);
        put(&mut superblock, 0x28, &[features]);
        log.shape(&superblock);
        log
    }

    fn descriptor(tags: &[u32]) -> Bytes {
        let mut bytes = [0; 4096];
        put(&mut bytes, 0, &[u32::from_be_bytes(JBD2), DESCRIPTOR, 9]);
        put(&mut bytes, HEADER, tags);
        bytes
    }

    #[test]
    fn tags_say_what_follows() {
        let third = descriptor(&[7, SAME_UUID, 1, 0, 8, SAME_UUID | ESCAPED, 0, 0, 9, LAST, 0, 0]);
        let homes = [(105, Some(1 << 32 | 7)), (50, None), (51, Some(9))];
        assert_eq!(log(WIDE | CHECKSUM_V3).tags(104, &third), homes);
        // It goes on behind the journal's superblock.
        let round: Vec<_> =
            log(CHECKSUM_V3).tags(50, &third).into_iter().map(|tag| tag.0).collect();
        assert_eq!(round, [51, 101, 102]);
        // Without the third version, the flags are the lower half of the second word; a UUID may follow.
        let plain = descriptor(&[7, 0xabcd_0000, 0, 0, 0, 0, 8, SAME_UUID | LAST]);
        assert_eq!(log(0).tags(101, &plain), [(102, Some(7)), (103, Some(8))]);
        let wide = descriptor(&[7, SAME_UUID, 2, 8, LAST, 3]);
        assert_eq!(
            log(WIDE).tags(101, &wide),
            [(102, Some(2 << 32 | 7)), (103, Some(3 << 32 | 8))]
        );
    }

    #[test]
    fn what_is_not_understood_tells_nothing() {
        let third = descriptor(&[7, LAST, 0, 0]);
        assert_eq!(log(CHECKSUM_V3 | 0x100).tags(101, &third), []);
        assert_eq!(log(CHECKSUM_V3).tags(99, &third), []);
        assert_eq!(log(CHECKSUM_V3).tags(101, &[0; 4096]), []);
        assert_eq!(Log::of(&[0xff; 60]), Log::default());
    }

    proptest! {
        #[test]
        fn any_descriptor_has_a_bounded_number_of_tags(
            features in 0u32..0x40,
            words in proptest::collection::vec(any::<u32>(), 1024),
        ) {
            let words: Vec<_> = words.into_iter().map(|word| word & !LAST).collect();
            prop_assert!(log(features).tags(101, &descriptor(&words[..1020])).len() <= 512);
        }
    }
}
