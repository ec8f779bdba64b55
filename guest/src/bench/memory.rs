//! Loads that wait for one another, and bytes in bulk.

use super::{Job, Random, Workload, mix, mix_bytes};
use std::arch::asm;
use std::hint::black_box;
use std::io::Result;

pub(super) const WORKLOADS: [Workload; 6] = [
    Workload { name: "chase-1m", group: "memory", amount: 2_000_000, cpus: 1, run: chase_1m },
    Workload { name: "chase-64m", group: "memory", amount: 500_000, cpus: 1, run: chase_64m },
    Workload { name: "memcpy", group: "memory", amount: 12, cpus: 1, run: memcpy },
    Workload {
        name: "memcpy-small",
        group: "memory",
        amount: 3_000_000,
        cpus: 1,
        run: memcpy_small,
    },
    Workload { name: "rep-movs", group: "memory", amount: 180_000, cpus: 1, run: rep_movs },
    Workload {
        name: "rep-movs-small",
        group: "memory",
        amount: 1_500_000,
        cpus: 1,
        run: rep_movs_small,
    },
];

/// Words in a cache line: a step of the chase takes one line.
const LINE: usize = 8;

fn chase_1m(job: &Job<'_>) -> Result<()> {
    chase(job, 1 << 20)
}

fn chase_64m(job: &Job<'_>) -> Result<()> {
    chase(job, 64 << 20)
}

/// From line to line, each naming the next. Amount: steps.
fn chase(job: &Job<'_>, bytes: usize) -> Result<()> {
    let lines = one_cycle(bytes / (8 * LINE));
    job.measure(|| {
        let lines = black_box(lines.as_slice());
        let mut at = 0_u32;
        for _ in 0..job.amount {
            at = lines[at as usize].next;
        }
        Ok(u64::from(black_box(at)))
    })
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    next: u32,
}

/// Lines that lead through all of them in no order and back to the first (Sattolo's shuffle).
fn one_cycle(count: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = (0..count).map(|n| Line { next: n as u32 }).collect();
    let mut random = Random::new();
    for n in (1..count).rev() {
        lines.swap(n, random.below(n));
    }
    lines
}

/// The C library's copy, of more than a cache holds. Amount: times 16 MiB.
fn memcpy(job: &Job<'_>) -> Result<()> {
    let mut random = Random::new();
    let from: Vec<u64> = (0..(16 << 20) / 8).map(|_| random.next()).collect();
    // Written to, so that no page of it is met for the first time below.
    let mut to = vec![1_u64; from.len()];
    job.measure(|| {
        for _ in 0..job.amount {
            black_box(to.as_mut_slice()).copy_from_slice(black_box(&from));
        }
        Ok(to.iter().step_by(509).fold(0, |checksum, word| mix(checksum, *word)))
    })
}

/// The C library's copy, of 1 to 128 bytes that lie in the nearest cache. Amount: copies.
fn memcpy_small(job: &Job<'_>) -> Result<()> {
    small(job, |from, to| to.copy_from_slice(from))
}

/// The same by `rep movsb`.
fn rep_movs_small(job: &Job<'_>) -> Result<()> {
    small(job, copy_by_rep_movsb)
}

fn small(job: &Job<'_>, copy: fn(&[u8], &mut [u8])) -> Result<()> {
    let (from, mut to) = (bytes(4096), vec![1; 4096]);
    job.measure(|| {
        for n in 0..job.amount as usize {
            let (length, at) = (n * 37 % 128 + 1, n * 61 % 3800);
            copy(black_box(&from[at..at + length]), black_box(&mut to[at / 2..at / 2 + length]));
        }
        Ok(mix_bytes(&to))
    })
}

/// `rep movsb` of a page to a place that is not aligned. Amount: pages.
fn rep_movs(job: &Job<'_>) -> Result<()> {
    let (from, mut to) = (bytes(256 << 10), vec![1; (256 << 10) + 16]);
    job.measure(|| {
        for n in 0..job.amount as usize {
            let at = n % 64 * 4096;
            copy_by_rep_movsb(&from[at..at + 4096], black_box(&mut to[at + 9..at + 9 + 4096]));
        }
        Ok(mix_bytes(&to))
    })
}

fn copy_by_rep_movsb(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "slices of one length");
    // SAFETY: reads `from` and writes `to`, which are so long and do not overlap; the direction
    // flag is clear by the calling convention.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") from.len() => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}

fn bytes(count: usize) -> Vec<u8> {
    let mut random = Random::new();
    (0..count).map(|_| random.next() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chase_meets_every_line_once() {
        let lines = one_cycle(1000);
        let (mut at, mut met) = (0_u32, std::collections::BTreeSet::new());
        while met.insert(at) {
            at = lines[at as usize].next;
        }
        assert_eq!((met.len(), at), (1000, 0));
    }

    #[test]
    fn rep_movsb_copies() {
        let (from, mut to) = (bytes(100), vec![0; 100]);
        copy_by_rep_movsb(&from, &mut to);
        assert_eq!(from, to);
    }
}
