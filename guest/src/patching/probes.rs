//! Kprobes: breakpoints on the kernel's own instructions, or jumps where it can make them such.

use super::{Result, Test, busy, expect, read, tracefs, write};

pub(super) const TESTS: &[Test] = &[
    ("kprobe", entry),
    ("kretprobe", returns),
    ("kprobe-inside", inside),
    ("kprobe-optimized", optimized),
];

const PROFILE: &str = "kprobe_profile";
const PROBES: &str = "kprobe_events";

/// A probe, gone when dropped.
struct Probe {
    name: String,
}

impl Probe {
    fn new(name: &str, definition: &str) -> Result<Self> {
        let (kind, rest) = definition.split_once(' ').ok_or("no definition")?;
        tracefs::set(PROBES, &format!("{kind}:fathom/{name} {rest}"))?;
        Ok(Self { name: name.to_owned() })
    }

    fn switch(&self, on: bool) -> Result<()> {
        tracefs::set(&format!("events/fathom/{}/enable", self.name), if on { "1" } else { "0" })
    }

    fn hits(&self) -> Result<u64> {
        tracefs::hits(PROFILE, &self.name)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // One that is not there is gone as well.
        let _ = self.switch(false);
        let _ = tracefs::set(PROBES, &format!("-:fathom/{}", self.name));
    }
}

/// Made, switched and deleted while the function is called; then hit by each call, and not when off.
fn exactly(rounds: u64, name: &str, definition: &str) -> Result<String> {
    let calls = busy::during(|| {
        for _ in 0..rounds {
            let probe = Probe::new(name, definition)?;
            probe.switch(true)?;
            probe.switch(false)?;
            probe.switch(true)?;
        }
        Ok(())
    })?;
    let probe = Probe::new(name, definition)?;
    probe.switch(true)?;
    let made = busy::call(500)?;
    probe.switch(false)?;
    busy::call(100)?;
    expect("hits", probe.hits()?, made)?;
    Ok(format!("{rounds} times during {calls} calls"))
}

fn entry(rounds: u64) -> Result<String> {
    exactly(rounds, "entry", &format!("p {}", busy::COUNTED))
}

/// Behind the call that every function begins with there is no tracer to use: a breakpoint.
fn inside(rounds: u64) -> Result<String> {
    let exact = exactly(rounds, "inside", &format!("p {}+5", busy::COUNTED))?;
    // Wherever else an instruction begins. What is jumped over has fewer hits.
    let length = function_length(busy::COUNTED)?;
    let at = |offset| Probe::new(&format!("at{offset}"), &format!("p {}+{offset}", busy::COUNTED));
    let probes: Vec<Probe> = (5..length).filter_map(|offset| at(offset).ok()).collect();
    probes.iter().try_for_each(|probe| probe.switch(true))?;
    let made = busy::call(300)?;
    probes.iter().try_for_each(|probe| probe.switch(false))?;
    let hits = probes.iter().map(Probe::hits).collect::<Result<Vec<_>>>()?;
    expect("hits behind the entry", hits.first().copied().unwrap_or(0), made)?;
    if hits.iter().any(|hits| *hits > made) {
        return Err(format!("{made} calls hit {hits:?}"));
    }
    Ok(format!("{exact}; {} probes in {length} bytes", probes.len()))
}

/// Jumps become breakpoints and jumps again, while they are hit.
fn optimized(rounds: u64) -> Result<String> {
    const SWITCH: &str = "/proc/sys/debug/kprobes-optimization";
    let probe = Probe::new("jump", &format!("p {}+5", busy::COUNTED))?;
    probe.switch(true)?;
    let calls = busy::during(|| {
        for round in 0..rounds {
            write(SWITCH, if round % 2 == 0 { "0" } else { "1" })?;
            // The kernel makes jumps of breakpoints after a while, not at once.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    });
    write(SWITCH, "1")?;
    let (calls, hits) = (calls?, probe.hits()?);
    expect("hits while it changed", hits, calls)?;
    let made = busy::call(500)?;
    expect("hits", probe.hits()?, calls + made)?;
    Ok(format!("{rounds} times during {calls} calls"))
}

/// The return address is replaced; what is returned is told.
fn returns(rounds: u64) -> Result<String> {
    let definition = format!("r {} group=$retval:s32", busy::COUNTED);
    let said = exactly(rounds, "returns", &definition)?;
    let probe = Probe::new("value", &definition)?;
    tracefs::forget_trace()?;
    probe.switch(true)?;
    let made = busy::call(50)?;
    probe.switch(false)?;
    // SAFETY: takes nothing, gives a number back.
    let wanted = format!("group={}", unsafe { libc::getpgrp() });
    let trace = read(&tracefs::path("trace"))?;
    let right =
        trace.lines().filter(|line| line.split_whitespace().any(|word| word == wanted)).count();
    tracefs::forget_trace()?;
    expect("right values", right as u64, made)?;
    Ok(said)
}

/// From its address to that of the next.
fn function_length(name: &str) -> Result<u64> {
    let symbols = read("/proc/kallsyms")?;
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)? == name))
    };
    let symbols: Vec<(u64, bool)> = symbols.lines().filter_map(parse).collect();
    let start = symbols.iter().find(|(_, named)| *named).ok_or(format!("no symbol {name}"))?.0;
    let next = symbols.iter().map(|(address, _)| *address).filter(|address| *address > start).min();
    Ok(next.map_or(64, |next| next - start).min(200))
}
