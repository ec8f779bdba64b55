//! The interpreter, and generated code, against the host processor, on random integer instructions.
//!
//! `FATHOM_FUZZ_CASES` and `FATHOM_FUZZ_SEED` choose how many and which.

use oracle::generate::{BRANCHES, INTEGER};
use oracle::native::Bitness;
use oracle::run::{self, Ours};
use oracle::{Host, Translated};
use translator::native::Options;

/// Generated code that an exception may interrupt anywhere.
fn translated() -> Ours {
    Ours::Translated(Translated::new(Options { forget_dead_flags: false, ..Options::default() }))
}

fn singles(mut ours: Ours, mnemonics: &[iced_x86::Mnemonic], bitness: Bitness, cases: u64) {
    let cases = run::cases(cases);
    let found = run::singles(&mut Host::new(), &mut ours, mnemonics, bitness, run::seed(), cases);
    assert_eq!(found, Ok(()));
}

#[test]
fn integer_instructions() {
    singles(Ours::Interpreter, INTEGER, Bitness::Bits64, 500_000);
}

#[test]
fn translated_integer_instructions() {
    singles(translated(), INTEGER, Bitness::Bits64, 300_000);
}

/// What is done in line, a page at a time, over borders, in itself and into faults.
#[test]
fn translated_moves_and_stores_of_strings() {
    use iced_x86::Mnemonic::{Movsb, Movsd, Movsq, Movsw, Stosb, Stosd, Stosq, Stosw};
    let strings = [Movsb, Movsw, Movsd, Movsq, Stosb, Stosw, Stosd, Stosq];
    singles(translated(), &strings, Bitness::Bits64, 100_000);
}

#[test]
fn branches() {
    singles(Ours::Interpreter, BRANCHES, Bitness::Bits64, 100_000);
}

#[test]
fn translated_branches() {
    singles(translated(), BRANCHES, Bitness::Bits64, 100_000);
}

#[test]
fn integer_instructions_of_32_bit_code() {
    singles(Ours::Interpreter, INTEGER, Bitness::Bits32, 300_000);
}

#[test]
fn branches_of_32_bit_code() {
    singles(Ours::Interpreter, BRANCHES, Bitness::Bits32, 100_000);
}

#[test]
fn blocks() {
    let cases = run::cases(60_000);
    run::blocks(&mut Host::new(), &mut Ours::Interpreter, run::seed(), cases).unwrap();
}

#[test]
fn translated_blocks() {
    let cases = run::cases(60_000);
    run::blocks(&mut Host::new(), &mut translated(), run::seed(), cases).unwrap();
}
