//! SSE, AVX, MMX and x87: the host's own instruction, run from a generated thunk on loaded and stored
//! state. There is no second implementation of arithmetic, hence nothing to get wrong in it.
//!
//! ```text
//!   Instruction --encoding--> 8 canonical bytes (memory operand replaced) --plan--> what to load and store
//!                                   |
//!                                 emit: load the registers used, the instruction, store the registers
//!                                   |                                                     written
//!                                 arena: bounded, written through one mapping, run through another
//! ```
//!
//! Generated code executes many of them itself: `direct` says which.
//!
//! A handler (`handlers`) asks the gate (#UD, #NM), brings a memory operand into a buffer, calls the
//! thunk, and stores the buffer. Written out because a thunk cannot do them: saving and restoring state
//! (`save`), masked moves and gathers, which touch memory element by element (`elements`), and what
//! moves MXCSR.
//!
//! FIP, FDP and FOP are kept zero: in a thunk they would hold addresses of this process.
#![allow(unsafe_code, reason = "generated host instructions run here")]

mod arena;
mod direct;
mod elements;
mod emit;
mod encoding;
mod features;
mod handlers;
pub(crate) mod image;
mod mxcsr;
mod plan;
mod save;
mod select;
mod x87;

#[cfg(test)]
mod tests;

pub use arena::{ArenaError, prepare};
pub(crate) use direct::{Direct, direct};
pub(crate) use encoding::replace_memory;
pub use features::{Features, host_features};
pub(crate) use select::select;
