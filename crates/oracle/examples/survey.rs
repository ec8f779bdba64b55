//! Runs many cases and prints one difference for each encoding that has any: `survey [CASES] [SEED]`.

use std::collections::HashSet;
use std::time::Instant;

use iced_x86::Mnemonic;
use oracle::generate::{BRANCHES, Generator, INTEGER};
use oracle::native::Bitness;
use oracle::{Host, run};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (cases, seed) = (number(200_000), number(1));
    let mut host = Host::new();
    for bitness in [Bitness::Bits64, Bitness::Bits32] {
        for mnemonics in [INTEGER, BRANCHES] {
            survey(&mut host, mnemonics, bitness, seed, cases);
        }
    }
}

fn survey(host: &mut Host, mnemonics: &[Mnemonic], bitness: Bitness, seed: u64, cases: u64) {
    let generator = Generator::new(mnemonics, bitness);
    let mut failed = HashSet::new();
    let start = Instant::now();
    for case in 0..cases {
        let mut random = run::random(seed, case);
        let (bytes, instr, state) = generator.case(&mut random);
        if failed.contains(&instr.code()) {
            continue;
        }
        let report =
            run::single(host, &mut run::Ours::Interpreter, &bytes, &instr, &state, bitness);
        if !report.is_empty() {
            failed.insert(instr.code());
            println!("case {case}: {report}");
        }
    }
    println!(
        "{bitness:?}: {cases} cases, {} encodings, {} differ, {:?}",
        generator.codes().len(),
        failed.len(),
        start.elapsed()
    );
}
