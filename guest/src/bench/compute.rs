//! Integer work that needs the processor alone.

use super::{Job, Random, Workload, mix};
use std::hint::black_box;
use std::io::Result;

pub(super) const WORKLOADS: [Workload; 5] = [
    Workload { name: "alu", group: "integer", amount: 10_000_000, cpus: 1, run: alu },
    Workload { name: "divide", group: "integer", amount: 200_000, cpus: 1, run: divide },
    Workload { name: "sieve", group: "integer", amount: 40, cpus: 1, run: sieve },
    Workload { name: "sort", group: "integer", amount: 200_000, cpus: 1, run: sort },
    Workload { name: "crc", group: "integer", amount: 6_000_000, cpus: 1, run: crc },
];

/// Shifts, exclusive ors and additions, each on the one before. Amount: rounds.
fn alu(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let (mut random, mut sum) = (black_box(Random::new()), 0_u64);
        for _ in 0..job.amount {
            sum = sum.wrapping_add(random.next()).rotate_left(5);
        }
        Ok(black_box(sum))
    })
}

/// Greatest common divisors, by division. Amount: pairs.
fn divide(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let (mut random, mut checksum) = (black_box(Random::new()), 0);
        for _ in 0..job.amount {
            let (mut a, mut b) = (random.next() >> 24, random.next() >> 32);
            while b != 0 {
                (a, b) = (b, a % b);
            }
            checksum = mix(checksum, a);
        }
        Ok(black_box(checksum))
    })
}

const SIEVE: usize = 128 << 10;

/// Eratosthenes's sieve, a byte for each number. Amount: times.
fn sieve(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let mut composite = vec![0_u8; SIEVE];
        let mut checksum = 0;
        for _ in 0..job.amount {
            composite.fill(0);
            checksum = mix(checksum, primes(black_box(&mut composite)));
        }
        Ok(checksum)
    })
}

fn primes(composite: &mut [u8]) -> u64 {
    let mut count = 0;
    for n in 2..composite.len() {
        if composite[n] == 0 {
            count += 1;
            let mut multiple = n * n;
            while multiple < composite.len() {
                composite[multiple] = 1;
                multiple += n;
            }
        }
    }
    count
}

/// Heaps by comparison and exchange: branches that no predictor knows. Amount: numbers.
fn sort(job: &Job<'_>) -> Result<()> {
    let mut random = Random::new();
    let mut numbers: Vec<u64> = (0..job.amount).map(|_| random.next()).collect();
    job.measure(|| {
        heap_sort(black_box(&mut numbers));
        Ok(numbers.iter().fold(0, |checksum, number| mix(checksum, *number)))
    })
}

fn heap_sort(numbers: &mut [u64]) {
    for root in (0..numbers.len() / 2).rev() {
        sift_down(numbers, root);
    }
    for end in (1..numbers.len()).rev() {
        numbers.swap(0, end);
        sift_down(&mut numbers[..end], 0);
    }
}

fn sift_down(heap: &mut [u64], mut root: usize) {
    loop {
        let mut child = 2 * root + 1;
        if child >= heap.len() {
            return;
        }
        if child + 1 < heap.len() && heap[child + 1] > heap[child] {
            child += 1;
        }
        if heap[root] >= heap[child] {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

/// A cyclic redundancy check by table, byte after byte. Amount: bytes.
fn crc(job: &Job<'_>) -> Result<()> {
    let table = black_box(crc_table());
    let data: Vec<u8> =
        (0..64 << 10).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    job.measure(|| {
        let data = black_box(data.as_slice());
        let bytes = data.iter().cycle().take(job.amount as usize);
        Ok(u64::from(bytes.fold(!0, |crc, byte| step(&table, crc, *byte))))
    })
}

fn step(table: &[u32; 256], crc: u32, byte: u8) -> u32 {
    table[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
}

fn crc_table() -> [u32; 256] {
    std::array::from_fn(|n| {
        (0..8)
            .fold(n as u32, |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_results() {
        assert_eq!(primes(&mut vec![0; 1000]), 168);
        let mut numbers = vec![5, 3, 9, 1, 1, 7];
        heap_sort(&mut numbers);
        assert_eq!(numbers, [1, 1, 3, 5, 7, 9]);
        let crc = b"123456789".iter().fold(!0, |crc, byte| step(&crc_table(), crc, *byte));
        assert_eq!(!crc, 0xcbf4_3926);
    }
}
