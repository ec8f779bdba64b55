//! x86-64 code as the engine sees it: bytes are decoded into blocks, and blocks are executed by an
//! interpreter that stays the oracle for every faster way of running them.
//!
//! What it is *not*: it knows x86 and not virtual machines. Memory, privileged instructions and devices
//! are behind [`Machine`]; the full-system engine implements it with a software MMU, process tools with
//! plain memory.
//!
//! ```text
//!   bytes --decode--> Insn { handler, operands } --collect--> Block --BlockCache--> Core::run_block
//!                        |                                                            |
//!                 integer: written out (interp/)                               Machine: load, store,
//!                 SSE, AVX, x87: a host thunk (vector/)                        privileged operations
//! ```
//!
//! Unsafe code is confined to `vector` and `native`, where generated host instructions run, and to `executable`, which
//! maps memory for them.
#![deny(unsafe_code)]

pub mod block;
mod cpu;
pub mod decode;
#[allow(unsafe_code, reason = "maps memory")]
mod executable;
mod insn;
pub mod interp;
mod machine;
pub mod native;
pub mod paths;
pub mod trips;
pub mod vector;

pub use block::{Block, BlockCache, Mode};
pub use cpu::{Cpu, FpuState, HIGH_BYTE, REG_NONE, REG_RIP, RSP, SEG_NONE, Width};
pub use insn::{Handler, Insn, InsnFlags};
pub use interp::{Core, Outcome};
pub use machine::{Machine, Stop, SystemOp, VectorKind, Word};
