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
//! and goes on where it was the next time. A frame that is called free was reported free by the guest: one that only
//! looks so keeps its class, with [`Evidence::Vacated`].

mod classifier;
mod fingerprints;
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
pub use summary::{AGES, ClassSummary, ClassUse};

use serde::Serialize;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FrameClass {
    /// A table of an address space.
    PageTable,
    /// Contents of a disk.
    FileCache,
    /// A program's own, or what programs share by a file in memory.
    Anonymous,
    /// The kernel's code.
    KernelText,
    /// The kernel's other memory, and what is not known to be anything else.
    Kernel,
    /// A ring that a device and the guest speak by.
    DmaRing,
    /// Reported free by the guest, and not used since.
    Free,
    /// Nothing but zeros, and nobody's that is known.
    Zero,
    /// In the balloon.
    Ballooned,
    /// Never touched.
    Untouched,
}

impl FrameClass {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::PageTable,
        Self::FileCache,
        Self::Anonymous,
        Self::KernelText,
        Self::Kernel,
        Self::DmaRing,
        Self::Free,
        Self::Zero,
        Self::Ballooned,
        Self::Untouched,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PageTable => "page_table",
            Self::FileCache => "file_cache",
            Self::Anonymous => "anonymous",
            Self::KernelText => "kernel_text",
            Self::Kernel => "kernel",
            Self::DmaRing => "dma_ring",
            Self::Free => "free",
            Self::Zero => "zero",
            Self::Ballooned => "ballooned",
            Self::Untouched => "untouched",
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
