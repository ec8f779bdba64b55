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
    /// The last block of a loop counts as run by as many trips as the loop has ahead, where that can be told; with
    /// it what ran in the trip before.
    pub predict: bool,
    /// Bytes of code, at most, [`Options::CODE_MIN`] to [`Options::CODE_MAX`]; what is not used takes no memory.
    /// When they are used up all code goes.
    pub code_bytes: usize,
    /// How blocks are translated.
    pub native: native::Options,
    /// Every block that has code is executed by the interpreter, too, and the VM ends where they differ. One vCPU;
    /// nothing leads from block to block.
    pub verify: bool,
    /// Which of them together; its count is not used, but `hot`.
    pub paths: Policy,
    /// Print blocks with a byte at this physical address on standard error when they are translated: the guest's
    /// instructions, each followed by the host's.
    pub dump: Option<u64>,
}

impl Options {
    /// Holds the ways in and out, and any one block.
    pub const CODE_MIN: usize = 16 << 10;
    /// As much as is reserved.
    pub const CODE_MAX: usize = 64 << 20;

    /// The policy of paths, with the count that was asked for. Blocks are compared, not paths.
    pub(crate) fn policy(&self) -> Policy {
        let paths = if self.verify { Policy::BLOCKS } else { self.paths };
        paths.with_hot(self.hot)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            translate: true,
            hot: Policy::default().hot(),
            predict: false,
            code_bytes: Self::CODE_MAX,
            native: native::Options::default(),
            paths: Policy::default(),
            verify: false,
            dump: None,
        }
    }
}
