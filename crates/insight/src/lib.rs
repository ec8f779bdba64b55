//! Facts about a guest's memory that the guest does not tell.
//!
//! Reads the frame table (`memory`), never writes guest memory, decides nothing, and has no clock:
//! the caller says how much time passed, so everything here can be tested by replay.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use insight::WorkingSetTracker;
//! use memory::{Access, Frame, GuestMemory};
//!
//! let memory = Arc::new(GuestMemory::with_bytes(1 << 20)?);
//! let mut tracker = WorkingSetTracker::new(Arc::clone(&memory), Duration::from_secs(1));
//! memory.resolve(Frame(3), Access::Read)?;
//! let sample = tracker.tick(Duration::from_secs(1));
//! assert_eq!(sample.working_set_1s_bytes, 4096);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub use cache::{CacheChange, CacheCounts, CacheEvent, CacheTracker, Contents, beginnings};
pub use classes::{ClassSummary, Classifier, Evidence, Fingerprint, FrameClass, ProcessSeen};
pub use cold::{ColdFrame, coldest};
pub use curve::{DistanceHistogram, Ghosts, MissRatioCurve, Shards, Stack, splice};
pub use estimate::{Demand, DemandFacts, DemandReason, Estimate, Estimator, EstimatorSet, demand};
pub use working_set::{WorkingSetSample, WorkingSetTracker};

mod cache;
pub mod classes;
mod cold;
mod curve;
pub mod estimate;
pub mod kernel;
mod mix;
pub mod picture;
mod working_set;
