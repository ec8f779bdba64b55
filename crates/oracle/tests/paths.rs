//! Blocks of random instructions in pieces that branch to each other, as code of paths over several pieces, against the
//! host processor.
//!
//! `FATHOM_FUZZ_CASES` and `FATHOM_FUZZ_SEED` choose how many and which.

use oracle::run::{self, Ours};
use oracle::{Host, Translated};
use translator::native::Options;
use translator::paths::{Limits, Policy};

fn loops_agree(mut ours: Ours, cases: u64) {
    let cases = run::cases(cases);
    let done = run::loops(&mut Host::new(), &mut ours, run::seed(), cases);
    assert_eq!(done, Ok(()));
}

fn agrees(mut ours: Ours, cases: u64) {
    let cases = run::cases(cases);
    let done = run::scattered_blocks(&mut Host::new(), &mut ours, run::seed(), cases);
    assert_eq!(done, Ok(()));
}

fn translated(policy: Policy, forget_dead_flags: bool) -> Ours {
    let options = Options { forget_dead_flags, ..Options::default() };
    Ours::Translated(Translated::with_paths(options, policy))
}

#[test]
fn interpreted() {
    agrees(Ours::Interpreter, 5_000);
}

#[test]
fn each_block_by_itself() {
    agrees(translated(Policy::BLOCKS, false), 10_000);
}

#[test]
fn along_what_falls_through() {
    agrees(translated(Policy::PIN, true), 20_000);
}

#[test]
fn by_our_rules() {
    agrees(translated(Policy::FATHOM, true), 40_000);
    agrees(translated(Policy::FATHOM, false), 20_000);
}

#[test]
fn along_jumps_and_calls() {
    let limits =
        Limits { instructions: 200, branches: 100, jumps: 100, calls: 100, at_heads: false };
    agrees(translated(Policy { limits, ..Policy::FATHOM }, true), 40_000);
}

#[test]
fn loops_interpreted() {
    loops_agree(Ours::Interpreter, 1_000);
}

#[test]
fn loops_in_strips() {
    loops_agree(translated(Policy::FATHOM, true), 20_000);
}

#[test]
fn loops_round_by_round() {
    let options = Options { strips: false, ..Options::default() };
    loops_agree(Ours::Translated(Translated::with_paths(options, Policy::FATHOM)), 10_000);
}
