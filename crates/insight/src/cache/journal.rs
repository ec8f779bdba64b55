//! Where a file system's journal is.
//!
//! A block goes to the journal first and to its own place later, from the same frame: that is no second block. JBD2
//! begins its descriptor, commit and revoke blocks with a magic number, all of them inside the journal, which is
//! filled from its beginning to its end and round again.

use memory::DiskBlock;

/// `JBD2_MAGIC_NUMBER`, big-endian (Linux, include/linux/jbd2.h; the disk layout in Documentation/filesystems/ext4).
pub(super) const JBD2: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// Journals at most: one a file system.
const MOST: usize = 16;

/// Blocks between two of the journal's own, at most: one descriptor has tags for fewer than this.
const NEAR: u64 = 2048;

/// What is known of journals.
#[derive(Debug, Default)]
pub(super) struct Journals {
    extents: Vec<Extent>,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    disk: u8,
    first: u64,
    /// Behind the last.
    end: u64,
}

impl Journals {
    /// `block` was written with the journal's magic number.
    pub(super) fn learn(&mut self, DiskBlock { disk, block }: DiskBlock) {
        let near = |extent: &&mut Extent| {
            let from = extent.first.saturating_sub(NEAR)..extent.end.saturating_add(NEAR);
            extent.disk == disk && from.contains(&block)
        };
        if let Some(extent) = self.extents.iter_mut().find(near) {
            extent.first = extent.first.min(block);
            extent.end = extent.end.max(block + 1);
        } else if self.extents.len() < MOST {
            self.extents.push(Extent { disk, first: block, end: block + 1 });
        }
    }

    /// Whether `block` is in a journal, or right behind what is known of it.
    pub(super) fn contains(&self, DiskBlock { disk, block }: DiskBlock) -> bool {
        let inside = |extent: &Extent| {
            extent.disk == disk && (extent.first..extent.end.saturating_add(NEAR)).contains(&block)
        };
        self.extents.iter().any(inside)
    }
}

#[cfg(test)]
mod tests {
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
    }
}
