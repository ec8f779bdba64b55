//! The device as it is saved.

use serde::{Deserialize, Serialize};

/// Nothing: each request stands alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}
