//! What a process asks of its kernel, alone.

use super::{Job, Workload, mix};
use crate::sys::{Mapping, PAGE, clock};
use std::io::{Error, Result};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const WORKLOADS: [Workload; 6] = [
    Workload { name: "null-syscall", group: "kernel", amount: 60_000, cpus: 1, run: null_syscall },
    Workload {
        name: "clock-gettime",
        group: "kernel",
        amount: 400_000,
        cpus: 1,
        run: clock_gettime,
    },
    Workload { name: "signal", group: "kernel", amount: 10_000, cpus: 1, run: signal },
    Workload { name: "page-fault", group: "kernel", amount: 20_000, cpus: 1, run: page_fault },
    Workload { name: "mprotect", group: "kernel", amount: 10_000, cpus: 1, run: mprotect },
    Workload { name: "mmap", group: "kernel", amount: 5_000, cpus: 1, run: mmap },
];

/// The kernel's shortest answer. Amount: calls.
fn null_syscall(job: &Job<'_>) -> Result<()> {
    // SAFETY: takes nothing, and cannot fail.
    let parent = || unsafe { libc::syscall(libc::SYS_getppid) };
    let expected = parent();
    job.measure(|| {
        let same = (0..job.amount).filter(|_| parent() == expected).count();
        Ok(same as u64)
    })
}

/// By way of the vDSO where the kernel's clock allows it. Amount: calls.
fn clock_gettime(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let mut before = clock(libc::CLOCK_MONOTONIC);
        let in_order = (0..job.amount).filter(|_| {
            let now = clock(libc::CLOCK_MONOTONIC);
            let in_order = now >= before;
            before = now;
            in_order
        });
        Ok(in_order.count() as u64)
    })
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_number: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A signal to itself, and its handler. Amount: signals.
fn signal(job: &Job<'_>) -> Result<()> {
    let handler = count_signal as extern "C" fn(libc::c_int);
    // SAFETY: the handler adds to an atomic number, which is async-signal-safe.
    let before = unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    SIGNALS.store(0, Ordering::Relaxed);
    let measured = job.measure(|| {
        for _ in 0..job.amount {
            // SAFETY: SIGUSR1 has a handler; it has run when this returns.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
        Ok(SIGNALS.load(Ordering::Relaxed))
    });
    // SAFETY: puts back what was there.
    unsafe { libc::signal(libc::SIGUSR1, before) };
    measured
}

/// Pages that faults are taken on, before they are given back.
const PAGES: u64 = 2048;

/// The first write to each page of fresh memory. Amount: pages.
fn page_fault(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let mut left = job.amount;
        while left > 0 {
            let pages = left.min(PAGES);
            let memory = Mapping::new(pages as usize * PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
            memory.small_pages_only();
            memory.touch_every_page(left);
            left -= pages;
        }
        Ok(job.amount)
    })
}

/// A page made read-only and writable again, and written. Amount: times.
fn mprotect(job: &Job<'_>) -> Result<()> {
    let memory = Mapping::new(PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
    job.measure(|| {
        for n in 0..job.amount {
            // SAFETY: nobody else knows the page, and it is written only once writable again.
            unsafe {
                memory.protect(0, PAGE, libc::PROT_READ)?;
                memory.protect(0, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
            }
            memory.touch_every_page(n);
        }
        // SAFETY: the page is ours, readable, and holds the last number written.
        Ok(mix(0, unsafe { memory.pointer().cast::<u64>().read_volatile() }))
    })
}

/// A page mapped, written and unmapped. Amount: pages.
fn mmap(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let mut mapped = 0;
        for n in 0..job.amount {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping where the kernel likes, written where it begins and taken
            // away while nothing points there any more.
            unsafe {
                let page = libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0);
                if page == libc::MAP_FAILED {
                    return Err(Error::last_os_error());
                }
                page.cast::<u64>().write_volatile(n);
                mapped += u64::from(libc::munmap(page, PAGE) == 0);
            }
        }
        Ok(mapped)
    })
}
