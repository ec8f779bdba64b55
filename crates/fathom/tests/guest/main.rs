//! Real guests, end to end: Debian's kernels from the kit, booted by the program as a user runs it.
//!
//! A boot is dear, so each test does much with one. What ends a wait is what the guest says, never the
//! time: machines differ.
//!
//! The environment says what is tested where there is no cargo, or a slow machine:
//!
//! ```text
//! FATHOM_ENGINE    kvm or translate (default): the engine of every guest here
//! FATHOM_KIT       folder of the guest kit, instead of .kit in the workspace
//! FATHOM_BIN       the program, instead of the one that cargo has built
//! FATHOM_PATIENCE  by how much longer to wait than on an ordinary machine: a factor, such as 3
//! FATHOM_SOAK      full (default) or short: how often the ignored tests in `soak` do what they do
//! ```

#[path = "../s3/mod.rs"]
mod s3;
#[path = "../sandbox/mod.rs"]
mod sandbox;

mod agent;
mod balance;
mod classes;
mod clones;
mod confined;
mod console;
mod control;
mod debugger;
mod disk;
mod ends;
mod engine;
mod host_cache;
mod host_killed;
mod hostile;
mod insight;
mod jail;
mod kernel;
mod kit;
mod litmus;
mod many_saves;
mod memory;
mod net;
mod noise;
mod patching;
mod process;
mod processor;
mod reclaim;
mod reread;
mod saved;
mod share;
mod soak;
mod stores;
mod stress;
mod substrates;
mod translation;
mod untested;
mod vm;
mod vsock;
