//! The interpreter: executes blocks one instruction after the other, obviously right.
//!
//! Every handler obeys three rules. RIP already points to the next instruction. Registers and flags change
//! only after the last memory access has succeeded. An operand that is read and written is checked for
//! writing before it is read.
//!
//! Segment limits are not checked, nor that an operand wraps inside a 64 KiB segment: what runs outside
//! 64-bit mode here are flat 32-bit programs and start-up code.

pub(crate) mod arith;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod control;
mod core;
pub(crate) mod decimal;
pub(crate) mod exchange;
mod flags;
pub(crate) mod moves;
pub(crate) mod muldiv;
pub(crate) mod operand;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;

pub use core::{Core, Outcome};
