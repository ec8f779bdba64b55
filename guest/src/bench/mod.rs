//! Fixed amounts of work, each timed by itself: what `cargo xtask bench engines` compares
//! engines by.
//!
//! Every workload says when it begins and when it ended, and how long that took on
//! `CLOCK_MONOTONIC`. Whoever reads the console can check that against a clock of their own.
//!
//! ```text
//! @fathom {"event":"bench","name":"fib","state":"begin",..}
//! @fathom {"event":"bench","name":"fib","state":"end","nanoseconds":..,"checksum":"..",..}
//! @fathom {"event":"bench","name":"avx2","state":"skipped","error":"no AVX2 here",..}
//! ```
//!
//! The checksum is of the work's results: it must be the same wherever the work is done. What
//! goes into a loop and what comes out of it passes through `black_box`, so that no compiler can
//! do the work beforehand or not at all; and it is one and the same program everywhere.

mod cold;
mod compute;
mod control;
mod files;
mod float;
mod kernel;
mod memory;
mod process;
mod programs;
mod threads;

use crate::random::Random;
use crate::report::emit;
use crate::request::{Request, Work};
use crate::sys;
use std::io::{Error, ErrorKind, Result};

/// One kind of work.
struct Workload {
    name: &'static str,
    group: &'static str,
    /// How much of it at a scale of 100 %, in the work's own unit.
    amount: u64,
    cpus: u64,
    run: fn(&Job<'_>) -> Result<()>,
}

/// One piece of work to do.
struct Job<'a> {
    name: &'static str,
    amount: u64,
    request: &'a Request,
}

const GROUPS: [&[Workload]; 10] = [
    &compute::WORKLOADS,
    &memory::WORKLOADS,
    &float::WORKLOADS,
    &control::WORKLOADS,
    &kernel::WORKLOADS,
    &process::WORKLOADS,
    &files::WORKLOADS,
    &programs::WORKLOADS,
    // After all others: it leaves its engine with memory that was code once.
    &cold::WORKLOADS,
    &threads::WORKLOADS,
];

/// Do the works whose names are given; of one processor all, of two processors all, or tell
/// which there are, for the names `one`, `two` and `list`.
pub(crate) fn run(work: &Work, request: &Request) -> bool {
    let mut ok = true;
    for name in work.args.split(',').map(str::trim) {
        let chosen: Vec<_> = workloads().filter(|workload| workload.answers_to(name)).collect();
        if name == "list" {
            workloads().for_each(Workload::describe);
        } else if chosen.is_empty() {
            emit("unknown", &[("name", name.into())]);
            ok = false;
        }
        for workload in chosen {
            ok &= workload.perform(request);
        }
    }
    ok
}

fn workloads() -> impl Iterator<Item = &'static Workload> {
    GROUPS.into_iter().flatten()
}

impl Workload {
    fn answers_to(&self, name: &str) -> bool {
        match name {
            "one" => self.cpus == 1,
            "two" => self.cpus == 2,
            name => self.name == name,
        }
    }

    fn describe(&self) {
        emit(
            "workload",
            &[("name", self.name.into()), ("group", self.group.into()), ("cpus", self.cpus.into())],
        );
    }

    fn perform(&self, request: &Request) -> bool {
        // Processes share one, as in a guest that has one only. A thread alone may move.
        if ["process", "programs"].contains(&self.group) {
            sys::stay_on_this_cpu();
        }
        let amount = (self.amount * request.scale_percent / 100).max(1);
        let done = (self.run)(&Job { name: self.name, amount, request });
        sys::go_on_any_cpu();
        match done {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Unsupported => self.says("skipped", &error),
            Err(error) => !self.says("failed", &error),
        }
    }

    fn says(&self, state: &str, error: &Error) -> bool {
        let error = error.to_string();
        let fields =
            [("name", self.name.into()), ("state", state.into()), ("error", error.as_str().into())];
        emit("bench", &fields);
        true
    }
}

impl Job<'_> {
    /// Do the work and tell its time and the checksum that it returns; what must be made ready
    /// for it, the caller has made ready.
    fn measure(&self, work: impl FnOnce() -> Result<u64>) -> Result<()> {
        emit("bench", &[("name", self.name.into()), ("state", "begin".into())]);
        sys::drain_output();
        let start = sys::clock(libc::CLOCK_MONOTONIC);
        let checksum = work();
        let nanoseconds = sys::clock(libc::CLOCK_MONOTONIC) - start;
        emit(
            "bench",
            &[
                ("name", self.name.into()),
                ("state", "end".into()),
                ("nanoseconds", nanoseconds.into()),
                ("checksum", format!("{:016x}", checksum?).as_str().into()),
            ],
        );
        Ok(())
    }
}

fn unsupported(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, why.into())
}

/// One value after the other makes one checksum.
fn mix(checksum: u64, value: u64) -> u64 {
    (checksum ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

fn mix_bytes(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |checksum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(checksum, u64::from_le_bytes(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_none_means_several() {
        let names: BTreeSet<_> = workloads().map(|workload| workload.name).collect();
        assert_eq!(names.len(), workloads().count());
        assert!(["one", "two", "list"].iter().all(|name| !names.contains(name)));
    }

    #[test]
    fn a_checksum_knows_order_and_length() {
        assert_ne!(mix(mix(0, 1), 2), mix(mix(0, 2), 1));
        assert_ne!(mix_bytes(b"a"), mix_bytes(b"a\0"));
    }
}
