//! Litmus tests: what two or more processors may see of each other's loads and stores.
//!
//! Each shape is a few instructions a thread on shared words that begin as 0, run a great many times,
//! with what every thread has seen afterwards counted. x86 allows some outcomes and forbids others
//! (Intel SDM vol. 3, 9.2 "Memory Ordering"; P. Sewell et al., "x86-TSO", CACM 53(7), 2010, from which
//! the shapes have their usual names): one forbidden outcome fails. Of some shapes one outcome needs
//! a store buffer to come about; how often it was seen is told, and need not be at all.

mod atomic;
mod clock;
mod round;
mod shapes;
mod split;
mod thread;

use crate::report::emit;
use crate::sys::{cpus_online, pin_to_cpu};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

/// One test. What a thread is called with and gives back is told at [`thread::Thread`].
struct Shape {
    name: &'static str,
    threads: &'static [thread::Thread],
    /// What is looked at, as places in an [`Outcome`].
    looks_at: &'static [usize],
    forbidden: fn(&[u64]) -> bool,
    /// Allowed, but not if loads and stores took place in some order one by one.
    relaxed: Option<&'static [u64]>,
    /// Of the ordinary number of rounds, for instructions that take long.
    percent: u64,
}

/// What the two results of threads 0 to 3 were, and the two words afterwards.
type Outcome = [u64; 10];

const X: usize = 8;
const Y: usize = 9;

/// Where an [`Outcome`] has what a thread saw first, and second.
const fn first(thread: usize) -> usize {
    2 * thread
}

const fn second(thread: usize) -> usize {
    2 * thread + 1
}

/// Times that a shape is run.
const ROUNDS: u64 = 100_000;

/// Run all shapes that there are processors for, and the other tests of the kind, or those whose name has one
/// of `names` in it; false if one failed or there was none.
pub(crate) fn run(names: &str, percent: u64) -> bool {
    let cpus = cpus_online();
    let is_asked_for = |test: &str| names.split(',').any(|name| test.contains(name));
    let (mut run, mut failed) = (0, 0);
    for shape in shapes::SHAPES.iter().filter(|shape| is_asked_for(shape.name)) {
        run += 1;
        let ok = if shape.threads.len() as u64 > cpus {
            tell(shape.name, Ok("skipped: more threads than processors"))
        } else {
            judge(shape, &round::run(shape, ROUNDS * percent * shape.percent / 10_000))
        };
        failed += u64::from(!ok);
    }
    let others = [atomic::TESTS, split::TESTS, clock::TESTS].into_iter().flatten();
    for (name, test) in others.filter(|(name, _)| is_asked_for(name)) {
        let result = test((ROUNDS * percent / 100).max(100));
        let ok = match &result {
            Ok(said) => tell(name, Ok(said)),
            Err(why) => tell(name, Err(why)),
        };
        run += 1;
        failed += u64::from(!ok);
    }
    let counts = [("cpus", cpus), ("percent", percent), ("run", run), ("failed", failed)];
    emit("litmus", &counts.map(|(name, count)| (name, count.into())));
    failed == 0 && run > 0
}

/// One of the tests that are no shape: given how often, it says what it has seen, or what was wrong.
type Test = (&'static str, fn(u64) -> Result<String, String>);

fn judge(shape: &Shape, histogram: &BTreeMap<Vec<u64>, u64>) -> bool {
    let counted = histogram.iter().map(|(seen, count)| format!("{}: {count}", words(seen)));
    let counted = counted.collect::<Vec<_>>().join(", ");
    // No thread stores more than 2.
    let wrong = |seen: &[u64]| seen.iter().any(|&value| value > 2) || (shape.forbidden)(seen);
    if let Some((seen, count)) = histogram.iter().find(|(seen, _)| wrong(seen)) {
        let why = format!("forbidden outcome {}, {count} times, of {counted}", words(seen));
        return tell(shape.name, Err(&why));
    }
    let said = match shape.relaxed {
        None => counted,
        Some(relaxed) => {
            let count = histogram.get(relaxed).copied().unwrap_or(0);
            format!("{counted}; relaxed {}: {count}", words(relaxed))
        }
    };
    tell(shape.name, Ok(&said))
}

fn words(seen: &[u64]) -> String {
    seen.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn tell(name: &str, result: Result<&str, &str>) -> bool {
    let name = format!("litmus-{name}");
    let told = match result {
        Ok(seen) => ("seen", seen.into()),
        Err(why) => ("why", why.into()),
    };
    emit("test", &[("name", name.as_str().into()), ("ok", result.is_ok().into()), told]);
    result.is_ok()
}

/// Run `body` on two threads, each on a processor of its own, at the same time if both have one.
fn on_two(body: impl Fn(usize) + Sync) {
    let (start, running) = (Barrier::new(2), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for id in 0..2 {
            let (start, running, body) = (&start, &running, &body);
            scope.spawn(move || {
                pin_to_cpu(id as u64);
                start.wait();
                running.fetch_add(1, Ordering::Relaxed);
                let both = |_: &u32| running.load(Ordering::Relaxed) == 2;
                let _ = (0..round::LOOKS).find(both);
                body(id);
            });
        }
    });
}
