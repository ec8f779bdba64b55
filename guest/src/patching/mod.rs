//! The kernel changes its own code while processors run it.
//!
//! Tracing, probes, static keys, modules and BPF all write instructions into memory that other processors are
//! executing, by rules that hardware keeps (the kernel's `text_poke_bp`: a breakpoint first, then the rest; SDM
//! vol. 3, 9.1.3). Here they are switched while both processors are busy in just that code, and what was
//! traced must be what was called: no call missed, none counted twice, no result wrong.

mod bpf;
mod busy;
mod filters;
mod keys;
mod modules;
mod probes;
mod programs;
pub(crate) mod tracefs;
mod tracers;
mod user_probes;

use crate::report::emit;
use std::fs;

type Result<T> = std::result::Result<T, String>;

/// What was seen, or what is wrong.
type Test = (&'static str, fn(rounds: u64) -> Result<String>);

/// What a test begins with that says that this kernel has no such thing.
const SKIPPED: &str = "skipped: ";

/// Run all tests whose name contains one of `names`, separated by commas; false if one failed or there was none.
pub(crate) fn run(names: &str, percent: u64) -> bool {
    if let Err(why) = tracefs::mount() {
        return tell("tracefs", &Err(why));
    }
    let taint = tainted();
    let all = [
        modules::TESTS,
        keys::TESTS,
        tracers::TESTS,
        probes::TESTS,
        user_probes::TESTS,
        filters::TESTS,
        programs::TESTS,
    ];
    let is_asked_for = |test: &&Test| names.split(',').any(|name| test.0.contains(name));
    let (mut run, mut failed) = (0, 0_u64);
    for (name, test) in all.into_iter().flatten().filter(is_asked_for) {
        run += 1;
        failed += u64::from(!tell(name, &test((20 * percent / 100).max(1))));
    }
    let calm = if tainted() == taint { Ok(String::new()) } else { Err(tainted()) };
    failed += u64::from(!tell("taint", &calm));
    let counts = [("run", run), ("failed", failed)];
    emit("patching", &counts.map(|(name, count)| (name, count.into())));
    failed == 0 && run > 0
}

/// Why the kernel does not trust itself any more: it warned, it oopsed (Documentation/admin-guide/tainted-kernels).
fn tainted() -> String {
    const BAD: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14;
    let text = fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default();
    let flags = text.trim().parse::<u64>().unwrap_or(u64::MAX);
    format!("taint {:#x}", flags & BAD)
}

fn tell(name: &str, result: &Result<String>) -> bool {
    let name = format!("patch-{name}");
    let told = match result {
        Ok(seen) => ("seen", seen.as_str().into()),
        Err(why) => ("why", why.as_str().into()),
    };
    emit("test", &[("name", name.as_str().into()), ("ok", result.is_ok().into()), told]);
    result.is_ok()
}

fn expect(what: &str, seen: u64, expected: u64) -> Result<()> {
    if seen == expected { Ok(()) } else { Err(format!("{what}: {seen}, not {expected}")) }
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .append(true)
        .open(file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|error| format!("write {text:?} to {file}: {error}"))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(file).map_err(|error| format!("read {file}: {error}"))
}
