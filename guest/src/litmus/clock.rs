//! The time-stamp counter never goes back, not from one processor to another either.

use super::{Test, on_two};
use std::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const TESTS: &[Test] = &[("tsc", monotone)];

/// Each thread looks what the other has read last, then reads the counter itself.
fn monotone(rounds: u64) -> Result<String, String> {
    if !is_one_clock() {
        return Ok("skipped: the kernel does not trust the counter".to_owned());
    }
    let last = [AtomicU64::new(0), AtomicU64::new(0)];
    let (back, most) = (AtomicU64::new(0), AtomicU64::new(0));
    on_two(|id| {
        for round in 0..rounds {
            let before = last[1 - id].load(Ordering::Acquire).max(last[id].load(Ordering::Relaxed));
            // SAFETY: neither touches memory of ours; LFENCE keeps RDTSC behind the load.
            let now = unsafe {
                if round % 2 == 0 {
                    _mm_lfence();
                    _rdtsc()
                } else {
                    __rdtscp(&mut 0)
                }
            };
            if now < before {
                back.fetch_add(1, Ordering::Relaxed);
                most.fetch_max(before - now, Ordering::Relaxed);
            }
            last[id].store(now, Ordering::Release);
        }
    });
    match (back.into_inner(), most.into_inner()) {
        (0, _) => Ok(format!("{rounds} readings on each")),
        (times, most) => Err(format!("back {times} times, by {most} at most")),
    }
}

/// Whether all processors have one counter by the machine's own word.
fn is_one_clock() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("nonstop_tsc"))
}
