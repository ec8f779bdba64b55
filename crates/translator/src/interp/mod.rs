//! The interpreter: executes blocks one instruction after the other, obviously right.

mod core;

pub use core::{Core, Outcome};
