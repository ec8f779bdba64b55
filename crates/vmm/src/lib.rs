//! One virtual machine: configuration, plan, boot, run states, events.
#![forbid(unsafe_code)]

pub mod boot;
pub mod config;
