//! Exact stack distances: a page's distance is how many pages were referenced since it was.

use std::collections::HashMap;
use std::hash::Hash;

/// References by the order of time, each page's last one only: a Fenwick tree over times tells how many came after one.
/// Times are renumbered when they run out, so that it takes memory by pages, not by references.
#[derive(Clone, Debug)]
pub struct Stack<K> {
    last: HashMap<K, usize>,
    /// By time, from one on: whose last reference it was.
    pages: Vec<Option<K>>,
    /// Of these times.
    tree: Vec<u32>,
    now: usize,
    /// Up to here there is none.
    none_until: usize,
}

/// Times to begin with.
const TIMES: usize = 1024;

impl<K: Eq + Hash + Copy> Default for Stack<K> {
    fn default() -> Self {
        let (pages, tree) = (vec![None; TIMES + 1], vec![0; TIMES + 1]);
        Self { last: HashMap::new(), pages, tree, now: 0, none_until: 0 }
    }
}

impl<K: Eq + Hash + Copy> Stack<K> {
    /// Notes a reference to `page`, and answers its distance; `None` if it is the first.
    pub fn reference(&mut self, page: K) -> Option<u64> {
        let distance = self.remove(page);
        if self.now + 1 == self.tree.len() {
            self.renumber();
        }
        self.now += 1;
        self.last.insert(page, self.now);
        self.pages[self.now] = Some(page);
        self.add(self.now, 1);
        distance
    }

    /// Forgets `page`, and answers its distance.
    pub fn remove(&mut self, page: K) -> Option<u64> {
        let time = self.last.remove(&page)?;
        let later = self.last.len() + 1 - self.until(time);
        self.pages[time] = None;
        self.add(time, u32::MAX);
        Some(later as u64)
    }

    /// Forgets all but the `pages` referenced last.
    pub fn keep_latest(&mut self, pages: usize) {
        while self.last.len() > pages && self.none_until < self.now {
            self.none_until += 1;
            if let Some(page) = self.pages[self.none_until].take() {
                self.last.remove(&page);
                self.add(self.none_until, u32::MAX);
            }
        }
    }

    /// Pages that it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.last.len()
    }

    /// These, in no order.
    pub fn pages(&self) -> impl Iterator<Item = K> + '_ {
        self.last.keys().copied()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Pages whose last reference was at `time` or before.
    fn until(&self, mut time: usize) -> usize {
        let mut sum = 0u32;
        while time > 0 {
            sum = sum.wrapping_add(self.tree[time]);
            time &= time - 1;
        }
        sum as usize
    }

    /// Adds 1, or takes it away by adding all ones.
    fn add(&mut self, mut time: usize, value: u32) {
        while time < self.tree.len() {
            self.tree[time] = self.tree[time].wrapping_add(value);
            time += time & time.wrapping_neg();
        }
    }

    fn renumber(&mut self) {
        let mut pages = vec![None];
        pages.extend(self.pages.drain(..).filter(Option::is_some));
        let count = pages.len() - 1;
        let end = (count * 2).max(TIMES) + 1;
        for (time, page) in pages.iter().enumerate() {
            if let Some(page) = page {
                self.last.insert(*page, time);
            }
        }
        pages.resize(end, None);
        // Each has the sum of as many times up to its own as its lowest bit says.
        let until = |time: usize| time.min(count) as u32;
        self.tree = (0..end).map(|time| until(time) - until(time & time.wrapping_sub(1))).collect();
        (self.pages, self.now, self.none_until) = (pages, count, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn distances_are_those_of_a_list(pages in proptest::collection::vec(0u16..300, 1..4000)) {
            let mut stack = Stack::default();
            let mut list: Vec<u16> = Vec::new();
            for page in pages {
                let expected = list.iter().position(|&other| other == page);
                if let Some(at) = expected {
                    list.remove(at);
                }
                list.insert(0, page);
                prop_assert_eq!(stack.reference(page), expected.map(|at| at as u64));
                prop_assert_eq!(stack.len(), list.len());
            }
            stack.keep_latest(100);
            list.truncate(100);
            prop_assert_eq!(stack.len(), list.len());
            for (at, page) in list.into_iter().enumerate().rev() {
                prop_assert_eq!(stack.clone().remove(page), Some(at as u64));
            }
        }
    }

    #[test]
    fn what_was_removed_is_new_again() {
        let mut stack = Stack::default();
        (0..5).for_each(|page| assert_eq!(stack.reference(page), None));
        assert_eq!((stack.remove(1), stack.remove(1)), (Some(3), None));
        assert_eq!(stack.reference(0), Some(3));
        assert_eq!(stack.reference(1), None);
    }
}
