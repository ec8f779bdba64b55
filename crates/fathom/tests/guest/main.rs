//! Real guests, end to end: Debian's kernels from the kit, booted by the program as a user runs it.
//!
//! A boot is dear, so each test does much with one. What ends a wait is what the guest says, never the
//! time: machines differ.

#[path = "../sandbox/mod.rs"]
mod sandbox;

mod console;
mod control;
mod disk;
mod ends;
mod full_kernel;
mod kit;
mod memory;
mod process;
mod processor;
mod vm;
