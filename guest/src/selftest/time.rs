//! Clocks and timers. How long things take is never judged, only order and that they happen.

use super::signal::set_handler;
use super::{Test, Verdict};
use crate::sys::clock;
use std::arch::x86_64::{__rdtscp, _rdtsc};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    ("tsc-monotonic", tsc_monotonic),
    ("clock-vdso", clock_vdso),
    ("clock-threads", clock_threads),
    ("sleep", sleep),
    ("interval-timer", interval_timer),
];

fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and Linux lets programs use it.
    unsafe { _rdtsc() }
}

fn tsc_monotonic() -> Verdict {
    let mut last = tsc();
    for _ in 0..100_000 {
        let now = tsc();
        if now < last {
            return Verdict::Wrong(format!("{now} after {last}"));
        }
        last = now;
    }
    Verdict::all([Verdict::of(tsc() > last, "stands still"), processor_number()])
}

/// RDTSCP tells the processor, as Linux sets it up: node in the bits above 12.
fn processor_number() -> Verdict {
    crate::sys::pin_to_cpu(0);
    let mut processor = 0;
    // SAFETY: fills a word of ours; offered wherever Linux runs in 64-bit mode these days, and
    // an undefined instruction would only fail this test.
    unsafe { __rdtscp(&raw mut processor) };
    Verdict::values(&[("processor", u64::from(processor & 0xfff), 0)])
}

/// The clock read without entering the kernel agrees with the kernel's.
fn clock_vdso() -> Verdict {
    for id in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
        for _ in 0..1000 {
            let (before, kernel, after) = (clock(id), kernel_clock(id), clock(id));
            if !(before <= kernel && kernel <= after) {
                return Verdict::Wrong(format!("clock {id}: {before} {kernel} {after}"));
            }
        }
    }
    Verdict::Ok
}

fn kernel_clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills a timespec of ours.
    unsafe { libc::syscall(libc::SYS_clock_gettime, id, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// No thread sees the clock go backwards, on whichever processor it runs.
fn clock_threads() -> Verdict {
    let (latest, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for cpu in 0..crate::sys::cpus_online().max(2) {
            let (latest, wrong) = (&latest, &wrong);
            scope.spawn(move || {
                crate::sys::pin_to_cpu(cpu);
                for _ in 0..2000 {
                    let known = latest.load(SeqCst);
                    let now = clock(libc::CLOCK_MONOTONIC);
                    wrong.fetch_add(u64::from(now < known), SeqCst);
                    latest.fetch_max(now, SeqCst);
                }
            });
        }
    });
    Verdict::values(&[("steps back", wrong.into_inner(), 0)])
}

fn sleep() -> Verdict {
    let (start, ticks) = (clock(libc::CLOCK_MONOTONIC), tsc());
    std::thread::sleep(Duration::from_millis(50));
    let slept = clock(libc::CLOCK_MONOTONIC) - start;
    Verdict::of(slept >= 50_000_000 && tsc() > ticks, &format!("slept {slept} ns of 50 ms"))
}

static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn tick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    TICKS.fetch_add(1, SeqCst);
}

/// Ten ticks interrupt a loop that never enters the kernel by itself.
fn interval_timer() -> Verdict {
    set_handler(libc::SIGALRM, tick);
    let each = libc::timeval { tv_sec: 0, tv_usec: 5000 };
    let every = libc::itimerval { it_interval: each, it_value: each };
    // The alarm that guards every test is replaced; this test ends by the same ticks.
    // SAFETY: a whole itimerval of ours.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const every, ptr::null_mut()) };
    while TICKS.load(SeqCst) < 10 {
        std::hint::spin_loop();
    }
    Verdict::Ok
}
