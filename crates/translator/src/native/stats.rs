//! What generated code was made, and how often it was left. Nothing is counted by generated code itself.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// Code made so far, also what has gone since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CodeStats {
    /// Paths translated.
    pub blocks: u64,
    /// Runs of bytes in them.
    pub fragments: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Bytes of guest code in them.
    pub guest_bytes: u64,
    /// Bytes of host code in line: what runs when nothing is rare.
    pub code_bytes: u64,
    /// Bytes of host code behind the blocks, for what is rare.
    pub stub_bytes: u64,
    /// Bytes kept for the paths that have code now, beside the code and what [`crate::BlockCache`] keeps.
    pub bookkeeping_bytes: u64,
    /// Bytes of memory that code and stubs have taken at most at a time.
    pub held_bytes: u64,
    /// Bytes that code, stubs and all bookkeeping have taken at most at a time.
    pub peak_bytes: u64,
    /// Branches that were led from one block to another.
    pub links: u64,
    /// Times that all code went because the memory was full.
    pub evictions: u64,
}

/// How often one core's generated code called out or came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Called out for an access that the table of translations did not answer.
    pub accesses: u64,
    /// Called out for an instruction that is always executed outside.
    pub instructions: u64,
    /// Entered from outside.
    pub entered: u64,
    /// Came out at a branch that was not linked.
    pub unlinked: u64,
    /// Came out at a guard that did not hold, or an indirect branch to where nothing was known.
    pub guard_misses: u64,
    /// Came out because the core was wanted.
    pub polls: u64,
    /// Came out after an instruction that the block cannot go on behind.
    pub ended: u64,
    /// Came out with a fault.
    pub faults: u64,
    /// Came out to execute the instruction again later.
    pub retries: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.accesses += other.accesses;
        self.instructions += other.instructions;
        self.entered += other.entered;
        self.unlinked += other.unlinked;
        self.guard_misses += other.guard_misses;
        self.polls += other.polls;
        self.ended += other.ended;
        self.faults += other.faults;
        self.retries += other.retries;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Self::add)
    }
}
