//! Frames that have the contents of another one's block, by a copy that the kernel made of a whole page.
//!
//! It copies a page when a program writes to what it shares, and then the copy is the program's own; or when it moves the
//! page to another frame, to have free ones side by side, and then the copy is the page and the first frame is free.
//! Which of both shows when one of the two is used for something else: until then it is a pair.

use std::collections::{HashMap, VecDeque};

use memory::Frame;

/// Pairs at most, whatever the number of frames.
const MOST: usize = 1 << 16;

/// A frame that has what another one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) frame: Frame,
    /// What had happened to the other one, of [`super::tracker`]'s `since`.
    pub(super) like: u8,
}

/// No frame is in two pairs on the same side.
#[derive(Debug)]
pub(super) struct Copies {
    most: usize,
    originals: HashMap<Frame, Frame>,
    copies: HashMap<Frame, Copy>,
    /// Copies, the oldest first; some are none any more.
    order: VecDeque<Frame>,
}

impl Copies {
    /// Of a guest with so many frames.
    pub(super) fn new(frames: usize) -> Self {
        Self {
            most: (frames / 8).clamp(1, MOST),
            originals: HashMap::new(),
            copies: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// `copy` is one of `original`, to which `like` had happened; what either was before on that side is forgotten.
    pub(super) fn add(&mut self, original: Frame, copy: Frame, like: u8) {
        self.forget(copy);
        if let Some(before) = self.copy(original) {
            self.forget(before.frame);
        }
        if self.order.len() >= self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.forget(oldest);
        }
        self.order.push_back(copy);
        self.originals.insert(copy, original);
        self.copies.insert(original, Copy { frame: copy, like });
    }

    /// What `copy` was copied from.
    pub(super) fn original(&self, copy: Frame) -> Option<Frame> {
        self.originals.get(&copy).copied()
    }

    /// Where `original` was copied to.
    pub(super) fn copy(&self, original: Frame) -> Option<Copy> {
        self.copies.get(&original).copied()
    }

    /// `copy` is none.
    pub(super) fn forget(&mut self, copy: Frame) {
        if let Some(original) = self.originals.remove(&copy) {
            self.copies.remove(&original);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn copy(frame: Frame, like: u8) -> Option<Copy> {
        Some(Copy { frame, like })
    }

    #[test]
    fn a_frame_is_in_one_pair_on_each_side() {
        let [a, b, c] = [1, 2, 3].map(Frame);
        let mut copies = Copies::new(1000);
        copies.add(a, b, 1);
        copies.add(b, c, 2);
        assert_eq!((copies.copy(a), copies.copy(b)), (copy(b, 1), copy(c, 2)));
        assert_eq!((copies.original(b), copies.original(c)), (Some(a), Some(b)));
        copies.add(a, c, 3);
        assert_eq!((copies.original(b), copies.copy(b)), (None, None));
        assert_eq!((copies.original(c), copies.copy(a)), (Some(a), copy(c, 3)));
        copies.forget(c);
        copies.forget(c);
        assert_eq!((copies.copy(a), copies.original(c)), (None, None));
    }

    #[test]
    fn there_are_not_too_many() {
        let mut copies = Copies::new(80);
        (0..1000).for_each(|n| copies.add(Frame(n), Frame(n + 5000), 0));
        (0..1000).for_each(|_| copies.add(Frame(1), Frame(2), 0));
        assert!(copies.order.len() <= 10);
        assert!(copies.copies.len() <= 10 && copies.originals.len() <= 10);
        assert_eq!(copies.copy(Frame(1)), copy(Frame(2), 0));
    }
}
