//! BPF programs: compiled and interpreted they compute the same, and count each time that they run.

use super::bpf::{Counter, Program, instruction, load_8};
use super::filters::COMPILE;
use super::{Result, SKIPPED, Test, busy, expect, write};
use crate::random::Random;

pub(super) const TESTS: &[Test] = &[("bpf-arithmetic", arithmetic), ("bpf-counter", counter)];

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Instructions of a program besides its beginning and end.
const LENGTH: usize = 80;

/// Programs of random arithmetic: the interpreter is the judge of what was compiled.
fn arithmetic(rounds: u64) -> Result<String> {
    let mut random = Random::from_seed(0x1234_5678_9abc_def1);
    let calls = busy::during(|| {
        for round in 0..rounds * 20 {
            let code = program(&mut random);
            write(COMPILE, "0")?;
            let interpreted = Program::load(&code)?;
            write(COMPILE, "1")?;
            let compiled = Program::load(&code)?;
            expect("whether it was compiled", compiled.told()?.1.into(), 1)?;
            let (expected, seen) = (interpreted.run(1)?, compiled.run(3)?);
            if expected != seen {
                return Err(format!("program {round}: {seen:#x}, not {expected:#x}: {code:x?}"));
            }
        }
        Ok(())
    })?;
    Ok(format!("{} programs during {calls} calls", rounds * 20))
}

/// A program that adds 1 to a number by a locked instruction, run on both processors; while statistics are on,
/// each run is counted by the kernel too, behind a static key.
fn counter(rounds: u64) -> Result<String> {
    const TIMES: u32 = 5000;
    if std::fs::metadata(STATISTICS).is_err() {
        return Ok(SKIPPED.to_owned() + "no statistics of programs");
    }
    let counter = Counter::new()?;
    let program = Program::load(&counting(counter.fd()))?;
    let run_on_both = || {
        std::thread::scope(|scope| {
            let run = |cpu| {
                crate::sys::pin_to_cpu(cpu);
                program.run(TIMES).map(drop)
            };
            let threads = [0, 1].map(|cpu| scope.spawn(move || run(cpu)));
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread failed".to_owned())?)
        })
    };
    let mut expected = 0;
    for round in 0..rounds.min(4) {
        write(STATISTICS, if round % 2 == 0 { "1" } else { "0" })?;
        run_on_both()?;
        expected += 2 * u64::from(TIMES);
        expect("count", counter.value()?, expected)?;
        expect(
            "runs by the kernel's count",
            program.told()?.0,
            (round / 2 + 1) * 2 * u64::from(TIMES),
        )?;
    }
    write(STATISTICS, "0")?;
    Ok(format!("{expected} runs"))
}

/// `if let Some(number) = lookup(map, 0) { lock *number += 1 }; return 7`
fn counting(map: u64) -> Vec<u64> {
    const PSEUDO_MAP: u8 = 1;
    let [map_low, map_high] = load_8(1, PSEUDO_MAP, map);
    vec![
        instruction(0x62, 10, 0, -4, 0),
        map_low,
        map_high,
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, 0, 0, 0, 1),
        instruction(0x15, 0, 0, 2, 0),
        instruction(0xb7, 1, 0, 0, 1),
        instruction(0xdb, 0, 1, 0, 0),
        instruction(0xb7, 0, 0, 0, 7),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// Numbers into all registers, arithmetic, and all registers into one.
fn program(random: &mut Random) -> Vec<u64> {
    let mut code: Vec<u64> = (0..10).flat_map(|to| load_8(to, 0, random.next())).collect();
    code.extend(std::iter::repeat_with(|| operation(random)).take(LENGTH));
    code.extend((1..10).map(|from| instruction(0xaf, 0, from, 0, 0)));
    code.extend([
        instruction(0xbf, 1, 0, 0, 0),
        instruction(0x77, 1, 0, 0, 32),
        instruction(0xaf, 0, 1, 0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    code
}

/// ADD to ARSH in both widths, by a register or a number, and byte swaps.
fn operation(random: &mut Random) -> u64 {
    const NEGATE: u8 = 0x80;
    const SWAP: u8 = 0xd0;
    const OPERATIONS: [u8; 13] =
        [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xa0, 0xc0, NEGATE, SWAP];
    let operation = OPERATIONS[random.below(OPERATIONS.len())];
    let (to, from) = (random.below(10) as u8, random.below(10) as u8);
    let (class, width) = if random.below(2) == 0 { (0x04, 32) } else { (0x07, 64) };
    match operation {
        SWAP => instruction(0xd4 | (random.below(2) as u8) << 3, to, 0, 0, 16 << random.below(3)),
        NEGATE => instruction(NEGATE | class, to, 0, 0, 0),
        // Division by 0 and shifts by all bits are no programs.
        _ if random.below(2) == 0 => {
            instruction(operation | class, to, 0, 0, random.below(width - 1) as i32 + 1)
        }
        _ => instruction(operation | class | 0x08, to, from, 0, 0),
    }
}
