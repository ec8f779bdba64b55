//! What each frame of a guest is for, seen from outside.
//!
//! ```text
//!   vCPUs: roots of page tables ------> Spaces ---> Walker: who maps which frame, and which frames are tables
//!   vCPUs: who wrote by which translation ----+         |
//!   devices: rings ---------------------------+--> Classifier: a mark, a date and an evidence for each frame
//!   frame table: state, epochs ---------------+         |
//!   CacheTracker: blocks of disks ------------+         +--> class(frame), summary(), processes(), fingerprints()
//! ```
//!
//! Nothing in the guest helps: page tables are the processor's own form, all else was seen by the machine. The idea is
//! that of SELF-e (BigComp 2019) and of Antfarm (Jones, Arpaci-Dusseau and Arpaci-Dusseau, USENIX 2006): address
//! spaces are processes. Linux maps all memory for itself, so that a mapping of the kernel's proves nothing unless
//! it is code; who *wrote* to a frame, and by which translation, does.
//!
//! Work is bounded: a [`Classifier::sweep`] reads so many page tables, visits so many frames and looks into so many,
//! and goes on where it was the next time. A frame that is called free was reported free by the guest, or is in the
//! kernel's own lists of free frames, where these can be read: one that only looks so keeps its class, with
//! [`Evidence::Vacated`]. [`Classifier::inferred`] is what the kernel has no word in.

mod classifier;
mod fingerprints;
mod free_lists;
mod marks;
mod search;
mod spaces;
mod summary;
#[cfg(test)]
mod tests;
pub mod truth;
mod walker;

pub use classifier::Classifier;
pub use fingerprints::Fingerprint;
pub use spaces::ProcessSeen;
pub use summary::{ClassSummary, ClassUse};

use memory::{Epoch, FrameFacts, FrameState};
use serde::{Deserialize, Serialize};

/// What a frame is for. Classes are a partition: every frame is of exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FrameClass {
    /// Contents of a disk.
    FileCache,
    /// A program's own, or what programs share by a file in memory.
    Anonymous,
    /// A table of an address space.
    PageTable,
    /// The kernel's code.
    KernelText,
    /// The kernel's other memory, and what is not known to be anything else.
    Kernel,
    /// A ring that a device and the guest speak by.
    DmaRing,
    /// Nothing but zeros, and nobody's that is known.
    Zero,
    /// In use, and it is not known for what: frames were not classified.
    Unknown,
    /// Its contents are elsewhere and come when they are wanted.
    Absent,
    /// In the balloon.
    Ballooned,
    /// The guest has it and does not use it.
    Free,
    /// Never used since the machine was started.
    Untouched,
}

impl FrameClass {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::FileCache,
        Self::Anonymous,
        Self::PageTable,
        Self::KernelText,
        Self::Kernel,
        Self::DmaRing,
        Self::Zero,
        Self::Unknown,
        Self::Absent,
        Self::Ballooned,
        Self::Free,
        Self::Untouched,
    ];

    /// The name that it has in JSON and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FileCache => "file_cache",
            Self::Anonymous => "anonymous",
            Self::PageTable => "page_table",
            Self::KernelText => "kernel_text",
            Self::Kernel => "kernel",
            Self::DmaRing => "dma_ring",
            Self::Zero => "zero",
            Self::Unknown => "unknown",
            Self::Absent => "absent",
            Self::Ballooned => "ballooned",
            Self::Free => "free",
            Self::Untouched => "untouched",
        }
    }

    /// What the frame table alone says; `None`: the guest uses it, or has used it.
    #[must_use]
    pub fn by_state(facts: &FrameFacts) -> Option<Self> {
        match facts.state {
            // A discard is a change of its contents.
            FrameState::Untouched if facts.written != Epoch::NEVER => Some(Self::Free),
            FrameState::Untouched => Some(Self::Untouched),
            FrameState::Ballooned => Some(Self::Ballooned),
            FrameState::Absent(_) => Some(Self::Absent),
            FrameState::Resident => None,
        }
    }
}

/// Why a frame is thought to be of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Evidence {
    /// The frame table says so.
    Host,
    /// The guest has said so, by its balloon.
    Reported,
    /// It is in the kernel's lists of free frames.
    Listed,
    /// A virtqueue lies there.
    Device,
    /// Met on a walk through the tables of an address space.
    Walked,
    /// A program maps it.
    Mapped,
    /// Programs with different page tables map it for writing.
    MappedByMany,
    /// It has a disk's block.
    Located,
    /// It has a block of a swap area.
    Swapped,
    /// The kernel may run code there and not write.
    Executable,
    /// It was looked into.
    Contents,
    /// A program was the last to write there; no page table that is known leads there any more.
    Vacated,
    /// A program's translation has led there, and the kernel has not written there by itself since.
    Used,
    /// The kernel has written there last.
    KernelWrote,
    /// Nothing else fits.
    Rest,
}

impl Evidence {
    /// In a few words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Host => "the host has, or has not, a page for it",
            Self::Reported => "the guest reported it",
            Self::Listed => "the guest's kernel has it in its lists of free memory",
            Self::Device => "a device's queue is there",
            Self::Walked => "page tables lead through it",
            Self::Mapped => "a program maps it",
            Self::MappedByMany => "several programs map it for writing",
            Self::Located => "a disk has the same contents",
            Self::Swapped => "a swap area has the same contents",
            Self::Executable => "the kernel may run it and not write it",
            Self::Contents => "it holds nothing but zeros",
            Self::Vacated => "a program had it, and is gone or has let go of it",
            Self::Used => "a program used it after the kernel had written there",
            Self::KernelWrote => "the kernel wrote there last",
            Self::Rest => "nothing else fits",
        }
    }
}
