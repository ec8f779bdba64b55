//! The host processor as the judge of the interpreter: the same bytes on the same state run natively and
//! in `translator`, and everything that an instruction can change is compared.
//!
//! What it is *not*: part of the product. Only tests use it, and it must run on an x86-64 Linux host.
//!
//! ```text
//!   generate: Code -> bytes -> State -----> native::Host::run -----> Outcome --\
//!                                  \                                            compare
//!                                   `-----> interpret::run (FlatMachine) ------/
//! ```
//!
//! Memory is the same on both sides: a small arena at a fixed low address, with guard pages around the two
//! data pages, so that addresses, faults and page crossings are comparable.

pub mod arena;
pub mod block;
pub mod compare;
pub mod generate;
pub mod interpret;
pub mod native;
pub mod random;
pub mod rounds;
pub mod run;
pub mod state;
pub mod translated;

pub use native::Host;
pub use random::Random;
pub use state::{Outcome, State};
pub use translated::Translated;
