//! The daemon: VMs of one user on one host, started and started again as a directory of files says, and who of them has
//! which memory.
//!
//! ```text
//!   web.toml, db.toml ... --> Configuration ----+
//!                                                v          once a second
//!   VM processes <-- start -- Host -- ask each: VmStatus --> policy::decide --> balloons
//!        ^                      |                                    |
//!        +---- sockets ---------+                   board: what was decided and why, for `fathom balance`,
//!                                                   and a socket of its own: JSON, metrics, a page
//! ```
//!
//! It holds nothing that would be lost with it. A VM is a process of its own, found by its socket: a daemon that ends, by
//! whatever means, leaves its VMs running, and the next one finds them, as it finds those that somebody else started.
//!
//! It is *not* needed to run one VM, and it decides nothing itself: [`policy`] does.
#![forbid(unsafe_code)]

mod ask;
mod board;
mod config;
mod curves;
mod merge;
mod metrics;
mod pressure;
mod serve;
mod share;
mod swap;
mod vms;
mod window;

pub use ask::{ask_each, facts};
pub use board::{Board, BoardError};
pub use config::{ConfigError, Configuration, Memory, Restart, VmFile};
pub use curves::curves;
pub use pressure::Pressure;
pub use serve::{Host, HostError, HostOptions};
pub use share::SharedFrames;
pub use swap::{SwapOptions, make_store};
pub use vms::Launch;
pub use window::{HostStatus, VmState, why};
