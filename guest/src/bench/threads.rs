//! Two threads on two processors: apart, and in each other's way.

use super::{Job, Random, Workload, mix, process, unsupported};
use crate::sys::{self, Mapping, PAGE};
use std::hint::black_box;
use std::io::Result;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Condvar, Mutex};
use std::thread;

pub(super) const WORKLOADS: [Workload; 6] = [
    Workload { name: "two-apart", group: "two", amount: 5_000_000, cpus: 2, run: apart },
    Workload { name: "two-atomic", group: "two", amount: 300_000, cpus: 2, run: atomic },
    Workload { name: "two-mutex", group: "two", amount: 100_000, cpus: 2, run: mutex },
    Workload { name: "two-futex", group: "two", amount: 1_000, cpus: 2, run: futex },
    Workload { name: "two-pipe", group: "two", amount: 1_000, cpus: 2, run: pipe },
    Workload { name: "two-page-fault", group: "two", amount: 8_000, cpus: 2, run: page_fault },
];

/// Run `body` on two threads, each on a processor of its own.
fn on_two(job: &Job<'_>, body: impl Fn(u64) -> u64 + Sync) -> Result<()> {
    if sys::cpus_online() < 2 {
        return Err(unsupported("one processor only"));
    }
    let start = Barrier::new(3);
    thread::scope(|scope| {
        let [one, other] = [0, 1].map(|id| {
            let (start, body) = (&start, &body);
            scope.spawn(move || {
                sys::pin_to_cpu(id);
                start.wait();
                body(id)
            })
        });
        job.measure(|| {
            start.wait();
            let ended = [one.join(), other.join()];
            Ok(ended.into_iter().fold(0, |checksum, value| mix(checksum, value.unwrap_or(0))))
        })
    })
}

/// Arithmetic and a table of its own for each. Amount: rounds of each.
fn apart(job: &Job<'_>) -> Result<()> {
    on_two(job, |id| {
        let mut random = Random::new();
        let mut table = vec![id; 512];
        for _ in 0..job.amount {
            let value = random.next();
            let place = &mut black_box(&mut table)[value as usize % 512];
            *place = place.wrapping_add(value);
        }
        table.into_iter().fold(0, mix)
    })
}

/// Locked additions to the same number. Amount: additions of each.
fn atomic(job: &Job<'_>) -> Result<()> {
    let sum = AtomicU64::new(0);
    on_two(job, |id| {
        for _ in 0..job.amount {
            sum.fetch_add(id + 1, Ordering::SeqCst);
        }
        while sum.load(Ordering::Relaxed) < job.amount * 3 {
            thread::yield_now();
        }
        sum.load(Ordering::Relaxed)
    })
}

/// One lock, taken and given back. Amount: times of each.
fn mutex(job: &Job<'_>) -> Result<()> {
    let list = Mutex::new(vec![0_u64; 16]);
    on_two(job, |id| {
        for n in 0..job.amount {
            if let Ok(mut list) = list.lock() {
                list[n as usize % 16] += id + 1;
            }
        }
        job.amount
    })?;
    let sum: u64 = list.into_inner().map_or(0, |list| list.iter().sum());
    if sum == 3 * job.amount { Ok(()) } else { Err(std::io::Error::other("the lock was broken")) }
}

/// Strictly by turns: each wakes the other and sleeps. Amount: turns of each.
fn futex(job: &Job<'_>) -> Result<()> {
    let (turn, woken) = (Mutex::new(0_u64), Condvar::new());
    on_two(job, |id| {
        for n in 0..job.amount {
            let Ok(guard) = turn.lock() else { return 0 };
            let Ok(mut guard) = woken.wait_while(guard, |now| *now != 2 * n + id) else { return 0 };
            *guard += 1;
            woken.notify_one();
        }
        job.amount
    })
}

/// As `pipe`, with two processors to choose from.
fn pipe(job: &Job<'_>) -> Result<()> {
    if sys::cpus_online() < 2 {
        return Err(unsupported("one processor only"));
    }
    process::ping_pong(job)
}

/// Memory taken, touched and given back in one address space: each has the other's processor
/// forget it. Amount: pages of each.
fn page_fault(job: &Job<'_>) -> Result<()> {
    const PAGES: u64 = 16;
    on_two(job, |_| {
        let mut touched = 0;
        while touched < job.amount {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let Ok(memory) = Mapping::new(PAGES as usize * PAGE, protection) else { return 0 };
            memory.small_pages_only();
            memory.touch_every_page(touched);
            touched += PAGES;
        }
        touched
    })
}
