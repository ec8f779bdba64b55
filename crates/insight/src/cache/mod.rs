//! The guest's page cache from outside: which disk block each frame holds, when one enters and leaves memory
//! (Geiger: Jones, Arpaci-Dusseau and Arpaci-Dusseau, ASPLOS 2006).
//!
//! A frame's *location* is the block whose contents it last had. A block is in the cache from the moment that it is read
//! into a frame, or first written from one, until the frame is used for something else, which is when its eviction
//! is seen: an eviction shows when the frame is taken again, not before, unless the kernel's own word can be had.
//!
//! ```text
//!   block read into the frame         another block than its location: that one was evicted
//!   frame written to a block          the same, unless the journal has it for a while
//!   changed by a vCPU, then           anonymous memory: a copy, or cleared
//!       in a user's writable mapping
//!   walked through                    a page table
//!   changed by the kernel, and full   the kernel's own
//!       of its pointers soon after
//!   given back to the host            free
//!   in the kernel's list of free      the same, where the kernel can be read; nothing else rests on that
//!       frames for a while
//!   another place's in a file, by     its block was evicted
//!       the kernel's word, and changed
//!   block read into another frame     its first copy had been evicted
//!   block discarded                   nobody wants it any more: what is dropped was not evicted
//! ```
//!
//! The kernel moves pages: it copies the whole of one to another frame, and then the first is free. It also copies what
//! a program writes to and others have, too, and then the copy is the program's. Both frames hold the block until one
//! of them is taken for something else.
//!
//! What goes to the journal has a descriptor before it that says where its home is, so that a block is known before it is
//! written there. A frame that takes part in transfers of different blocks in short order is a program's buffer.
//!
//! What a frame has when it goes may not be wanted any more: a deleted file's block, by ext4's bitmap or XFS's tree of
//! free space in the guest's own memory; a place in a swap area, once a program has changed what was read from it.
//!
//! Memory that a program may write, that nobody has changed and that has a block's contents all the same, is no cache:
//! it was read past the cache. A mapping of a frame that no vCPU has changed since its block was read is a file's, and evicts nothing.

mod blocks;
mod copies;
mod ext4;
mod journal;
mod leaving;
mod released;
mod suspects;
#[cfg(test)]
mod tests;
mod tracker;
mod volume;
mod xfs;

pub use volume::beginnings;

pub use tracker::{CacheChange, CacheCounts, CacheEvent, CacheTracker, Contents};
