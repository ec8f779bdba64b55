//! Calls, jumps that go anywhere, and programs that run programs.

use super::{Job, Random, Workload, mix};
use std::hint::black_box;
use std::io::Result;

pub(super) const WORKLOADS: [Workload; 3] = [
    Workload { name: "fib", group: "control", amount: 8_000_000, cpus: 1, run: fib },
    Workload {
        name: "indirect-calls",
        group: "control",
        amount: 6_000_000,
        cpus: 1,
        run: indirect,
    },
    Workload { name: "interpreter", group: "control", amount: 800_000, cpus: 1, run: interpreter },
];

/// Fibonacci's numbers by recursion. Amount: about so many calls.
fn fib(job: &Job<'_>) -> Result<()> {
    let mut n = 1;
    // fib(n) takes some 1.618 times as many calls as fib(n - 1).
    while calls(n + 1) < job.amount {
        n += 1;
    }
    job.measure(|| Ok(recurse(black_box(n))))
}

/// Calls that `recurse(n)` makes, itself included: each number but the last is a sum of two.
fn calls(n: u64) -> u64 {
    let (mut before, mut now) = (1, 1);
    for _ in 1..n {
        (before, now) = (now, before + now + 1);
    }
    now
}

#[inline(never)]
fn recurse(n: u64) -> u64 {
    if n < 2 { n } else { black_box(recurse(n - 1)) + recurse(n - 2) }
}

/// Objects of eight kinds in no order, called through their tables. Amount: calls.
fn indirect(job: &Job<'_>) -> Result<()> {
    let mut random = Random::new();
    let objects: Vec<Box<dyn Step>> = (0..256).map(|_| object(random.below(8))).collect();
    job.measure(|| {
        let objects = black_box(objects.as_slice());
        let mut value = 1_u64;
        for object in objects.iter().cycle().take(job.amount as usize) {
            value = object.step(value);
        }
        Ok(black_box(value))
    })
}

trait Step {
    fn step(&self, value: u64) -> u64;
}

struct Kind<const N: u32>(u64);

impl<const N: u32> Step for Kind<N> {
    fn step(&self, value: u64) -> u64 {
        value.rotate_left(N).wrapping_add(self.0)
    }
}

fn object(kind: usize) -> Box<dyn Step> {
    match kind {
        0 => Box::new(Kind::<1>(3)),
        1 => Box::new(Kind::<3>(5)),
        2 => Box::new(Kind::<5>(7)),
        3 => Box::new(Kind::<7>(11)),
        4 => Box::new(Kind::<11>(13)),
        5 => Box::new(Kind::<13>(17)),
        6 => Box::new(Kind::<17>(19)),
        _ => Box::new(Kind::<19>(23)),
    }
}

/// A machine with a stack, and a program for it that follows Collatz's sequence. Amount: steps
/// of the sequence, of some ten instructions each.
fn interpreter(job: &Job<'_>) -> Result<()> {
    let code = black_box(COLLATZ.to_vec());
    job.measure(|| Ok(execute(&code, job.amount)))
}

#[derive(Clone, Copy)]
enum Op {
    Push(u64),
    Duplicate,
    Add,
    Multiply,
    Halve,
    IsOdd,
    IsOne,
    JumpIf(usize),
    Jump(usize),
    /// Start again with the next number; done when as many steps as asked are taken.
    Next,
    Count,
}

const COLLATZ: [Op; 17] = [
    Op::Next,
    // 1: one step of the sequence
    Op::Count,
    Op::Duplicate,
    Op::IsOne,
    Op::JumpIf(0),
    Op::Duplicate,
    Op::IsOdd,
    Op::JumpIf(10),
    Op::Halve,
    Op::Jump(1),
    // 10: three times the number, and one
    Op::Push(3),
    Op::Multiply,
    Op::Push(1),
    Op::Add,
    Op::Duplicate,
    Op::IsOne,
    Op::JumpIf(0),
];

fn execute(code: &[Op], steps: u64) -> u64 {
    let mut stack = Vec::with_capacity(16);
    let (mut at, mut start, mut taken, mut checksum) = (0, 1_u64, 0, 0);
    loop {
        let op = code[at];
        at = if at + 1 < code.len() { at + 1 } else { 1 };
        let top = stack.len().wrapping_sub(1);
        match op {
            Op::Push(value) => stack.push(value),
            Op::Duplicate => stack.push(stack[top]),
            Op::Add | Op::Multiply => {
                let (b, a) = (stack[top], stack[top - 1]);
                stack.truncate(top);
                let is_add = matches!(op, Op::Add);
                stack[top - 1] = if is_add { a.wrapping_add(b) } else { a.wrapping_mul(b) };
            }
            Op::Halve => stack[top] /= 2,
            Op::IsOdd => stack[top] &= 1,
            Op::IsOne => stack[top] = u64::from(stack[top] == 1),
            Op::JumpIf(target) => {
                if stack.pop() == Some(1) {
                    at = target;
                }
            }
            Op::Jump(target) => at = target,
            Op::Next => {
                checksum = mix(checksum, taken);
                if taken >= steps {
                    return checksum;
                }
                start += 1;
                stack.clear();
                stack.push(start);
            }
            Op::Count => taken += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_results() {
        assert_eq!(recurse(20), 6765);
        assert_eq!((calls(1), calls(2), calls(3), calls(4)), (1, 3, 5, 9));
    }

    #[test]
    fn the_little_machine_follows_the_sequence() {
        // Counts so far: before any number, after 2 (2, 1), after 3 (3, 10, 5, 16, 8, 4, 2, 1).
        let expected = [0, 2, 10].into_iter().fold(0, mix);
        assert_eq!(execute(&COLLATZ, 3), expected);
    }
}
