//! A path as it runs, block by block.

use super::{Limits, Path};

/// What ran since the head, while it is still one path.
#[derive(Debug)]
pub struct Recorder {
    /// Physical page.
    page: u64,
    path: Path,
    left: Limits,
    /// Offset behind the last block.
    behind: u32,
}

impl Recorder {
    /// Begins with a block of `len` bytes and `instructions` instructions at physical address `start`.
    #[must_use]
    pub fn new(start: u64, len: u32, instructions: usize, limits: Limits) -> Self {
        let offset = (start & 0xfff) as u32;
        let mut left = limits;
        left.instructions = left.instructions.saturating_sub(instructions);
        Self { page: start >> 12, path: Path::run(offset, len), left, behind: offset + len }
    }

    /// Physical address of the head.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.page << 12 | u64::from(self.path.head())
    }

    /// The next block runs. Whether it is on the path; else the path is complete. A backward branch ends it.
    pub fn add(&mut self, start: u64, len: u32, instructions: usize) -> bool {
        let offset = (start & 0xfff) as u32;
        let through = offset == self.behind;
        let fits = self.left.instructions >= instructions && self.left.branches > 0;
        let taken = !through && (self.left.jumps == 0 || offset < self.behind);
        let end = offset + len;
        let met = self.path.fragments.iter().any(|fragment| fragment.overlaps(offset, end));
        if start >> 12 != self.page || !fits || taken || met {
            return false;
        }
        self.left.instructions -= instructions;
        self.left.branches -= 1;
        self.left.jumps -= usize::from(!through);
        self.behind = end;
        self.path.push(offset, len);
        true
    }

    /// What ran.
    #[must_use]
    pub fn finish(self) -> Path {
        self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::{Fragment, Policy};

    #[test]
    fn what_runs_next_is_the_path() {
        let mut recorder = Recorder::new(0x5010, 4, 2, Policy::NET.limits);
        assert!(recorder.add(0x5014, 6, 2) && recorder.add(0x5040, 2, 1));
        assert!(!recorder.add(0x5010, 4, 2), "backward");
        assert!(!recorder.add(0x6042, 4, 2), "another page");
        assert_eq!(recorder.head(), 0x5010);
        let fragments = recorder.finish().fragments;
        let expected = [(0x10, 10), (0x40, 2)].map(|(offset, len)| Fragment { offset, len });
        assert_eq!(fragments, expected);
    }

    #[test]
    fn it_ends_at_its_limits() {
        let limits = Limits { instructions: 4, ..Policy::NET.limits };
        let mut recorder = Recorder::new(0x5000, 4, 2, limits);
        assert!(recorder.add(0x5004, 4, 2) && !recorder.add(0x5008, 4, 1));
    }
}
