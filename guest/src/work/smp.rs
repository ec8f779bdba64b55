//! Several processors at once: atomic operations, memory order, wake-ups.
//!
//! Every check holds on any x86-64 machine (Intel SDM vol. 3, 9.2 "Memory Ordering"), however
//! threads are scheduled; some only bite when two processors really run at the same time.

use crate::report::emit;
use crate::sys::{cpus_online, pin_to_cpu};
use std::arch::asm;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, Condvar, Mutex};
use std::thread;

type Check = (&'static str, fn(u64) -> bool);

const ROUNDS: u64 = 20_000;

pub(super) fn run(threads: u64) -> bool {
    let threads = threads.clamp(2, 64);
    emit("smp", &[("threads", threads.into()), ("cpus", cpus_online().into())]);
    let checks: [Check; 7] = [
        ("add", atomic_add),
        ("compare-exchange", compare_exchange),
        ("compare-exchange-16", compare_exchange_16),
        ("exchange-lock", exchange_lock),
        ("bit-set", bit_set),
        ("memory-order", memory_order),
        ("ping-pong", ping_pong),
    ];
    let mut all = true;
    for (name, check) in checks {
        let ok = check(threads);
        emit("test", &[("name", format!("smp-{name}").as_str().into()), ("ok", ok.into())]);
        all &= ok;
    }
    all
}

/// Run `body` on `threads` threads, each on a processor of its own as far as they go.
fn on_threads(threads: u64, body: impl Fn(u64) + Sync) {
    let start = Barrier::new(threads as usize);
    thread::scope(|scope| {
        for id in 0..threads {
            let (start, body) = (&start, &body);
            scope.spawn(move || {
                pin_to_cpu(id % cpus_online());
                start.wait();
                body(id);
            });
        }
    });
}

/// `lock xadd` and `lock add` of every width lose nothing.
fn atomic_add(threads: u64) -> bool {
    let (wide, narrow) = (AtomicU64::new(0), AtomicU32::new(0));
    let previous = AtomicU64::new(0);
    on_threads(threads, |_| {
        for _ in 0..ROUNDS {
            previous.fetch_add(wide.fetch_add(1, Ordering::SeqCst), Ordering::Relaxed);
            narrow.fetch_add(3, Ordering::Relaxed);
        }
    });
    let total = threads * ROUNDS;
    wide.into_inner() == total
        && u64::from(narrow.into_inner()) == 3 * total
        // Each number from 0 to total - 1 was seen exactly once.
        && previous.into_inner() == total * (total - 1) / 2
}

fn compare_exchange(threads: u64) -> bool {
    let value = AtomicU64::new(0);
    on_threads(threads, |_| {
        for _ in 0..ROUNDS {
            let mut seen = value.load(Ordering::Relaxed);
            while let Err(now) =
                value.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::Relaxed)
            {
                seen = now;
            }
        }
    });
    value.into_inner() == threads * ROUNDS
}

#[repr(align(16))]
struct Pair(UnsafeCell<[u64; 2]>);

// SAFETY: every access while it is shared is a locked cmpxchg16b.
unsafe impl Sync for Pair {}

/// Both halves change together: the second is always the first times three.
fn compare_exchange_16(threads: u64) -> bool {
    let pair = Pair(UnsafeCell::new([0, 0]));
    let torn = AtomicU64::new(0);
    on_threads(threads, |_| {
        for _ in 0..ROUNDS {
            let mut seen = [0, 0];
            while !exchange_pair(&pair, &mut seen) {}
            if seen[1] != seen[0] * 3 {
                torn.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    torn.into_inner() == 0 && pair.0.into_inner() == [threads * ROUNDS, threads * ROUNDS * 3]
}

/// One `lock cmpxchg16b` from `seen` to its successor; on failure `seen` is what was there.
fn exchange_pair(pair: &Pair, seen: &mut [u64; 2]) -> bool {
    let done: u8;
    // SAFETY: `pair` is 16-byte aligned and lives through the call; rbx is given back. All
    // registers are named, because the compiler might choose rbx for an unnamed one.
    unsafe {
        asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "sete r8b",
            "mov rbx, rsi",
            in("rdi") pair.0.get(),
            inout("rsi") seen[0] + 1 => _,
            out("r8b") done,
            in("rcx") (seen[0] + 1) * 3,
            inout("rax") seen[0],
            inout("rdx") seen[1],
        );
    }
    done == 1
}

struct Guarded(UnsafeCell<u64>);

// SAFETY: only touched while the lock made by `exchange_lock` is held.
unsafe impl Sync for Guarded {}

/// A lock made of `xchg` and a plain store keeps a plain counter whole.
fn exchange_lock(threads: u64) -> bool {
    let (lock, counter) = (AtomicU32::new(0), Guarded(UnsafeCell::new(0)));
    let counter = &counter;
    on_threads(threads, |_| {
        for _ in 0..ROUNDS / 4 {
            while lock.swap(1, Ordering::Acquire) == 1 {
                thread::yield_now();
            }
            // SAFETY: the lock is held: the exchange above saw it free.
            unsafe { *counter.0.get() += 1 };
            lock.store(0, Ordering::Release);
        }
    });
    // SAFETY: all threads have ended.
    unsafe { *counter.0.get() == threads * (ROUNDS / 4) }
}

/// `lock bts` and `lock btr` on one word shared by all: each thread owns a bit.
fn bit_set(threads: u64) -> bool {
    let word = AtomicU64::new(0);
    let wrong = AtomicU64::new(0);
    on_threads(threads, |id| {
        let bit = 1_u64 << id;
        for _ in 0..ROUNDS {
            let was_clear = word.fetch_or(bit, Ordering::SeqCst) & bit == 0;
            let was_set = word.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
            if !(was_clear && was_set) {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    wrong.into_inner() == 0 && word.into_inner() == 0
}

/// Three litmus tests with plain moves: what x86 forbids must never be seen.
fn memory_order(_threads: u64) -> bool {
    let wrong = AtomicU64::new(0);
    let (x, y) = (AtomicU64::new(0), AtomicU64::new(0));
    let (seen_x, seen_y) = (AtomicU64::new(0), AtomicU64::new(0));
    let (round_start, round_end) = (Barrier::new(2), Barrier::new(2));
    on_threads(2, |id| {
        for round in 1..=ROUNDS / 20 {
            round_start.wait();
            if id == 0 {
                // Message passing: the flag is stored after the data.
                for step in 1..=50 {
                    x.store(round * 100 + step, Ordering::Relaxed);
                    y.store(round * 100 + step, Ordering::Release);
                }
            } else {
                for _ in 0..50 {
                    let flag = y.load(Ordering::Acquire);
                    if x.load(Ordering::Relaxed) < flag {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            round_end.wait();
            x.store(0, Ordering::Relaxed);
            y.store(0, Ordering::Relaxed);
            round_start.wait();
            // Store buffering: with a fence between, one of the two must see the other.
            let (mine, other, seen) = if id == 0 { (&x, &y, &seen_y) } else { (&y, &x, &seen_x) };
            mine.store(1, Ordering::Relaxed);
            std::sync::atomic::fence(Ordering::SeqCst);
            seen.store(other.load(Ordering::Relaxed), Ordering::Relaxed);
            round_end.wait();
            if id == 0 && seen_x.load(Ordering::Relaxed) + seen_y.load(Ordering::Relaxed) == 0 {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    wrong.into_inner() == 0
}

/// Two threads wake each other through a futex, strictly by turns.
fn ping_pong(_threads: u64) -> bool {
    const TURNS: u64 = 1000;
    let (turn, woken) = (Mutex::new(0_u64), Condvar::new());
    on_threads(2, |id| {
        for n in 0..TURNS {
            let Ok(guard) = turn.lock() else { return };
            let Ok(mut guard) = woken.wait_while(guard, |now| *now != 2 * n + id) else { return };
            *guard += 1;
            woken.notify_all();
        }
    });
    turn.into_inner().is_ok_and(|turns| turns == 2 * TURNS)
}
