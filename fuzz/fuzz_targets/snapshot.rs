//! Snapshots with any bytes in them: opened and read in all ways, they are errors and never panics. Contents that no
//! error comes with are those that were saved, unless the input made the checksums fit.
//!
//! What the input means: crates/snapshot/tests/support/hostile.rs.
#![no_main]

#[path = "../../crates/snapshot/tests/support/hostile.rs"]
mod hostile;
#[path = "../../crates/snapshot/tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Whether it is an error is not the question here.
    let _ = hostile::run(input);
});
