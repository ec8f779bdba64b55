//! A guest with a load, and what was found of it.

use super::super::place::Place;
use super::loads::Load;
use super::log::{self, Accesses, Line};
use super::truth::{self, Truth};
use crate::kit::Kit;
use crate::machine::{Event, Guest};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LONGEST: Duration = Duration::from_secs(600);

/// What is known of a run.
pub(super) struct Recording {
    pub(super) lines: Vec<Line>,
    /// None where the engine does not tell of accesses one by one: there is what the load says of itself.
    pub(super) truth: Option<Truth>,
    pub(super) phases: Vec<Phase>,
    /// When the work began and ended, by the host's clock.
    pub(super) work: [u64; 2],
    pub(super) memory_pages: u64,
}

/// Of a load that tells what it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) bytes: u64,
    /// Since all of it was touched, and to its end.
    pub(super) steady: [u64; 2],
}

pub(super) fn record(
    place: &Place,
    kit: &Kit,
    load: &Load,
    memory_mib: u64,
    quick: bool,
    folder: &Path,
) -> Result<Recording> {
    let [estimates, accesses] = ["estimates", "accesses"].map(|name| folder.join(name));
    let mut option = format!("{},methods=all", estimates.display());
    if !place.is_kvm() {
        option += &format!(",accesses={}", accesses.display());
    }
    let mut guest = Guest::new(kit, &load.words(place.is_kvm(), quick)).memory(memory_mib);
    guest = guest.options(&["--estimate-log".into(), option]);
    if load.needs_disk {
        guest = guest.disk(&kit.loads_disk()?);
    }
    let started = unix_ns();
    let events = guest.start(place.vmm())?.finish(place.patience(LONGEST))?;
    let lines = log::read(&estimates)?;
    let memory_pages = memory_mib << 8;
    let truth = if place.is_kvm() {
        None
    } else {
        let truth = truth::replay(Accesses::open(&accesses)?, &lines, memory_pages as u32)?;
        fs::remove_file(&accesses).with_context(|| format!("delete {}", accesses.display()))?;
        Some(truth)
    };
    let at = |event: &Event| started + event.at.as_nanos() as u64;
    let of = |name| events.iter().find(|event| event.is(name)).map(at);
    let work = [of("init").unwrap_or(started), of("end").unwrap_or(u64::MAX)];
    Ok(Recording { lines, truth, phases: phases(&events, at), work, memory_pages })
}

fn phases(events: &[Event], at: impl Fn(&Event) -> u64) -> Vec<Phase> {
    let mut phases = Vec::new();
    let mut since = None;
    for event in events.iter().filter(|event| event.is("reuse")) {
        match (event.text("state"), since) {
            ("steady", _) => since = Some(at(event)),
            ("end", Some(begun)) => {
                phases.push(Phase { bytes: event.number("bytes"), steady: [begun, at(event)] });
            }
            _ => since = None,
        }
    }
    phases
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
