//! Golden snapshots, mutated at random: some seconds in the suite, minutes in `cargo xtask soak`.
//!
//! Alone in its program, since it measures what the process takes. `FATHOM_SEED` draws the same again.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each test program uses a part")]
#[path = "support/hostile.rs"]
mod hostile;
#[path = "support/mutations.rs"]
mod mutations;
mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mutations::{draw, read};
use support::splitmix;

/// In the suite: the same ones each time.
const CASES: u64 = 20_000;
const SEED: u64 = 0xfa7;
/// Address space that reading any mutant may take, more than the first ones took. The largest golden snapshot has
/// 220 KiB; 8 kept chunks and the buffers of reads 4 MiB.
const GROWTH_MAX: u64 = 64 << 20;
const WARM_UP: u64 = 200;

#[test]
fn a_mutant_is_an_error_or_as_it_was() {
    run(SEED, |case| case < CASES);
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn a_mutant_is_an_error_or_as_it_was_for_long() {
    let minutes = match std::env::var("FATHOM_SOAK").as_deref() {
        Ok("short") => 1,
        _ => 10,
    };
    let seed = std::env::var("FATHOM_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let (seed, begun) = (seed.unwrap_or_else(now), Instant::now());
    println!("FATHOM_SEED={seed}");
    let cases = run(seed, |_| begun.elapsed() < Duration::from_secs(minutes * 60));
    println!("{cases} mutants");
}

/// Reads mutants as long as `more` says; each is drawn from `seed` and its own number.
fn run(seed: u64, more: impl Fn(u64) -> bool) -> u64 {
    let mut least = 0;
    let mut case = 0;
    while more(case) {
        let mut state = seed ^ case.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let mutant = draw(&mut || splitmix(&mut state));
        if let Err(what) = read(&mutant) {
            panic!("seed {seed}, mutant {case}: {what}");
        }
        let peak = support::peak_bytes();
        if case <= WARM_UP {
            least = peak;
        }
        assert!(
            peak - least <= GROWTH_MAX,
            "seed {seed}, mutant {case}: {}: {} MiB more than others",
            mutant.what,
            (peak - least) >> 20
        );
        case += 1;
    }
    case
}
