//! Why the guest's kernel could not be understood.

use memory::{Gpa, ReadError};

/// The guest holds no kernel that can be read, or none that agrees with itself. Never Fathom's fault, and
/// never a reason to touch the guest: the next look may find it in order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No note of the kernel about itself in the guest's memory.
    #[error(
        "no Linux kernel found: none of {frames} frames begins with a VMCOREINFO note: the guest runs \
         no Linux, or has not booted yet"
    )]
    NoNote {
        /// Frames that were looked at.
        frames: u32,
    },
    /// Something looks like a note, but is none, or contradicts itself or the memory around it.
    #[error("the note at {at} is refused: {reason}")]
    Refused {
        /// The first one that was refused.
        at: Gpa,
        /// Why.
        reason: String,
    },
    /// A table of the kernel does not hold together.
    #[error("{table}: {reason}")]
    Malformed {
        /// Which table.
        table: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that the question needs is missing.
    #[error("{what} unknown: {why}")]
    Unknown {
        /// What is asked for.
        what: &'static str,
        /// What would tell it.
        why: String,
    },
    /// An address that should be mapped is not.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// A kernel address does not lead to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The kernel's page tables lead nowhere.
    #[error("kernel address {va:#x} is not mapped")]
    NotMapped {
        /// The address.
        va: u64,
    },
    /// They lead to where no memory is, or not now.
    #[error("kernel address {va:#x}: {error}")]
    NotReadable {
        /// The address.
        va: u64,
        /// What the memory said.
        error: ReadError,
    },
    /// It runs over the end of the address space.
    #[error("{len} bytes at kernel address {va:#x} run over the end of the address space")]
    Wraps {
        /// The first address.
        va: u64,
        /// How many bytes.
        len: usize,
    },
}

impl KernelError {
    pub(super) fn malformed(table: &'static str, reason: impl ToString) -> Self {
        Self::Malformed { table, reason: reason.to_string() }
    }
}
