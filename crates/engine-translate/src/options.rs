//! How guests are run.

use translator::native;
use translator::paths::Policy;

/// How the VMs of a [`TranslateEngine`](crate::TranslateEngine) are run. The guest sees no difference but time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Blocks that run often become host code; else everything is interpreted.
    pub translate: bool,
    /// A block is translated when it runs for the time that has this number, from 1: most of what boots runs a few
    /// times only.
    pub hot: u32,
    /// What is translated before it has run often.
    pub predict: Predict,
    /// Bytes of code, stubs and bookkeeping, at most, [`Options::CODE_MIN`] to [`Options::CODE_MAX`]; what is not used
    /// takes no memory. When they are used up all code goes.
    pub code_bytes: usize,
    /// How blocks are translated.
    pub native: native::Options,
    /// Every path that has code is executed by the interpreter, too, and the VM ends where they differ. One vCPU;
    /// nothing leads from path to path.
    pub verify: bool,
    /// Which of them together; its count is not used, but `hot`.
    pub paths: Policy,
    /// What is printed on standard error of code: the guest's instructions, each followed by the host's.
    pub dump: Option<Dump>,
}

/// Of which code there is a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dump {
    /// What has a byte at this physical address, when it is translated.
    At(u64),
    /// So many pieces of code in which the vCPUs were most often when they were looked for, at the VM's end.
    Hot(usize),
}

impl Dump {
    pub(crate) fn address(self) -> Option<u64> {
        match self {
            Self::At(address) => Some(address),
            Self::Hot(_) => None,
        }
    }

    pub(crate) fn hot(self) -> Option<usize> {
        match self {
            Self::Hot(count) => Some(count),
            Self::At(_) => None,
        }
    }
}

/// What is translated before it has run often, since it is going to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Predict {
    /// Nothing.
    Nothing,
    /// What programs (privilege level 3) run again soon after its first time.
    #[default]
    Programs,
    /// What anybody does; and the last block of a loop counts as run by as many trips as the loop has ahead, where
    /// that can be told, with it what ran in the trip before.
    Everything,
}

impl Options {
    /// Holds the ways in and out, and any one block.
    pub const CODE_MIN: usize = 16 << 10;
    /// Code and stubs have room for half of it, more than they need beside their bookkeeping.
    pub const CODE_MAX: usize = 128 << 20;

    /// The policy of paths, with the count that was asked for.
    pub(crate) fn policy(&self) -> Policy {
        self.paths.with_hot(self.hot)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            translate: true,
            hot: Policy::default().hot(),
            predict: Predict::default(),
            code_bytes: Self::CODE_MAX,
            native: native::Options::default(),
            paths: Policy::default(),
            verify: false,
            dump: None,
        }
    }
}
