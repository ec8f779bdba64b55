//! How fast absent frames are supplied from buffers in the processor's cache, with batches of several sizes; beside
//! it, page after page by faults. GiB a second by the clock, all threads together / of processor time; medians.
//!
//! `cargo bench -p memory --bench supply`

#![allow(missing_docs, clippy::unwrap_used, reason = "a program that prints figures")]

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use memory::{Access, Discard, FRAME_SIZE, Frame, GuestMemory, Source, SourceError, SourceId};

/// 512 MiB.
const FRAMES: u32 = 131_072;
const ROUNDS: usize = 7;

/// Gives every frame the same contents.
struct Same;

impl Source for Same {
    fn fetch(&self, _: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        into.fill(0x5a);
        Ok(())
    }
}

fn main() {
    let memory = GuestMemory::with_bytes(u64::from(FRAMES) * FRAME_SIZE as u64).unwrap();
    let source = memory.add_source(Arc::new(Same)).unwrap();
    println!("{:<24} {:>15} {:>15}", "GiB/s", "1 thread", "2 threads");
    for batch in [1, 4, 16, 64, 256] {
        let supply = |first: u32, count: u32| supply(&memory, source, first, count, batch);
        print_rates(&format!("supply, batches of {batch}"), &memory, source, supply);
    }
    let fault = |first: u32, count: u32| {
        for frame in first..first + count {
            memory.resolve(Frame(frame), Access::Read).unwrap();
        }
    };
    print_rates("resolve", &memory, source, fault);
}

fn supply(memory: &GuestMemory, source: SourceId, first: u32, count: u32, batch: u32) {
    let buffers = vec![[0x5a; FRAME_SIZE]; batch as usize];
    for first in (first..first + count).step_by(batch as usize) {
        let pages: Vec<_> = (first..).map(Frame).zip(&buffers).collect();
        assert_eq!(memory.supply(source, &pages).unwrap(), batch);
    }
}

fn print_rates(
    name: &str,
    memory: &GuestMemory,
    source: SourceId,
    bring: impl Fn(u32, u32) + Sync,
) {
    let rates = [1, 2].map(|threads| {
        let (mut clock, mut processor): (Vec<_>, Vec<_>) =
            (0..ROUNDS).map(|_| rate(memory, source, threads, &bring)).unzip();
        clock.sort_by(f64::total_cmp);
        processor.sort_by(f64::total_cmp);
        format!("{:.2} / {:.2}", clock[ROUNDS / 2], processor[ROUNDS / 2])
    });
    println!("{name:<24} {:>15} {:>15}", rates[0], rates[1]);
}

/// Has all frames brought in by `threads` threads, each its part of them.
fn rate(
    memory: &GuestMemory,
    source: SourceId,
    threads: u32,
    bring: impl Fn(u32, u32) + Sync,
) -> (f64, f64) {
    memory.discard((0..FRAMES).map(Frame), Discard::Reported).unwrap();
    memory.make_absent((0..FRAMES).map(Frame), source).unwrap();
    let (begin, bring) = (&Barrier::new(threads as usize + 1), &bring);
    let part = FRAMES / threads;
    let started = thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                begin.wait();
                bring(thread * part, part);
            });
        }
        begin.wait();
        (Instant::now(), processor_seconds())
    });
    let (clock, processor) = (started.0.elapsed().as_secs_f64(), processor_seconds() - started.1);
    assert_eq!(memory.counts().resident, FRAMES);
    let gib = f64::from(FRAMES) * FRAME_SIZE as f64 / f64::from(1 << 30);
    (gib / clock, gib / processor)
}

/// Of this process.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
