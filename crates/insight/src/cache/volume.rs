//! What disks are used for: file systems and swap areas, on a whole disk or in its partitions.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use memory::{DiskBlock, FRAME_SIZE};

use super::ext4::{self, Bytes, Ext4, Group};
use super::journal::Log;
use super::xfs::{Leaves, Xfs};

/// Of all disks, and on one.
const MOST: usize = 256;
/// Bitmaps kept to see what is freed.
const MOST_BITMAPS: usize = 256;

/// Reads so many bytes of a disk's block from an offset on, as memory has them.
pub(super) trait Read: Fn(DiskBlock, usize, &mut [u8]) -> bool {}
impl<F: Fn(DiskBlock, usize, &mut [u8]) -> bool> Read for F {}

/// One use of a disk, from a block on to the next one's first, or to the end.
#[derive(Debug)]
pub(super) struct Volume {
    disk: u8,
    first: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Not seen, or not understood.
    Unknown,
    Swap,
    Ext4(Box<Mounted>),
    Xfs(Xfs, Leaves),
}

#[derive(Debug)]
struct Mounted {
    ext4: Ext4,
    log: Log,
    /// By the first block of their group: bitmaps, as they were when last written to the journal.
    bitmaps: HashMap<u64, Box<Bytes>>,
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    list: Vec<Volume>,
}

impl Volumes {
    /// Whether the contents of `block` say what the disk is used for.
    pub(super) fn begins_at(&self, block: DiskBlock) -> bool {
        block.block == 0 || self.list.iter().any(|of| (of.disk, of.first) == place_of(block))
    }

    /// Whether what begins with `block` is known.
    pub(super) fn knows(&self, block: DiskBlock) -> bool {
        let known = |of: &Volume| !matches!(of.kind, Kind::Unknown);
        self.list.iter().any(|of| (of.disk, of.first) == place_of(block) && known(of))
    }

    /// What begins with `block`, if anything does, may be something else now.
    pub(super) fn forget(&mut self, block: DiskBlock) {
        if let Some(of) = self.list.iter_mut().find(|of| (of.disk, of.first) == place_of(block)) {
            of.kind = Kind::Unknown;
        }
    }

    /// `bytes` are in `block`, at which a volume may begin.
    pub(super) fn look(&mut self, block: DiskBlock, bytes: &Bytes) {
        let kind = if let Some(ext4) = Ext4::of(bytes) {
            let log = Ext4::log(bytes);
            let known = self.list.iter().find(|of| (of.disk, of.first) == place_of(block));
            if let Some(Volume { kind: Kind::Ext4(known), .. }) = known
                && known.ext4 == ext4
            {
                return;
            }
            Kind::Ext4(Box::new(Mounted { ext4, log, bitmaps: HashMap::new() }))
        } else if let Some(xfs) = Xfs::of(bytes) {
            let known = self.list.iter().find(|of| (of.disk, of.first) == place_of(block));
            if known.is_some_and(|known| matches!(known.kind, Kind::Xfs(known, _) if known == xfs))
            {
                return;
            }
            Kind::Xfs(xfs, Leaves::default())
        } else if ext4::is_swap(bytes) {
            Kind::Swap
        } else {
            Kind::Unknown
        };
        if block.block == 0 && matches!(kind, Kind::Unknown) {
            for first in partitions(bytes) {
                self.add(DiskBlock { disk: block.disk, block: first });
            }
        }
        if !matches!(kind, Kind::Unknown) {
            self.add(block);
        }
        let found = self.list.iter_mut().find(|of| (of.disk, of.first) == place_of(block));
        if let Some(volume) = found {
            volume.kind = kind;
        }
    }

    fn add(&mut self, DiskBlock { disk, block: first }: DiskBlock) {
        let known = self.list.iter().any(|of| (of.disk, of.first) == (disk, first));
        if !known && self.list.len() < MOST {
            self.list.push(Volume { disk, first, kind: Kind::Unknown });
        }
    }

    fn position(&self, block: DiskBlock) -> Option<usize> {
        let of = self.list.iter().enumerate();
        let before = of.filter(|(_, of)| of.disk == block.disk && of.first <= block.block);
        before.max_by_key(|(_, of)| of.first).map(|(number, _)| number)
    }

    /// What `block` is in, and its number there.
    fn of(&self, block: DiskBlock) -> Option<(&Volume, u64)> {
        let volume = &self.list[self.position(block)?];
        Some((volume, block.block - volume.first))
    }

    pub(super) fn is_swap(&self, block: DiskBlock) -> bool {
        self.of(block).is_some_and(|(volume, _)| matches!(volume.kind, Kind::Swap))
    }

    pub(super) fn has_swap(&self) -> bool {
        self.list.iter().any(|volume| matches!(volume.kind, Kind::Swap))
    }

    /// Whether a file or the file system has the block. `None`: memory does not tell.
    pub(super) fn is_used(&self, block: DiskBlock, read: impl Read) -> Option<bool> {
        let (volume, number) = self.of(block)?;
        match &volume.kind {
            Kind::Ext4(mounted) => mounted.ext4.is_used(number, volume.reader(&read)),
            Kind::Xfs(xfs, leaves) => xfs.is_used(leaves, number, volume.reader(&read)),
            Kind::Unknown | Kind::Swap => None,
        }
    }

    /// Whether it is in a journal; `None` where that is not known.
    pub(super) fn in_journal(&self, block: DiskBlock) -> Option<bool> {
        let (volume, number) = self.of(block)?;
        match &volume.kind {
            Kind::Ext4(mounted) => mounted.log.is_known().then(|| mounted.log.contains(number)),
            Kind::Xfs(xfs, _) => Some(xfs.in_log(number)),
            Kind::Unknown | Kind::Swap => None,
        }
    }

    /// Whether blocks are free some time after their pages have gone.
    pub(super) fn frees_late(&self, block: DiskBlock) -> bool {
        self.wants(block)
    }

    /// Whether what `block` begins with may tell more ([`Volumes::learn`]).
    pub(super) fn wants(&self, block: DiskBlock) -> bool {
        self.of(block).is_some_and(|(volume, _)| matches!(volume.kind, Kind::Xfs(..)))
    }

    /// What is in `block` starts with these bytes.
    pub(super) fn learn(&mut self, block: DiskBlock, starts: [u8; 4]) {
        let Some(number) = self.position(block) else { return };
        let volume = &mut self.list[number];
        if let Kind::Xfs(xfs, leaves) = &mut volume.kind {
            xfs.learn(leaves, block.block - volume.first, starts);
        }
    }

    /// `block` of a log is written: the extents that have been freed since the last one was, where the log itself does not
    /// tell which block is its home.
    pub(super) fn freed_by_log(
        &mut self,
        at: Duration,
        block: DiskBlock,
        read: impl Read,
    ) -> Vec<(DiskBlock, u64)> {
        let Some(number) = self.position(block) else { return Vec::new() };
        let Volume { disk, first, kind } = &mut self.list[number];
        let Kind::Xfs(xfs, leaves) = kind else { return Vec::new() };
        let place =
            |number: u64| Some(DiskBlock { disk: *disk, block: first.checked_add(number)? });
        let extents = xfs.freed(leaves, at, |number, at, into: &mut [u8]| {
            place(number).is_some_and(|block| read(block, at, into))
        });
        let placed = |extent: Range<u64>| Some((place(extent.start)?, extent.end - extent.start));
        extents.into_iter().filter_map(placed).collect()
    }

    /// Which places of the journal have which homes, by what was written to `block` (see [`Log::tags`]).
    pub(super) fn tags(
        &mut self,
        block: DiskBlock,
        bytes: &Bytes,
        read: impl Read,
    ) -> Vec<(DiskBlock, Option<DiskBlock>)> {
        let Some(number) = self.position(block) else { return Vec::new() };
        let volume = &mut self.list[number];
        let (disk, first) = (volume.disk, volume.first);
        let Kind::Ext4(mounted) = &mut volume.kind else { return Vec::new() };
        let place = |number: u64| Some(DiskBlock { disk, block: first.checked_add(number)? });
        let mut superblock = [0; FRAME_SIZE];
        if let Some(at) = mounted.log.superblock().and_then(place)
            && (at == block || read(at, 0, &mut superblock))
        {
            mounted.log.shape(if at == block { bytes } else { &superblock });
        }
        let tags = mounted.log.tags(block.block - first, bytes).into_iter();
        tags.filter_map(|(to, home)| Some((place(to)?, home.and_then(place)))).collect()
    }

    /// `home` is going to the journal: if it is a bitmap, the blocks that were freed since it last was.
    pub(super) fn freed(&mut self, home: DiskBlock, read: impl Read) -> Vec<DiskBlock> {
        let group = self.of(home).and_then(|(volume, number)| match &volume.kind {
            Kind::Ext4(mounted) => mounted.ext4.group_of_bitmap(number, volume.reader(&read)),
            _ => None,
        });
        let (Some(group), Some(number)) = (group, self.position(home)) else { return Vec::new() };
        let volume = &mut self.list[number];
        let (disk, first) = (volume.disk, volume.first);
        let Kind::Ext4(mounted) = &mut volume.kind else { return Vec::new() };
        let mut now = Box::new([0; FRAME_SIZE]);
        if !read(home, 0, &mut now[..]) {
            return Vec::new();
        }
        let bitmaps = &mut mounted.bitmaps;
        if bitmaps.len() >= MOST_BITMAPS && !bitmaps.contains_key(&group.first) {
            bitmaps.clear();
        }
        let freed = match bitmaps.get(&group.first) {
            Some(before) => cleared(before, &now, group),
            // What was free before was perhaps never used.
            None => cleared(&[0xff; FRAME_SIZE], &now, group),
        };
        bitmaps.insert(group.first, now);
        let place = |number| Some(DiskBlock { disk, block: first.checked_add(number)? });
        freed.into_iter().filter_map(place).collect()
    }
}

impl Volume {
    /// Of its own blocks.
    fn reader(&self, read: &impl Read) -> impl ext4::Read {
        move |number, at, into: &mut [u8]| match self.first.checked_add(number) {
            Some(block) => read(DiskBlock { disk: self.disk, block }, at, into),
            None => false,
        }
    }
}

fn place_of(block: DiskBlock) -> (u8, u64) {
    (block.disk, block.block)
}

/// Blocks of a group whose bits are no longer set.
fn cleared(before: &Bytes, now: &Bytes, group: Group) -> Vec<u64> {
    let mut blocks = Vec::new();
    for (byte, (before, now)) in before.iter().zip(now).enumerate() {
        let gone = before & !now;
        for bit in (0..8).filter(|bit| gone >> bit & 1 != 0) {
            let number = byte as u64 * 8 + bit;
            if number < group.count {
                blocks.push(group.first + number);
            }
        }
    }
    blocks
}

/// What a disk is used for shows in these blocks: its first one, and the first ones of its partitions; with their contents,
/// as far as `read` has them.
pub fn beginnings(disk: u8, read: impl Fn(u64) -> Option<Bytes>) -> Vec<(DiskBlock, Box<Bytes>)> {
    let first = read(0);
    let partitions = first.as_ref().map(partitions).unwrap_or_default();
    let at = |block| Some((DiskBlock { disk, block }, Box::new(read(block)?)));
    let first = first.map(|bytes| (DiskBlock { disk, block: 0 }, Box::new(bytes)));
    first.into_iter().chain(partitions.into_iter().filter_map(at)).collect()
}

/// The first blocks of a disk's partitions, as far as they begin with one: the four of an MBR, or the first 24 of a
/// GPT, which is what the disk's first 4 KiB have of it (UEFI Specification, 5.2 and 5.3), in sectors of 512 bytes.
fn partitions(bytes: &Bytes) -> Vec<u64> {
    const SECTORS: u64 = 8;
    const TABLE: usize = 446;
    const PROTECTIVE: u8 = 0xee;
    let number = |at: usize, len: usize| {
        bytes[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    };
    if bytes[510..512] != [0x55, 0xaa] {
        return Vec::new();
    }
    let entries = (0..4).map(|entry| TABLE + entry * 16);
    let gpt = bytes[TABLE + 4] == PROTECTIVE && bytes[512..520] == *b"EFI PART";
    let sectors: Vec<u64> = if gpt {
        // An entry that is not used has no type.
        let entries = (0..24).map(|entry| 1024 + entry * 128);
        entries.filter(|&at| number(at, 8) != 0).map(|at| number(at + 32, 8)).collect()
    } else {
        entries.filter(|&at| bytes[at + 4] != 0).map(|at| number(at + 8, 4)).collect()
    };
    let whole = sectors.into_iter().filter(|sector| sector % SECTORS == 0 && *sector > 0);
    whole.map(|sector| sector / SECTORS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: DiskBlock, _: usize, _: &mut [u8]) -> bool {
        false
    }

    fn swap() -> Bytes {
        let mut bytes = [0; FRAME_SIZE];
        bytes[4086..].copy_from_slice(b"SWAPSPACE2");
        bytes
    }

    fn block(block: u64) -> DiskBlock {
        DiskBlock { disk: 1, block }
    }

    #[test]
    fn partitions_are_looked_at_where_they_begin() {
        let mut mbr = [0; FRAME_SIZE];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        mbr[446 + 4] = 0x83;
        mbr[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
        mbr[462 + 4] = 0x82;
        mbr[462 + 8..462 + 12].copy_from_slice(&8192u32.to_le_bytes());
        let mut gpt = [0; FRAME_SIZE];
        gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
        gpt[446 + 4] = 0xee;
        gpt[512..520].copy_from_slice(b"EFI PART");
        for (entry, sector) in [(0, 2048u64), (1, 8192), (2, 8193)] {
            gpt[1024 + entry * 128] = 1;
            gpt[1024 + entry * 128 + 32..][..8].copy_from_slice(&sector.to_le_bytes());
        }
        for table in [mbr, gpt] {
            assert_eq!(partitions(&table), [256, 1024]);
            let begin = beginnings(1, |number| (number != 256).then_some(table));
            assert_eq!(
                begin.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
                [block(0), block(1024)]
            );
            let mut volumes = Volumes::default();
            assert!(volumes.begins_at(block(0)) && !volumes.begins_at(block(1024)));
            volumes.look(block(0), &table);
            assert!(volumes.begins_at(block(1024)) && !volumes.begins_at(block(1025)));
            assert!(!volumes.has_swap());
            volumes.look(block(1024), &swap());
            assert!(volumes.has_swap());
            assert!(volumes.is_swap(block(1024)) && volumes.is_swap(block(5000)));
            assert!(!volumes.is_swap(block(1023)));
            assert!(!volumes.is_swap(DiskBlock { disk: 0, block: 2000 }));
        }
        assert!(partitions(&[0; FRAME_SIZE]).is_empty());
    }

    #[test]
    fn there_are_not_too_many() {
        let mut volumes = Volumes::default();
        for disk in 0..=255 {
            volumes.look(DiskBlock { disk, block: 0 }, &swap());
        }
        assert_eq!(volumes.list.len(), MOST);
        volumes.look(block(0), &[0; FRAME_SIZE]);
        assert!(!volumes.is_swap(block(7)));
        assert_eq!(volumes.is_used(block(7), nothing), None);
    }

    #[test]
    fn bits_that_are_cleared_are_blocks() {
        let (mut before, mut now) = ([0; FRAME_SIZE], [0; FRAME_SIZE]);
        (before[0], before[2], now[0], now[1]) = (0b1011, 0x80, 0b10, 0xff);
        assert_eq!(cleared(&before, &now, Group { first: 100, count: 30 }), [100, 103, 123]);
        assert_eq!(cleared(&before, &now, Group { first: 100, count: 3 }), [100]);
    }
}
