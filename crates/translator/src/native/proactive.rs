//! Links that are made as soon as both sides exist.

use std::collections::HashMap;

use super::cache::MALLOC;

/// What is kept to lead exits on as soon as both sides exist: heads and places in pages by frame and offset.
#[derive(Debug, Default)]
pub(super) struct Proactive {
    /// Where the path is entered.
    heads: HashMap<u64, u32>,
    /// Sites of exits to what does not exist yet.
    waiting: HashMap<u64, Vec<u32>>,
    /// Bytes of the lists in it.
    sites: usize,
}

/// A table has a byte beside each entry.
const HEAD: usize = size_of::<(u64, u32)>() + 1;
const WAITING: usize = size_of::<(u64, Vec<u32>)>() + 1;

impl Proactive {
    /// A path with its exits. Returns what is to be led where.
    pub(super) fn add(
        &mut self,
        head: u64,
        inner: u32,
        exits: impl Iterator<Item = (u32, u64)>,
    ) -> Vec<(u32, u32)> {
        self.heads.insert(head, inner);
        let waited = self.waiting.remove(&head).unwrap_or_default();
        self.sites -= allocated(&waited);
        let mut led: Vec<_> = waited.into_iter().map(|site| (site, inner)).collect();
        for (site, to) in exits {
            if let Some(&inner) = self.heads.get(&to) {
                led.push((site, inner));
            } else {
                let sites = self.waiting.entry(to).or_default();
                self.sites -= allocated(sites);
                sites.push(site);
                self.sites += allocated(sites);
            }
        }
        led
    }

    /// By what is allocated.
    pub(super) fn bytes(&self) -> usize {
        self.heads.capacity() * HEAD + self.waiting.capacity() * WAITING + self.sites
    }

    /// Bytes that it grows by, at most or nearly, with a path that has so many exits: a full table becomes twice as large.
    pub(super) fn growth(&self, exits: usize) -> usize {
        let table = |len: usize, capacity: usize, entry: usize| {
            if len > capacity { entry * (capacity.max(len) + 1) } else { 0 }
        };
        table(self.heads.len() + 1, self.heads.capacity(), HEAD)
            + table(self.waiting.len() + exits, self.waiting.capacity(), WAITING)
            + exits * (4 * size_of::<u32>() + MALLOC)
            // What is free of a table varies with what was removed.
            + HEAD
            + exits * WAITING
    }
}

fn allocated(sites: &Vec<u32>) -> usize {
    if sites.capacity() > 0 { sites.capacity() * size_of::<u32>() + MALLOC } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_led_to_each_other() {
        let mut links = Proactive::default();
        assert_eq!(links.add(1, 100, [(110, 2), (120, 3)].into_iter()), []);
        assert_eq!(links.add(2, 200, [(210, 1), (220, 3)].into_iter()), [(110, 200), (210, 100)]);
        assert_eq!(links.add(3, 300, std::iter::empty()), [(120, 300), (220, 300)]);
    }

    #[test]
    fn its_bytes_are_counted_and_foretold() {
        let mut links = Proactive::default();
        for head in 0..3000_u64 {
            let most = links.bytes() + links.growth(2);
            links.add(head, 1, [(2, head / 2), (3, head * 2 + 1)].into_iter());
            let sites: usize = links.waiting.values().map(allocated).sum();
            assert_eq!(links.sites, sites);
            // What a table has free is not known to the entry where some were removed.
            assert!(links.bytes() <= most + most / 16, "{} of {most}", links.bytes());
        }
        assert!(links.bytes() > 3000 * (HEAD + WAITING));
    }
}
