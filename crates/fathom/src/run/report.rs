//! The report of a run.

use std::fs;
use std::path::Path;

use api::{Report, WorkingSetSample};
use vmm::{Outcome, RunReport};

use crate::failure::Failure;

pub(super) fn write(
    path: &Path,
    figures: RunReport,
    outcome: &Result<Outcome, String>,
) -> Result<(), Failure> {
    let mut json = serde_json::to_vec_pretty(&wire(figures, outcome)).map_err(Failure::host)?;
    json.push(b'\n');
    let refused = |error| Failure::Host(format!("report {}: {error}", path.display()));
    fs::write(path, json).map_err(refused)
}

/// For people: what the translator did.
pub(super) fn translation(figures: &RunReport) -> String {
    let line =
        |(name, count): (&&str, &u64)| format!("  {:<26}{count:>14}\n", name.replace('_', " "));
    let lines: String = figures.translation.iter().map(line).collect();
    format!("fathom: translation\n{lines}")
}

fn wire(figures: RunReport, outcome: &Result<Outcome, String>) -> Report {
    let outcome = match outcome {
        Ok(Outcome::Poweroff) => "poweroff",
        Ok(Outcome::Panic) => "panic",
        Ok(Outcome::Stopped) => "stopped",
        Err(_) => "failed",
    };
    let owned = |(name, count): (&str, u64)| (name.to_owned(), count);
    Report {
        engine: figures.engine.to_owned(),
        outcome: outcome.to_owned(),
        wall_seconds: figures.wall_seconds,
        cpu_seconds: figures.cpu_seconds,
        guest_instructions: figures.guest_instructions,
        exits: figures.exits.into_iter().map(owned).collect(),
        frames: figures.frames.into_iter().map(owned).collect(),
        translation: figures.translation.into_iter().map(owned).collect(),
        cache: figures.cache.into_iter().map(owned).collect(),
        working_set: figures.working_set.into_iter().map(sample).collect(),
        memory: figures.picture.as_ref().clone(),
        host_resident_bytes: figures.host_resident_bytes,
        pauses: figures.pauses,
    }
}

fn sample(point: vmm::WorkingSetPoint) -> WorkingSetSample {
    WorkingSetSample {
        t_seconds: point.t_seconds,
        resident_bytes: point.resident_bytes,
        window_1s_bytes: Some(point.window_1s_bytes),
        window_10s_bytes: Some(point.window_10s_bytes),
        window_60s_bytes: Some(point.window_60s_bytes),
    }
}
