//! Who gets which memory of a host that has promised more than it has.
//!
//! ```text
//!   Facts of host and VMs --> decide --> Verdict: a target for each VM, what is taken by which means, and why
//!   Settings -----------------^   ^---- the state of before: it has hysteresis
//! ```
//!
//! Pure: no clock, no I/O, no memory of its own. The same facts give the same verdict, so a verdict that was logged with
//! its facts can be replayed, and what holds for all facts is a property that tests check: targets never exceed the host's
//! memory, a reservation is never broken, more shares never mean less memory, and facts that do not change lead to
//! verdicts that do not change.
//!
//! The mechanisms are those of C. Waldspurger, "Memory Resource Management in VMware ESX Server" (OSDI 2002): shares,
//! reservations, the idle-memory tax (section 5), four states of the host's memory (section 6.3). Where miss-ratio curves
//! are known, targets follow those (Zhou and others, ASPLOS 2004), and the published ones are told beside them.
//!
//! It is *not* what acts (that is the host's daemon), nor what finds out (`insight`, in each VM's process).
//!
//! ```
//! use policy::{Balloon, Facts, HostFacts, Settings, VmFacts, decide};
//!
//! let mib = |n: u64| n << 20;
//! let vm = |name: &str, active| VmFacts {
//!     name: name.into(),
//!     memory: mib(256),
//!     limit: mib(256),
//!     resident: mib(256),
//!     active: mib(active),
//!     balloon: Balloon { works: true, ..Balloon::default() },
//!     ..VmFacts::default()
//! };
//! let host = HostFacts { limit: mib(360), free: mib(4), ..HostFacts::default() };
//! let facts = Facts { host, vms: vec![vm("busy", 250), vm("idle", 20)] };
//! let verdict = decide(&facts, &Settings::default()).expect("facts that can be");
//! assert!(verdict.vms[0].target > verdict.vms[1].target);
//! ```
#![forbid(unsafe_code)]

mod admission;
mod curve;
mod decide;
mod facts;
mod state;
mod targets;

pub use admission::{Admission, Promise, Refusal, admit};
pub use curve::{Curve, CurveError};
pub use decide::{Action, MARGIN, Reason, Verdict, VmVerdict, decide};
pub use facts::{Balloon, Facts, FactsError, HostFacts, Settings, VmFacts};
pub use state::{MemoryState, Thresholds};

/// Memory is given and taken in multiples of this: what a balloon holds, in bytes.
pub const GRAIN: u64 = 1 << 20;
