//! Uprobes: breakpoints in programs, here in this one.

use super::{Result, Test, busy, expect, read, tracefs};
use std::arch::naked_asm;

pub(super) const TESTS: &[Test] = &[
    ("uprobe", |rounds| exactly(rounds, "p", "entry", 0)),
    ("uprobe-inside", |rounds| exactly(rounds, "p", "inside", 4)),
    ("uretprobe", |rounds| exactly(rounds, "r", "returns", 0)),
];

const PROFILE: &str = "uprobe_profile";

/// The function that is probed: three times its argument, and one.
#[unsafe(naked)]
extern "C" fn probed(argument: u64) -> u64 {
    naked_asm!("lea rax, [rdi + 2 * rdi]", "add rax, 1", "ret")
}

fn exactly(rounds: u64, kind: &str, name: &str, offset: u64) -> Result<String> {
    let program = read_program()?;
    let place = format!("{kind}:fathom/{name} {program}:{:#x}", offset_in_file()? + offset);
    let switch = format!("events/fathom/{name}/enable");
    tracefs::set("uprobe_events", &place)?;
    let result = (|| {
        let calls = call_during(|| {
            for _ in 0..rounds {
                tracefs::set(&switch, "1")?;
                tracefs::set(&switch, "0")?;
            }
            Ok(())
        })?;
        let before = tracefs::hits(PROFILE, name)?;
        tracefs::set(&switch, "1")?;
        let made = call(500)?;
        tracefs::set(&switch, "0")?;
        call(100)?;
        expect("hits", tracefs::hits(PROFILE, name)? - before, made)?;
        Ok(format!("{rounds} times during {calls} calls"))
    })();
    // Switched off or not, it goes.
    let _ = tracefs::set(&switch, "0");
    tracefs::set("uprobe_events", &format!("-:fathom/{name}"))?;
    result
}

/// Call it so often on each of two processors, one after the other: Linux counts the hits of these probes with an
/// ordinary increment (`nhit` in kernel/trace/trace_uprobe.c of 6.1), so that processors at once lose some.
fn call(times: u64) -> Result<u64> {
    for cpu in 0..2 {
        let wrong = std::thread::scope(|scope| {
            let calls = scope.spawn(move || {
                crate::sys::pin_to_cpu(cpu);
                (0..times).filter(|&n| !is_right(n)).count() as u64
            });
            calls.join().map_err(|_| "the caller panicked".to_owned())
        })?;
        expect("wrong results", wrong, 0)?;
    }
    Ok(2 * times)
}

/// Call it on both while `work` is done, beside all kinds of other calls.
fn call_during(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let (done, calls, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (done, calls, wrong) = (&done, &calls, &wrong);
            scope.spawn(move || {
                crate::sys::pin_to_cpu(cpu);
                while !done.load(Ordering::Relaxed) {
                    let n = calls.fetch_add(1, Ordering::Relaxed);
                    wrong.fetch_add(u64::from(!is_right(n)), Ordering::Relaxed);
                }
            });
        }
        let worked = busy::during(work);
        done.store(true, Ordering::Relaxed);
        worked
    })?;
    expect("wrong results", wrong.into_inner(), 0)?;
    Ok(calls.into_inner())
}

fn is_right(n: u64) -> bool {
    std::hint::black_box(probed)(n) == 3 * n + 1
}

fn read_program() -> Result<String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(program.display().to_string())
}

/// Where the file has the function.
fn offset_in_file() -> Result<u64> {
    let address = probed as *const () as u64;
    for line in read("/proc/self/maps")?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
        let Some((start, end)) = words[0].split_once('-') else { continue };
        if (number(start)..number(end)).contains(&address) {
            return Ok(address - number(start) + number(words[2]));
        }
    }
    Err("no mapping has this program's code".to_owned())
}
