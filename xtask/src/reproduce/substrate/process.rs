//! VMs that run, seen from outside: what memory each has to itself, when it first said something, and their end.

use crate::machine::Event;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A VM that says nothing for so long has failed.
const SPEAK_LONGEST: Duration = Duration::from_secs(120);
/// It is looked so often whether one has said something.
const LOOK: Duration = Duration::from_millis(1);
const END_LONGEST: Duration = Duration::from_secs(10);

/// By `smaps_rollup` (Documentation/filesystems/proc.rst), bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Memory {
    /// `Private_*`
    pub(super) private: f64,
    /// `Private_Dirty`: not even in a file
    pub(super) dirty: f64,
    /// `Pss`: what several have counts by parts
    pub(super) proportional: f64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let kib = line.split_whitespace().next().and_then(|kib| kib.parse().ok());
            kib.unwrap_or(0.0) * 1024.0
        };
        let dirty = of("Private_Dirty:");
        Self { private: dirty + of("Private_Clean:"), dirty, proportional: of("Pss:") }
    }
}

/// Ended when dropped.
pub(super) struct Vms(pub(super) Vec<u32>);

impl Vms {
    /// When each had its first beat on its console, since `begun`. A guest that does not go on from beat `saved` is
    /// none that was saved.
    /// It is given up when `failed`.
    pub(super) fn first_beats(
        consoles: &[PathBuf],
        begun: Instant,
        saved: u64,
        failed: &AtomicBool,
    ) -> Result<Vec<Duration>> {
        let mut first = vec![None; consoles.len()];
        while first.iter().any(Option::is_none) {
            let silent = first.iter().filter(|first| first.is_none()).count();
            if begun.elapsed() > SPEAK_LONGEST || failed.load(Ordering::Relaxed) {
                bail!("{silent} of {} VMs say nothing", first.len());
            }
            for (console, first) in consoles.iter().zip(&mut first) {
                if first.is_none() {
                    *first = has_beaten(console, saved)?.then(|| begun.elapsed());
                }
            }
            sleep(LOOK);
        }
        Ok(first.into_iter().flatten().collect())
    }

    pub(super) fn memory(&self) -> Result<Vec<Memory>> {
        self.0.iter().map(|&pid| Memory::of(pid)).collect()
    }

    fn pids(&self) -> impl Iterator<Item = Pid> {
        self.0.iter().filter_map(|pid| Pid::from_raw(pid.cast_signed()))
    }
}

/// Whether there is a beat on a console, and whether the guest goes on from where it was saved.
fn has_beaten(console: &Path, saved: u64) -> Result<bool> {
    let said = fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let (whole, _) = said.rsplit_once('\n').unwrap_or_default();
    let mut events = whole.lines().filter_map(|line| Event::parse(Duration::ZERO, line));
    let Some(event) = events.find(|event| event.is("beat")) else { return Ok(false) };
    let (error, number) = (event.text("error"), event.number("n"));
    if !error.is_empty() || number <= saved {
        bail!("a VM is not the one that was saved: beat {number} after {saved}; {error}");
    }
    Ok(true)
}

/// Whether it is a process that has not ended: one that nobody has waited for is listed still.
fn runs(pid: Pid) -> bool {
    let stat =
        fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

impl Drop for Vms {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while self.pids().any(runs) && begun.elapsed() < 2 * END_LONGEST {
            if begun.elapsed() > END_LONGEST {
                for pid in self.pids() {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            sleep(Duration::from_millis(5));
        }
        // Those that are our own children.
        for pid in self.pids() {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernel_s_sums() {
        let text = "00400000-7fff ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPss: 300 kB\n\
                    Private_Clean: 8 kB\nPrivate_Dirty: 100 kB\n";
        let memory = Memory::parse(text);
        assert_eq!((memory.private, memory.dirty), (108.0 * 1024.0, 100.0 * 1024.0));
        assert!((memory.proportional - 300.0 * 1024.0).abs() < 1.0);
        assert!(Memory::of(std::process::id()).unwrap().private > 0.0);
    }

    #[test]
    fn a_vm_that_has_booted_again_is_not_the_one_that_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let console = folder.path().join("console");
        let beaten = || has_beaten(&console, 41).map_err(drop);
        let says = |text: &str| {
            fs::write(&console, text).unwrap();
            beaten()
        };
        assert_eq!(beaten(), Ok(false), "it has said nothing yet");
        assert_eq!(says("at\",\"n\":41}\n@fathom {\"event\":\"beat\",\"n\":42"), Ok(false));
        assert_eq!(says("x\n@fathom {\"event\":\"beat\",\"n\":42}\n"), Ok(true));
        assert_eq!(says("@fathom {\"event\":\"beat\",\"n\":1}\n"), Err(()));
    }
}
