//! What estimating costs the guest: the same work with and without, by turns.

use super::super::place::Place;
use crate::bench::{children_cpu_seconds, median};
use crate::kit::Kit;
use crate::machine::Guest;
use anyhow::{Result, bail};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

const LONGEST: Duration = Duration::from_secs(600);
/// Integer loops, and 64 MiB touched page by page.
const WORK: &str = "quiet fathom.modules=none fathom.run=integer:300 fathom.run=sweep:64";
/// What the guest times, by its clock.
const PARTS: [&str; 2] = ["integer", "sweep"];

/// Which are measured.
pub(super) const METHODS: [&str; 5] = ["census", "sampling", "curve", "order", "default"];

/// Of a set of methods, in percent of the time without.
#[derive(Serialize)]
pub(super) struct Cost {
    pub(super) methods: &'static str,
    /// Median of the pairs.
    pub(super) integer: Option<f64>,
    pub(super) sweep: Option<f64>,
    /// Processor time of the whole process, from which a busy host takes little.
    pub(super) cpu: Option<f64>,
}

pub(super) fn measure(place: &Place, kit: &Kit, runs: u64, folder: &Path) -> Result<Vec<Cost>> {
    let mut ratios = METHODS.map(|_| [const { Vec::new() }; 3]);
    for run in 1..=runs {
        let without = times(place, kit, None)?;
        for (methods, ratios) in METHODS.iter().zip(&mut ratios) {
            let log = format!("{},methods={methods}", folder.join("cost").display());
            let with = times(place, kit, Some(log))?;
            for (part, ratios) in ratios.iter_mut().enumerate() {
                ratios.push(with[part] / without[part]);
            }
        }
        eprintln!("cost: run {run} of {runs}");
    }
    let percent = |ratios: Vec<f64>| median(ratios).map(|ratio| 100.0 * (ratio - 1.0));
    let costs = METHODS.iter().zip(ratios).map(|(methods, [integer, sweep, cpu])| Cost {
        methods,
        integer: percent(integer),
        sweep: percent(sweep),
        cpu: percent(cpu),
    });
    Ok(costs.collect())
}

/// Seconds of each part and of the process.
fn times(place: &Place, kit: &Kit, log: Option<String>) -> Result<[f64; 3]> {
    let before = children_cpu_seconds()?;
    let mut guest = Guest::new(kit, WORK);
    if let Some(log) = log {
        guest = guest.options(&["--estimate-log".into(), log]);
    }
    let events = guest.start(place.vmm())?.finish(place.patience(LONGEST))?;
    let cpu = children_cpu_seconds()? - before;
    let [integer, sweep] = PARTS.map(|part| {
        let of_part = events.iter().filter(|event| event.is(part));
        of_part.map(|event| event.number("nanoseconds")).sum::<u64>() as f64 / 1e9
    });
    if integer == 0.0 || sweep == 0.0 {
        bail!("the guest measured nothing: is the kit's guest program old?");
    }
    Ok([integer, sweep, cpu])
}
