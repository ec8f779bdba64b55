//! Blocks as host code: what [`crate::interp`] does, many times faster.
//!
//! A block of 64-bit code becomes the same instructions on the host's registers; memory operands go through
//! a table of translations that is looked up in line; what is rare or privileged is executed by the
//! interpreter's handler, outside. Branches lead from block to block once they have been taken.
//!
//! What an operating system does all the time is in line where nothing else can come of it: `system`, `calls` and
//! `strings`.
//!
//! Vector and x87 instructions run as they are too, on the host's registers: `live` moves the guest's there
//! and back, `vector` and `groups` select and emit, `crossing` is for operands in two pages.
//!
//! Code is kept by physical page and does not know the linear address that it runs at: the page's is in a
//! field. A branch within a page therefore needs no check; one from another page, or through a register,
//! enters by the guard, which compares where its page leads to now with the frame that the code is of. A return that
//! meets the call that it belongs to needs none: `pairs`.
#![allow(unsafe_code, reason = "runs generated code")]

mod address;
mod again;
mod aside;
mod asm;
mod bits;
mod branch;
mod cache;
mod calls;
mod crossing;
mod fields;
mod flags;
mod flow;
mod groups;
mod known;
mod lane;
mod listing;
mod live;
mod memory;
mod operands;
mod options;
mod outside;
mod pairs;
mod plain;
mod proactive;
mod recode;
mod select;
mod slot;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod speed;
mod stack;
mod stats;
mod strings;
mod strips;
mod stub;
mod system;
pub mod tables;
mod thunks;
mod translate;
mod vector;

pub use cache::{CodeCache, Made, NotTranslated};
pub(crate) use cache::{MALLOC, NativeBlock};
pub use fields::Fields;
pub use known::{flags_defined, flags_needed, in_rflags};
pub use lane::{Calls, Lane, Left, Privilege, View};
pub use listing::Emitted;
pub use memory::prepare;
pub use options::Options;
pub use stats::{CodeStats, Counts};
