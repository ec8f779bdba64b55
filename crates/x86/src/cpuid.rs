//! CPUID as a table: what a guest is shown (SDM volume 2, CPUID).

use serde::{Deserialize, Serialize};

/// One leaf and sub-leaf with its four registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct Leaf {
    pub function: u32,
    /// Compared only where `indexed`.
    pub index: u32,
    /// Whether the leaf has sub-leaves.
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The whole table of one vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// In any order; at most one entry matches a query.
    pub leaves: Vec<Leaf>,
}

impl Table {
    /// The answer to CPUID with EAX = `function`, ECX = `index`; `None` where the table has no such leaf.
    #[must_use]
    pub fn find(&self, function: u32, index: u32) -> Option<&Leaf> {
        self.leaves
            .iter()
            .find(|leaf| leaf.function == function && (!leaf.indexed || leaf.index == index))
    }
}
