//! The interpreter, and generated code, against the host processor, on random vector and x87 instructions,
//! and on blocks of these and integer instructions.
//!
//! `FATHOM_FUZZ_CASES` and `FATHOM_FUZZ_SEED` choose how many and which.

use oracle::run::{self, Ours};
use oracle::{Host, State, Translated, arena};
use translator::native::Options;
use x86::{Exception, Vector};

fn translated() -> Ours {
    Ours::Translated(Translated::new(Options { forget_dead_flags: false, ..Options::default() }))
}

#[test]
fn translated_vector_instructions() {
    let cases = run::cases(300_000);
    run::vectors(&mut Host::new(), &mut translated(), run::seed(), cases).unwrap();
}

/// INC EAX; then each of these is where it stops, with everything as it was.
#[test]
fn closed_gates_stop_translated_code() {
    let mut translated = Translated::new(Options::default());
    translated.closed = Some(Exception::new(Vector::NM));
    let addps: &[u8] = &[0x0f, 0x58, 0xc1];
    let vaddps: &[u8] = &[0xc5, 0xf0, 0x58, 0xc1];
    for code in [addps, vaddps, &[0xd9, 0xe8], &[0x0f, 0xfc, 0xc1], &[0x0f, 0x77]] {
        let bytes = [&[0xff, 0xc0], code, &[0xff, 0xc0]].concat();
        let outcome = translated.run(&State::new(), &bytes, 8);
        assert_eq!(outcome.fault.map(|fault| fault.vector), Some(Vector::NM.0), "{code:02x?}");
        assert_eq!((outcome.rip, outcome.state.gpr[0]), (arena::ENTRY + 2, 1));
        assert_eq!(outcome.state.xstate, State::new().xstate);
    }
}

#[test]
fn mixed_blocks() {
    let cases = run::cases(20_000);
    run::mixed_blocks(&mut Host::new(), &mut Ours::Interpreter, run::seed(), cases).unwrap();
}

#[test]
fn translated_mixed_blocks_that_forget_flags() {
    let cases = run::cases(60_000);
    let mut ours = Ours::Translated(Translated::new(Options::default()));
    run::mixed_blocks(&mut Host::new(), &mut ours, run::seed(), cases).unwrap();
}

#[test]
fn translated_mixed_blocks() {
    let cases = run::cases(60_000);
    run::mixed_blocks(&mut Host::new(), &mut translated(), run::seed(), cases).unwrap();
}
