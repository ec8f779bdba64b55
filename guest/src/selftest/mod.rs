//! Does this processor do what the manuals say, as a Linux program sees it?
//!
//! The ideas are those of the kernel's own `tools/testing/selftests/x86`. Each test runs in a
//! child process, so that one which goes astray fails and harms no other. All pass on a real
//! x86-64 processor under Linux; what the processor or kernel lacks is told as skipped.

mod code;
mod fault;
mod feature;
mod paging;
mod segment;
mod signal;
mod simd;
mod step;
mod syscall;
mod time;

use crate::report::emit;
use std::time::Duration;

/// What a test has to say.
pub(crate) enum Verdict {
    Ok,
    /// What was seen and what should have been.
    Wrong(String),
    /// What the machine lacks.
    Skipped(&'static str),
}

impl Verdict {
    /// Right if every value is what it should be; else the first that is not.
    fn values(values: &[(&str, u64, u64)]) -> Self {
        match values.iter().find(|(_, seen, expected)| seen != expected) {
            None => Self::Ok,
            Some((name, seen, expected)) => {
                Self::Wrong(format!("{name}: {seen:#x}, not {expected:#x}"))
            }
        }
    }

    fn of(ok: bool, otherwise: &str) -> Self {
        if ok { Self::Ok } else { Self::Wrong(otherwise.to_owned()) }
    }

    /// The first that is not right, else right.
    fn all(verdicts: impl IntoIterator<Item = Self>) -> Self {
        verdicts.into_iter().find(|verdict| !matches!(verdict, Self::Ok)).unwrap_or(Self::Ok)
    }

    fn named(self, name: &str) -> Self {
        match self {
            Self::Wrong(why) => Self::Wrong(format!("{name}: {why}")),
            other => other,
        }
    }
}

type Test = (&'static str, fn() -> Verdict);

/// A test that runs longer hangs: generous, since machines under test may be slow.
const LONGEST: Duration = Duration::from_secs(120);

/// Run all tests whose name contains `filter`; false if one failed or none was found.
pub(crate) fn run(filter: &str) -> bool {
    let all = [
        fault::TESTS,
        step::TESTS,
        syscall::TESTS,
        segment::TESTS,
        simd::TESTS,
        feature::TESTS,
        code::TESTS,
        paging::TESTS,
        time::TESTS,
    ];
    let chosen: Vec<&Test> =
        all.into_iter().flatten().filter(|(name, _)| name.contains(filter)).collect();
    let without = without();
    let failed = chosen.iter().filter(|test| !run_unless(test, &without)).count();
    let counts = [("run", chosen.len() as u64), ("failed", failed as u64)];
    emit("selftest", &counts.map(|(name, count)| (name, count.into())));
    failed == 0 && !chosen.is_empty()
}

/// Tests named by `fathom.without=A,B` on the kernel's command line: those that harm the kernel of a
/// machine whose processor is known to be wrong.
fn without() -> Vec<String> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let names =
        line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("fathom.without="));
    names.flat_map(|names| names.split(',')).map(str::to_owned).collect()
}

fn run_unless(test: &Test, without: &[String]) -> bool {
    if without.iter().any(|name| name == test.0) {
        return told(test.0, Verdict::Skipped("as asked"));
    }
    run_apart(test)
}

/// One test in a child process; its verdict comes back as the exit status and a line it printed.
fn run_apart((name, test): &Test) -> bool {
    // SAFETY: this program has one thread here, so the child may do anything.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no memory is passed.
        unsafe { libc::alarm(LONGEST.as_secs() as u32) };
        std::process::exit(i32::from(!told(name, test())));
    }
    let mut status = 0;
    // SAFETY: `status` is a valid int for the call to fill.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if waited == child && libc::WIFEXITED(status) {
        return libc::WEXITSTATUS(status) == 0;
    }
    let why = format!("killed by signal {}", libc::WTERMSIG(status));
    emit("test", &[("name", (*name).into()), ("ok", false.into()), ("why", why.as_str().into())]);
    false
}

fn told(name: &str, verdict: Verdict) -> bool {
    let name = ("name", name.into());
    match verdict {
        Verdict::Ok => emit("test", &[name, ("ok", true.into())]),
        Verdict::Skipped(why) => {
            emit("test", &[name, ("ok", true.into()), ("skipped", why.into())]);
        }
        Verdict::Wrong(why) => {
            emit("test", &[name, ("ok", false.into()), ("why", why.as_str().into())]);
            return false;
        }
    }
    true
}
