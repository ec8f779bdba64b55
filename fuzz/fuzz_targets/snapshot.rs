//! Snapshots with any bytes in them: opened and read in all ways, they are errors and never panics. Contents that no
//! error comes with are those that were saved, unless the input made the checksums fit.
//!
//! The first byte says whether the rest are changes of made-up snapshots (crates/snapshot/tests/support/hostile.rs) or draw a
//! mutant of a golden one (mutations.rs beside it).
#![no_main]

#[path = "../../crates/snapshot/tests/support/hostile.rs"]
mod hostile;
#[path = "../../crates/snapshot/tests/support/mutations.rs"]
mod mutations;
#[path = "../../crates/snapshot/tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    if choice & 1 == 0 {
        // Whether it is an error is not the question here.
        let _ = hostile::run(rest);
        return;
    }
    let mut numbers = rest.chunks(8).map(|bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    });
    let mutant = mutations::draw(&mut || numbers.next().unwrap_or(0));
    if let Err(what) = mutations::read(&mutant) {
        panic!("{what}");
    }
});
