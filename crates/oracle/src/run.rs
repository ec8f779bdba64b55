//! Test runs: so many random cases, stopping at the first difference.

use std::fmt::Write;

use iced_x86::{Formatter, Instruction, IntelFormatter, Mnemonic};
use x86::Vector;

use crate::arena;
use crate::block;
use crate::compare::{FLAGS, differences, undefined_flags, vector_differences};
use crate::generate::{Generator, INTEGER, randomise};
use crate::interpret;
use crate::native::{Bitness, Host};
use crate::random::Random;
use crate::rounds;
use crate::state::{Outcome, State};
use crate::translated::Translated;

/// The number of cases of a run: `FATHOM_FUZZ_CASES`, or `default`.
#[must_use]
pub fn cases(default: u64) -> u64 {
    std::env::var("FATHOM_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The seed of a run: `FATHOM_FUZZ_SEED`, or a fixed one.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("FATHOM_FUZZ_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// The random source of one case.
#[must_use]
pub fn random(seed: u64, case: u64) -> Random {
    Random::new(seed.wrapping_mul(1 << 40).wrapping_add(case))
}

/// What is compared with the host.
pub enum Ours {
    /// The interpreter.
    Interpreter,
    /// Generated code.
    Translated(Translated),
}

impl Ours {
    fn forgets_flags(&self) -> bool {
        matches!(self, Self::Translated(translated) if translated.forgets_flags())
    }

    fn run(&mut self, state: &State, code: &[u8], bitness: Bitness, limit: usize) -> Outcome {
        match self {
            Self::Interpreter => interpret::run(state, code, bitness, limit),
            Self::Translated(translated) => translated.run(state, code, limit),
        }
    }
}

/// Runs `cases` single instructions with these mnemonics.
///
/// # Errors
///
/// The first difference, with all that is needed to see it again.
pub fn singles(
    host: &mut Host,
    ours: &mut Ours,
    mnemonics: &[Mnemonic],
    bitness: Bitness,
    seed: u64,
    cases: u64,
) -> Result<(), String> {
    let generator = Generator::new(mnemonics, bitness);
    for case in 0..cases {
        let mut random = random(seed, case);
        let (bytes, instr, state) = generator.case(&mut random);
        let report = single(host, ours, &bytes, &instr, &state, bitness);
        if !report.is_empty() {
            return Err(format!("seed {seed}, case {case}: {report}"));
        }
    }
    Ok(())
}

/// Runs one instruction on both sides. Returns an empty string, or the instruction and the differences.
#[must_use]
pub fn single(
    host: &mut Host,
    ours: &mut Ours,
    bytes: &[u8],
    instr: &Instruction,
    state: &State,
    bitness: Bitness,
) -> String {
    let native = settle(host.run(state, bytes, bitness, false), bytes.len());
    let ours = ours.run(state, bytes, bitness, 1);
    let mut undefined = undefined_flags(instr);
    if native.fault.is_some() {
        // Registers and flags are as before; but vendors disagree on comparisons that were interrupted.
        let repeats = instr.has_rep_prefix() || instr.has_repne_prefix();
        undefined = if instr.is_string_instruction() && repeats { FLAGS } else { 0 };
    }
    let found = differences(bytes, &native, &ours, undefined);
    if found.is_empty() { found } else { describe(bytes, instr, state) + &found }
}

/// Runs `cases` single vector and x87 instructions, and compares their registers too.
///
/// # Errors
///
/// As [`singles`].
pub fn vectors(host: &mut Host, ours: &mut Ours, seed: u64, cases: u64) -> Result<(), String> {
    let generator = Generator::vectors();
    for case in 0..cases {
        let mut random = random(seed, case);
        let (bytes, instr, mut state) = generator.case(&mut random);
        randomise(&mut state, &mut random);
        let native = host.run(&state, &bytes, Bitness::Bits64, true);
        let ours = ours.run(&state, &bytes, Bitness::Bits64, 4);
        let undefined = if native.fault.is_some() { 0 } else { undefined_flags(&instr) };
        let found =
            differences(&bytes, &native, &ours, undefined) + &vector_differences(&native, &ours);
        if !found.is_empty() && !is_disputed(&instr, &native) {
            let text = describe(&bytes, &instr, &state);
            return Err(format!("seed {seed}, case {case}: {text}{found}"));
        }
    }
    Ok(())
}

/// Runs `cases` blocks of 5 to 20 instructions of all kinds, and compares vector registers too.
///
/// # Errors
///
/// As [`singles`].
pub fn mixed_blocks(host: &mut Host, ours: &mut Ours, seed: u64, cases: u64) -> Result<(), String> {
    let generator = Generator::mixed();
    for case in 0..cases {
        let mut random = random(seed, case);
        let block = block::block(&generator, &mut random);
        let mut state = block::state(&mut random);
        randomise(&mut state, &mut random);
        let native = host.run(&state, &block.bytes, Bitness::Bits64, true);
        let forgotten = native.fault.is_some() && ours.forgets_flags();
        let ours = ours.run(&state, &block.bytes, Bitness::Bits64, 64);
        let undefined = if forgotten { FLAGS } else { block.undefined_at(native.rip) };
        let found = differences(&block.bytes, &native, &ours, undefined)
            + &vector_differences(&native, &ours);
        let disputed = || block.instrs.iter().any(|instr| is_disputed(instr, &native));
        if !found.is_empty() && !disputed() {
            let listing: String =
                block.instrs.iter().map(|instr| describe_instruction(instr) + "\n").collect();
            let registers = describe_state(&state);
            return Err(format!("seed {seed}, case {case}:\n{listing}{registers}{found}"));
        }
    }
    Ok(())
}

/// Intel's processors check the alignment of SHA instructions, AMD's do not; the interpreter does not know
/// all flags beside a SIMD exception that traps.
fn is_disputed(instr: &Instruction, native: &Outcome) -> bool {
    let vector = native.fault.map(|fault| fault.vector);
    let sha = instr.cpuid_features() == [iced_x86::CpuidFeature::SHA];
    sha && vector == Some(13) || vector == Some(Vector::XM.0)
}

/// Runs `cases` blocks of 5 to 20 instructions.
///
/// # Errors
///
/// As [`singles`].
pub fn blocks(host: &mut Host, ours: &mut Ours, seed: u64, cases: u64) -> Result<(), String> {
    let generator = Generator::new(INTEGER, Bitness::Bits64);
    for case in 0..cases {
        let mut random = random(seed, case);
        let block = block::block(&generator, &mut random);
        let state = block::state(&mut random);
        let native = host.run(&state, &block.bytes, Bitness::Bits64, false);
        let ours = ours.run(&state, &block.bytes, Bitness::Bits64, 1);
        let found = differences(&block.bytes, &native, &ours, block.undefined_at(native.rip));
        if !found.is_empty() {
            let listing: String =
                block.instrs.iter().map(|instr| describe_instruction(instr) + "\n").collect();
            let registers = describe_state(&state);
            return Err(format!("seed {seed}, case {case}:\n{listing}{registers}{found}"));
        }
    }
    Ok(())
}

/// Runs `cases` blocks of all kinds of instructions in pieces that branch to each other, forward and backward, and
/// compares vector registers too.
///
/// # Errors
///
/// As [`singles`].
pub fn scattered_blocks(
    host: &mut Host,
    ours: &mut Ours,
    seed: u64,
    cases: u64,
) -> Result<(), String> {
    let generator = Generator::mixed();
    for case in 0..cases {
        let mut random = random(seed, case);
        let block = block::block(&generator, &mut random);
        let scattered = block::scatter(&block, &mut random);
        let mut state = block::state(&mut random);
        randomise(&mut state, &mut random);
        let instrs = &block.instrs;
        let undefined = |rip| scattered.undefined_at(rip);
        let found = mixed(host, ours, &state, &scattered.bytes, instrs, undefined);
        found.map_err(|found| format!("seed {seed}, case {case}:\n{found}"))?;
    }
    Ok(())
}

/// Runs `cases` loops over arrays, and compares vector registers too.
///
/// # Errors
///
/// As [`singles`].
pub fn loops(host: &mut Host, ours: &mut Ours, seed: u64, cases: u64) -> Result<(), String> {
    let generator = Generator::mixed();
    for case in 0..cases {
        let mut random = random(seed, case);
        let rounds = rounds::rounds(&generator, &mut random);
        let mut state = rounds.state(&mut random);
        randomise(&mut state, &mut random);
        let undefined = |rip| rounds.undefined_at(rip);
        let found = mixed(host, ours, &state, &rounds.bytes, &rounds.instrs, undefined);
        found.map_err(|found| format!("seed {seed}, case {case}:\n{found}"))?;
    }
    Ok(())
}

/// Runs code of all kinds of instructions, with branches, and compares vector registers too. `undefined`: flags that are
/// where it ends.
fn mixed(
    host: &mut Host,
    ours: &mut Ours,
    state: &State,
    bytes: &[u8],
    instrs: &[Instruction],
    undefined: impl Fn(u64) -> u64,
) -> Result<(), String> {
    let native = host.run(state, bytes, Bitness::Bits64, true);
    let forgotten = native.fault.is_some() && ours.forgets_flags();
    let ours = ours.run(state, bytes, Bitness::Bits64, 100_000);
    let undefined = if forgotten { FLAGS } else { undefined(native.rip) };
    let found = differences(bytes, &native, &ours, undefined) + &vector_differences(&native, &ours);
    if found.is_empty() || instrs.iter().any(|instr| is_disputed(instr, &native)) {
        return Ok(());
    }
    let listing: String = instrs.iter().map(|instr| describe_instruction(instr) + "\n").collect();
    Err(format!("{listing}{bytes:02x?}\n{}{found}", describe_state(state)))
}

/// A branch ends where it cannot go on: at an INT3, whose trap reports the address behind it, or at a
/// fetch that faults. Both count as having arrived.
fn settle(mut outcome: Outcome, len: usize) -> Outcome {
    let Some(fault) = outcome.fault else { return outcome };
    let trap = fault.vector == 3;
    let here = arena::ENTRY..arena::ENTRY + len as u64;
    if trap || !here.contains(&outcome.rip) {
        outcome.rip -= u64::from(trap);
        outcome.fault = None;
    }
    outcome
}

fn describe(bytes: &[u8], instr: &Instruction, state: &State) -> String {
    let text = describe_instruction(instr);
    format!("{text}  ({:?}: {bytes:02x?})\n{}", instr.code(), describe_state(state))
}

fn describe_instruction(instr: &Instruction) -> String {
    let mut text = format!("{:x}: ", instr.ip());
    IntelFormatter::new().format(instr, &mut text);
    text
}

fn describe_state(state: &State) -> String {
    let mut out = String::new();
    for (slot, value) in state.gpr.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(out, "r{slot}={value:x} ");
    }
    let _ = writeln!(out, "rflags={:x}", state.rflags);
    out
}
