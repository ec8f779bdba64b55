//! The interpreter against the host processor, on random integer instructions.
//!
//! `FATHOM_FUZZ_CASES` and `FATHOM_FUZZ_SEED` choose how many and which.

use oracle::generate::{BRANCHES, INTEGER};
use oracle::native::Bitness;
use oracle::{Host, run};

#[test]
fn integer_instructions() {
    let cases = run::cases(500_000);
    run::singles(&mut Host::new(), INTEGER, Bitness::Bits64, run::seed(), cases).unwrap();
}

#[test]
fn branches() {
    let cases = run::cases(100_000);
    run::singles(&mut Host::new(), BRANCHES, Bitness::Bits64, run::seed(), cases).unwrap();
}

#[test]
fn integer_instructions_of_32_bit_code() {
    let cases = run::cases(300_000);
    run::singles(&mut Host::new(), INTEGER, Bitness::Bits32, run::seed(), cases).unwrap();
}

#[test]
fn branches_of_32_bit_code() {
    let cases = run::cases(100_000);
    run::singles(&mut Host::new(), BRANCHES, Bitness::Bits32, run::seed(), cases).unwrap();
}

#[test]
fn blocks() {
    let cases = run::cases(60_000);
    run::blocks(&mut Host::new(), run::seed(), cases).unwrap();
}
