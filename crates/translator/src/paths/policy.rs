//! By which rules paths are chosen.

/// All rules together. None is anywhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What it is called.
    pub name: &'static str,
    /// Where paths start.
    pub start: Start,
    /// The count to which that of [`Start::Any`] rises, at most, while memory is so short that code goes before it
    /// has paid.
    pub scarce: u32,
    /// Which way they take.
    pub follow: Follow,
    /// Where they end at the latest.
    pub limits: Limits,
    /// When exits are led to other paths.
    pub links: Links,
    /// What stands behind a path for what is rare.
    pub stubs: Stubs,
    /// Instructions behind an exit that are looked at for flags that they overwrite.
    pub look_ahead: usize,
}

/// Where paths start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At whatever runs for the time that has this number, from 1.
    Any(u32),
    /// At targets of backward branches and of exits from paths that run for the time that has this number. With
    /// `blocks` everything has code of its own from the first time on, block by block; else it is interpreted.
    Heads {
        /// From 1.
        count: u32,
        /// See above.
        blocks: bool,
    },
}

/// Which way paths take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// They end with the first branch.
    Nothing,
    /// Over conditional branches, as if these were not taken.
    Through,
    /// The direction in which more was counted.
    Likely,
    /// What runs next when the head is hot.
    Recorded,
}

/// Where paths end at the latest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Instructions.
    pub instructions: usize,
    /// Conditional branches on the way, beside one that ends it.
    pub branches: usize,
    /// Jumps that are followed.
    pub jumps: usize,
    /// Calls that are followed.
    pub calls: usize,
    /// A path ends where another begins.
    pub at_heads: bool,
}

/// When exits are led to other paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    /// When they have been taken.
    Lazy,
    /// As soon as both sides exist, within a page; for that exits to what does not exist yet are kept.
    Proactive,
}

/// What stands behind a path for what is rare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stubs {
    /// What stubs have in common stands once, for all paths: each has but what makes it its own.
    Shared,
    /// Each is complete.
    Each,
}

impl Policy {
    /// Each block for itself.
    pub const BLOCKS: Self = Self {
        name: "blocks",
        start: Start::Any(4),
        scarce: 0,
        follow: Follow::Nothing,
        limits: Limits { instructions: 64, branches: 0, jumps: 0, calls: 0, at_heads: false },
        links: Links::Lazy,
        stubs: Stubs::Each,
        look_ahead: 0,
    };

    /// The next-executing tail of Dynamo (Bala, Duesterwald and Banerjia, PLDI 2000): heads are counted while
    /// everything is interpreted, and what runs behind a hot one is the path.
    pub const NET: Self = Self {
        name: "net",
        start: Start::Heads { count: 50, blocks: false },
        follow: Follow::Recorded,
        limits: Limits { instructions: 256, branches: 64, jumps: 16, calls: 16, at_heads: true },
        ..Self::BLOCKS
    };

    /// DynamoRIO by default: a cache of blocks, and the next-executing tails of heads that ran 50 times.
    pub const DYNAMORIO: Self = Self {
        name: "dynamorio",
        start: Start::Heads { count: 50, blocks: true },
        follow: Follow::Recorded,
        limits: Limits { instructions: 1024, branches: 64, jumps: 16, calls: 16, at_heads: true },
        ..Self::BLOCKS
    };

    /// Pin: everything is translated when it runs for the first time, up to an unconditional branch.
    pub const PIN: Self = Self {
        name: "pin",
        start: Start::Any(1),
        scarce: 0,
        follow: Follow::Through,
        limits: Limits { instructions: 128, branches: 8, jumps: 0, calls: 0, at_heads: false },
        links: Links::Proactive,
        stubs: Stubs::Each,
        look_ahead: 0,
    };

    /// Ours: what was counted while it was interpreted tells where it goes.
    pub const FATHOM: Self = Self {
        name: "fathom",
        start: Start::Any(8),
        scarce: 128,
        follow: Follow::Likely,
        limits: Limits { instructions: 64, branches: 6, jumps: 4, calls: 0, at_heads: true },
        links: Links::Lazy,
        stubs: Stubs::Shared,
        look_ahead: 8,
    };

    /// All that have a name.
    pub const NAMED: [Self; 5] =
        [Self::BLOCKS, Self::NET, Self::DYNAMORIO, Self::PIN, Self::FATHOM];

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.into_iter().find(|policy| policy.name == name)
    }

    /// The count at which something gets code.
    #[must_use]
    pub fn hot(&self) -> u32 {
        match self.start {
            Start::Any(count) | Start::Heads { count, .. } => count,
        }
    }

    /// The same with another count.
    #[must_use]
    pub fn with_hot(mut self, hot: u32) -> Self {
        match &mut self.start {
            Start::Any(count) | Start::Heads { count, .. } => *count = hot,
        }
        self
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::FATHOM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_found_by_name() {
        for policy in Policy::NAMED {
            assert_eq!(Policy::named(policy.name), Some(policy));
            assert_eq!(policy.with_hot(7).hot(), 7);
        }
        assert_eq!(Policy::named("none"), None);
    }
}
