//! Blocks as host code.

pub mod tables;
