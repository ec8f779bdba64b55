//! What is measured of a VMM on KVM: how long it boots, what an idle guest takes of a processor,
//! and how much memory the VMM has beside its guest's.

use super::boot::boot;
use crate::kit::Kit;
use crate::machine::{Guest, MEMORY_MIB, Next, Running, Vmm};
use anyhow::{Context, Result, bail};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Of one VMM.
#[derive(Default)]
pub(super) struct Figures {
    /// Seconds to `/init`.
    pub(super) boots: Vec<f64>,
    pub(super) idle_percent: f64,
    pub(super) overhead_bytes: u64,
}

/// An idle guest has come to rest after so long.
const SETTLE: Duration = Duration::from_secs(5);
/// A boot that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(240);

/// Fathom's guest RAM is a file, and may be mapped more than once; QEMU's has no name, but is the
/// one mapping of its size.
const GUEST_RAM: &str = "/memfd:fathom-guest-ram";
const GUEST_RAM_KIB: u64 = MEMORY_MIB << 10;

/// Fathom and QEMU, by turns.
pub(super) fn all(kit: &Kit, runs: usize, idle: Duration) -> Result<[Figures; 2]> {
    let vmms = [Vmm::FathomKvm, Vmm::QemuKvm];
    let mut figures = [Figures::default(), Figures::default()];
    for number in 1..=runs {
        for (vmm, figures) in vmms.iter().zip(&mut figures) {
            let took = boot(kit, *vmm)?;
            eprintln!("boot {number} of {runs}: {:10} {took:7.3} s", vmm.name());
            figures.boots.push(took);
        }
    }
    for (vmm, figures) in vmms.iter().zip(&mut figures) {
        (figures.idle_percent, figures.overhead_bytes) = at_rest(kit, *vmm, idle)?;
    }
    Ok(figures)
}

/// Percent of a processor, and bytes, of a guest with nothing to do.
fn at_rest(kit: &Kit, vmm: Vmm, span: Duration) -> Result<(f64, u64)> {
    let words = "quiet fathom.modules=none fathom.run=boot fathom.end=stay";
    let mut running = Guest::new(kit, words).start(vmm)?;
    wait_for_end(&mut running)?;
    thread::sleep(SETTLE);
    let (started, before) = (Instant::now(), cpu_time(running.pid())?);
    thread::sleep(span);
    let spent = cpu_time(running.pid())?.saturating_sub(before);
    let percent = 100.0 * spent.as_secs_f64() / started.elapsed().as_secs_f64();
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", running.pid()))?;
    let overhead = overhead(&smaps).with_context(|| format!("{}'s memory", vmm.name()))?;
    eprintln!("idle: {:10} {percent:.2} %, {} KiB", vmm.name(), overhead >> 10);
    Ok((percent, overhead))
}

/// All work is done then, and the guest stays.
fn wait_for_end(running: &mut Running) -> Result<()> {
    loop {
        match running.next(LONGEST.saturating_sub(running.elapsed())) {
            Next::Event(event) if event.is("end") => return Ok(()),
            Next::Event(_) => {}
            Next::Quiet => bail!("the guest never came to rest"),
            Next::Ended => bail!("the guest ended, and was to stay"),
        }
    }
}

/// Of all threads, to the nanosecond: guests' time is in it. proc(5) counts clock ticks, between
/// which an idle guest's short moments fall.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("its threads")? {
        // A thread may end between the two looks.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// Resident bytes of all mappings but guest RAM's.
fn overhead(smaps: &str) -> Result<u64> {
    let (mut kib, mut in_guest, mut seen) = (0, false, false);
    for line in smaps.lines() {
        if let Some(size) = kib_of(line, "Size:") {
            in_guest |= size == GUEST_RAM_KIB;
            seen |= in_guest;
        } else if let Some(resident) = kib_of(line, "Rss:") {
            kib += if in_guest { 0 } else { resident };
        } else if is_mapping(line) {
            in_guest = line.contains(GUEST_RAM);
        }
    }
    if !seen {
        bail!("no mapping is guest RAM's, of {} lines", smaps.lines().count());
    }
    Ok(kib << 10)
}

fn kib_of(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().trim_end_matches(" kB").parse().ok()
}

/// `7f0000000000-7f0010000000 rw-s ...`, where other lines begin with a name and a colon.
fn is_mapping(line: &str) -> bool {
    line.split_once(' ').is_some_and(|(range, _)| range.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        let smaps = "\
7f0000000000-7f0010000000 RAM
Size:             262144 kB
Rss:               79544 kB
55d000000000-55d000100000 r-xp 00000000 fe:00 12 /usr/bin/program
Size:               4096 kB
Rss:                3536 kB
VmFlags: rd ex
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   4 kB
";
        let qemu = smaps.replace("RAM", "rw-p 00000000 00:00 0");
        assert_eq!(overhead(&qemu).unwrap(), 3540 << 10);
        let second_half = smaps.replace("262144 kB", "131072 kB");
        let name = "rw-s 08000000 00:01 9 /memfd:fathom-guest-ram (deleted)";
        assert_eq!(overhead(&second_half.replace("RAM", name)).unwrap(), 3540 << 10);
        assert!(overhead(&second_half).is_err());
    }

    #[test]
    fn this_process_has_run() {
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
    }
}
