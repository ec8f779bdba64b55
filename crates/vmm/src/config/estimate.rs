//! Which estimators of the working set run, for experiments.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where what they find is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EstimateLogConfig {
    /// A line of JSON each second.
    pub path: PathBuf,
    /// Which.
    pub methods: EstimateMethods,
    /// Every access, at the price of a much slower guest.
    pub accesses: Option<PathBuf>,
}

/// Which estimators; the census is always among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EstimateMethods {
    /// Nothing else.
    Census,
    /// Frames at random.
    Sampling,
    /// Each few seconds.
    Scan,
    /// First accesses in their order.
    Order,
    /// The miss-ratio curve.
    Curve,
    /// All but the order.
    #[default]
    Default,
    /// Everything.
    All,
}
