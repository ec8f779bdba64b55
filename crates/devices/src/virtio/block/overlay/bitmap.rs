//! Which clusters are in the overlay.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use super::header::{BITMAP_OFFSET, Header, PAGE_LEN};
use crate::virtio::block::file::HostFile;

const BITS_A_WORD: u64 = 64;
const WORDS_A_PAGE: usize = PAGE_LEN as usize / size_of::<u64>();

/// One bit a cluster, in memory, and which pages of it the file does not have yet.
pub(super) struct Bitmap {
    /// A whole number of pages; bits from `clusters` on are clear.
    words: Vec<u64>,
    clusters: u64,
    changed_pages: BTreeSet<usize>,
}

impl Bitmap {
    pub(super) fn empty(header: &Header) -> Self {
        let words = vec![0; (header.bitmap_len() / size_of::<u64>() as u64) as usize];
        Self { words, clusters: header.clusters(), changed_pages: BTreeSet::new() }
    }

    pub(super) fn read(header: &Header, file: &dyn HostFile) -> io::Result<Self> {
        let mut bytes = vec![0; header.bitmap_len() as usize];
        file.read_host(BITMAP_OFFSET, &mut bytes)?;
        let mut bitmap = Self::empty(header);
        for (word, bytes) in bitmap.words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(bitmap)
    }

    pub(super) fn get(&self, cluster: u64) -> bool {
        let word = self.words.get((cluster / BITS_A_WORD) as usize);
        word.is_some_and(|word| word >> (cluster % BITS_A_WORD) & 1 != 0)
    }

    pub(super) fn set(&mut self, clusters: Range<u64>) {
        for cluster in clusters {
            let at = (cluster / BITS_A_WORD) as usize;
            let bit = 1 << (cluster % BITS_A_WORD);
            if self.words[at] & bit == 0 {
                self.words[at] |= bit;
                self.changed_pages.insert(at / WORDS_A_PAGE);
            }
        }
    }

    /// Whether `cluster` is in the overlay, and the first cluster after it that differs.
    pub(super) fn run(&self, cluster: u64) -> (bool, u64) {
        let here = self.get(cluster);
        let mut next = cluster + 1;
        while next < self.clusters && self.get(next) == here {
            next += 1;
        }
        (here, next)
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.changed_pages.is_empty()
    }

    /// Writes what has changed since the last call; false if nothing has. On an error it is still
    /// changed.
    pub(super) fn write_changes(&mut self, file: &dyn HostFile) -> io::Result<bool> {
        for &page in &self.changed_pages {
            let words = &self.words[page * WORDS_A_PAGE..][..WORDS_A_PAGE];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let offset = BITMAP_OFFSET + page as u64 * PAGE_LEN;
            file.write_host(offset, &bytes)?;
        }
        let any = self.has_changes();
        self.changed_pages.clear();
        Ok(any)
    }
}
