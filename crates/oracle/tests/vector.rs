//! The interpreter, and generated code, against the host processor, on random vector and x87 instructions,
//! and on blocks of these and integer instructions.
//!
//! `FATHOM_FUZZ_CASES` and `FATHOM_FUZZ_SEED` choose how many and which.

use oracle::run::{self, Ours};
use oracle::{Host, Translated};
use translator::native::Options;

fn translated() -> Ours {
    Ours::Translated(Translated::new(Options { forget_dead_flags: false, ..Options::default() }))
}

#[test]
fn translated_vector_instructions() {
    let cases = run::cases(300_000);
    run::vectors(&mut Host::new(), &mut translated(), run::seed(), cases).unwrap();
}

#[test]
fn mixed_blocks() {
    let cases = run::cases(20_000);
    run::mixed_blocks(&mut Host::new(), &mut Ours::Interpreter, run::seed(), cases).unwrap();
}

#[test]
fn translated_mixed_blocks() {
    let cases = run::cases(60_000);
    run::mixed_blocks(&mut Host::new(), &mut translated(), run::seed(), cases).unwrap();
}
