//! How much memory a guest uses, by several methods that can run at once.
//!
//! ```text
//!   census      every frame, each epoch                         frame table
//!   sampling    some frames at random, three moving averages    frame table     (Waldspurger, OSDI 2002, section 5.3)
//!   scan        every frame, each longer interval, with ages    frame table     (idle page tracking, kstaled)
//!   order       first accesses of an epoch, in their order      accesses told one by one
//!   curve       stack distances of a sample of frames           accesses told one by one, in short intervals
//! ```
//!
//! The guest's own accessed bits are the guest's: for all methods the frame table's epochs, or accesses that the engine
//! tells ([`memory::Tracer`]), stand for them. On KVM accesses are not told one by one: `order` and `curve` have
//! nothing to say there.
//!
//! [`EstimatorSet`] ends epochs for all of them. Nothing here has a clock.

mod access_curve;
mod access_order;
mod census;
mod demand;
mod sampling;
mod scan;
mod set;

use std::time::Duration;

use serde::Serialize;

pub use access_curve::{AccessCurve, AccessCurveConfig};
pub use access_order::AccessOrder;
pub use census::Census;
pub use demand::{Demand, DemandFacts, DemandReason, TOLERABLE_MISSES, demand};
pub use sampling::{Sampling, SamplingConfig};
pub use scan::{IdleAges, Scan};
pub use set::{EstimatorSet, EstimatorSetConfig};

/// One method.
pub trait Estimator {
    /// What it is called, in one word.
    fn name(&self) -> &'static str;

    /// A short interval is over.
    fn interval(&mut self, elapsed: Duration) {
        let _ = elapsed;
    }

    /// An epoch is about to end: what the frame table says of it can be looked at.
    fn look(&mut self) {}

    /// An epoch has ended, which lasted `elapsed`, and the next has begun.
    fn tick(&mut self, elapsed: Duration);

    /// What it knows by now.
    fn estimate(&self) -> Option<Estimate>;
}

/// How much memory is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// So much.
    pub bytes: u64,
    /// One standard deviation of that, where the method is a sample's.
    pub error_bytes: Option<u64>,
}

impl Estimate {
    /// Of every frame.
    fn exact(bytes: u64) -> Self {
        Self { bytes, error_bytes: None }
    }
}
