//! The workloads.

mod alloc_free;
mod hostile;
mod integer;
mod phases;
pub(crate) mod program;
mod reuse;
mod smp;
mod sweep;
mod verify;

use crate::report::emit;
use crate::request::{Request, Work};
use crate::selftest;
use crate::{beat, bench, cache, litmus, patching};

/// For the usage line.
pub(crate) const NAMES: &str = "boot phases:MIB,... reuse:step|cycle|skew,MIB,... integer:MILLIONS sweep:MIB alloc-free:MIB \
    verify:MIB,OPERATIONS \
     smp:THREADS litmus[:NAME,...] patching[:NAME,...] bench:NAME,... bench:list cache:LOAD[,MIB] beat:kernel|redis|web|sqlite3|build[,MIB] selftest[:NAME] tests exec:PROGRAM disk:PROGRAM sh";

/// Do all that is asked, in order; false if anything failed.
pub(crate) fn run_all(request: &Request) -> bool {
    let mut ok = true;
    for work in &request.works {
        ok &= run(work, request);
    }
    ok
}

fn run(work: &Work, request: &Request) -> bool {
    match work.name.as_str() {
        // Being here is all that was asked.
        "boot" => true,
        "phases" => phases::run(&work.numbers(), request),
        "reuse" => reuse::run(work, request),
        "integer" => integer::run(work.number_or(100)),
        "sweep" => sweep::run(work.number_or(64)),
        "alloc-free" => alloc_free::run(work.number_or(64), request.phase),
        "verify" => verify::run(&request.scratch, &work.numbers()),
        "hostile" => hostile::run(&work.args, request),
        "smp" => smp::run(work.number_or(crate::sys::cpus_online())),
        "litmus" => litmus::run(&work.args, request.scale_percent),
        "patching" => patching::run(&work.args, request.scale_percent),
        "selftest" => selftest::run(&work.args),
        "tests" => selftest::run("") & smp::run(crate::sys::cpus_online()) & integer::run(20),
        "exec" => program::run(&work.command()),
        "disk" => program::run_from_disk(&work.command(), &request.root),
        "cache" => cache::run(work, request),
        "beat" => beat::run(work, request),
        "bench" => bench::run(work, request),
        "sh" => program::shell(),
        name => {
            emit("unknown", &[("name", name.into()), ("known", NAMES.into())]);
            false
        }
    }
}
