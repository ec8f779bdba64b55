//! Work for both processors while code changes below them.

use super::Result;
use crate::sys::pin_to_cpu;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CPUS: u64 = 2;

/// The system call that tests count: nobody else in this machine makes it.
pub(super) const COUNTED: &str = "__x64_sys_getpgid";

/// Make the counted call so often on each of two processors; returns how often in all.
pub(super) fn call(times: u64) -> Result<u64> {
    let wrong = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let wrong = &wrong;
            scope.spawn(move || {
                pin_to_cpu(cpu);
                let count = (0..times).filter(|_| !counted_call()).count();
                wrong.fetch_add(count as u64, Ordering::Relaxed);
            });
        }
    });
    match wrong.into_inner() {
        0 => Ok(times * CPUS),
        wrong => Err(format!("{wrong} system calls went wrong")),
    }
}

fn counted_call() -> bool {
    // SAFETY: takes a number and gives one back.
    let (group, same) = unsafe { (libc::getpgid(0), libc::getpgrp()) };
    group == same
}

/// Do `work` while both processors make all kinds of calls, the counted one among them; returns how often that
/// was made.
pub(super) fn during(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let (done, counted, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let worked = std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (done, counted, wrong) = (&done, &counted, &wrong);
            scope.spawn(move || {
                pin_to_cpu(cpu);
                while !done.load(Ordering::Relaxed) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let right = counted_call() & pipe() & file() & memory();
                    wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
        }
        let worked = work();
        done.store(true, Ordering::Relaxed);
        worked
    });
    worked?;
    match wrong.into_inner() {
        0 => Ok(counted.into_inner()),
        wrong => Err(format!("{wrong} rounds of system calls went wrong")),
    }
}

fn pipe() -> bool {
    let Ok((mut reader, mut writer)) = std::io::pipe() else { return false };
    let (sent, mut got) = ([0x5a; 300], [0; 300]);
    let moved = std::io::Write::write_all(&mut writer, &sent)
        .and_then(|()| std::io::Read::read_exact(&mut reader, &mut got));
    moved.is_ok() && got == sent
}

fn file() -> bool {
    std::fs::read_to_string("/proc/self/comm").is_ok_and(|name| !name.is_empty())
}

fn memory() -> bool {
    use crate::sys::{Mapping, PAGE};
    let Ok(mapping) = Mapping::new(4 * PAGE, libc::PROT_READ | libc::PROT_WRITE) else {
        return false;
    };
    mapping.touch_every_page(7);
    // SAFETY: our own mapping, just written.
    unsafe { mapping.pointer().cast::<u64>().read_volatile() == 7 }
}
