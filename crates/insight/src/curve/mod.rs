//! Miss-ratio curves: which part of all references would miss in a memory of each size, under LRU.
//!
//! A reference at *stack distance* d, that many other pages having been referenced since the last time, hits in a memory
//! of more than d pages and misses in a smaller one (Mattson, Gecsei, Slutz and Traiger, 1970).
//!
//! ```text
//!   every reference known            one in many                       what was evicted, and is read again
//!   Stack: exact distances           Shards: distances of a sample     Ghosts: distances beyond the memory that there is
//!                  \                        |                         /
//!                   +-------------> DistanceHistogram <--------------+
//!                                           |
//!                                    MissRatioCurve, and splice: one of two
//! ```

mod ghosts;
mod histogram;
mod shards;
mod splice;
mod stack;

pub use ghosts::Ghosts;
pub use histogram::{DistanceHistogram, MissRatioCurve};
pub use shards::Shards;
pub use splice::splice;
pub use stack::Stack;
