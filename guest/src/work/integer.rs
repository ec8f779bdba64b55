//! A known number of instructions, to tell an engine's speed.
//!
//! Each loop is written instruction by instruction, so that what is counted is what runs: the
//! host divides `instructions` by `nanoseconds`.

use crate::report::emit;
use crate::sys::clock;
use std::arch::asm;

/// Run each loop for about `millions` of millions of instructions.
pub(super) fn run(millions: u64) -> bool {
    let instructions = millions * 1_000_000;
    let alu = measured("alu", ALU_LENGTH, instructions, alu);
    let memory = measured("memory", MEMORY_LENGTH, instructions, memory);
    let calls = measured("calls", CALLS_LENGTH, instructions, calls);
    alu & memory & calls
}

fn measured(kind: &str, length: u64, instructions: u64, work: fn(u64) -> u64) -> bool {
    let iterations = (instructions / length).max(1);
    let expected = EXPECTED_ITERATIONS;
    let ok = work(expected) == reference(kind, expected);
    let start = clock(libc::CLOCK_MONOTONIC);
    let result = work(iterations);
    let nanoseconds = (clock(libc::CLOCK_MONOTONIC) - start).max(1);
    let instructions = iterations * length;
    emit(
        "integer",
        &[
            ("kind", kind.into()),
            ("iterations", iterations.into()),
            ("instructions", instructions.into()),
            ("nanoseconds", nanoseconds.into()),
            ("mips", (instructions * 1000 / nanoseconds).into()),
            ("result", result.into()),
            ("ok", ok.into()),
        ],
    );
    ok
}

/// How many rounds are checked against Rust's own arithmetic first.
const EXPECTED_ITERATIONS: u64 = 1000;
const ALU_LENGTH: u64 = 12;

/// A generator of Marsaglia's (xorshift64, 2003) with the sum of all it gives.
fn alu(iterations: u64) -> u64 {
    let mut sum = 0_u64;
    // SAFETY: registers and flags only.
    unsafe {
        asm!(
            "2:",
            "mov {t}, {x}",
            "shl {t}, 13",
            "xor {x}, {t}",
            "mov {t}, {x}",
            "shr {t}, 7",
            "xor {x}, {t}",
            "mov {t}, {x}",
            "shl {t}, 17",
            "xor {x}, {t}",
            "add {sum}, {x}",
            "dec {n}",
            "jnz 2b",
            x = inout(reg) SEED => _,
            t = out(reg) _,
            sum = inout(reg) sum,
            n = inout(reg) iterations => _,
            options(nomem, nostack),
        );
    }
    sum
}

const MEMORY_LENGTH: u64 = 9;

/// Loads, a load-modify-store and a branch that goes either way, over a table of 4 KiB.
fn memory(iterations: u64) -> u64 {
    let mut table = [1_u64; 512];
    let (mut sum, mut index) = (0_u64, 0_u64);
    // Instructions: 9 a round whether or not the branch is taken (each arm has one).
    // SAFETY: `index` is masked to 0..512, so every access falls in `table`.
    unsafe {
        asm!(
            "2:",
            "mov {t}, [{table} + {index}*8]",
            "add {sum}, {t}",
            "test {t:l}, 1",
            "jz 3f",
            "add [{table} + {index}*8], {sum}",
            "lea {index}, [{index} + 37]",
            "and {index}, 511",
            "dec {n}",
            "jnz 2b",
            "jmp 5f",
            "3:",
            "inc qword ptr [{table} + {index}*8]",
            "lea {index}, [{index} + 37]",
            "and {index}, 511",
            "dec {n}",
            "jnz 2b",
            "5:",
            table = in(reg) table.as_mut_ptr(),
            index = inout(reg) index,
            sum = inout(reg) sum,
            t = out(reg) _,
            n = inout(reg) iterations => _,
            options(nostack),
        );
    }
    let _ = index;
    sum
}

const CALLS_LENGTH: u64 = 9;

/// Calls and returns, pushes and pops, a multiplication.
fn calls(iterations: u64) -> u64 {
    let mut sum = 0_u64;
    // SAFETY: the stack is used below the pointer and left as it was (no red zone is assumed:
    // the block does not say `nostack`).
    unsafe {
        asm!(
            "jmp 3f",
            "2:",
            "push {n}",
            "imul {sum}, {sum}, 33",
            "add {sum}, {n}",
            "pop {n}",
            "ret",
            "3:",
            "call 2b",
            "mov {t}, {sum}",
            "dec {n}",
            "jnz 3b",
            sum = inout(reg) sum,
            t = out(reg) _,
            n = inout(reg) iterations => _,
        );
    }
    sum
}

const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// The same loops in Rust.
fn reference(kind: &str, iterations: u64) -> u64 {
    let (mut x, mut sum, mut index, mut table) = (SEED, 0_u64, 0_usize, [1_u64; 512]);
    for n in (1..=iterations).rev() {
        match kind {
            "alu" => {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                sum = sum.wrapping_add(x);
            }
            "memory" => {
                let t = table[index];
                sum = sum.wrapping_add(t);
                let add = if t & 1 == 1 { sum } else { 1 };
                table[index] = t.wrapping_add(add);
                index = (index + 37) % 512;
            }
            _ => sum = sum.wrapping_mul(33).wrapping_add(n),
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_do_what_their_reference_does() {
        for n in [1, 2, 513, 5000] {
            assert_eq!(alu(n), reference("alu", n));
            assert_eq!(memory(n), reference("memory", n));
            assert_eq!(calls(n), reference("calls", n));
        }
    }
}
