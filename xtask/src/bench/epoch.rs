//! What it costs the guest that its working set is measured: the same guest with an epoch of a
//! second and without, by turns.

use super::host::children_cpu_seconds;
use super::median;
use crate::kit::{self, Kit};
use crate::machine::{Guest, Vmm, build_fathom};
use crate::workspace;
use anyhow::{Result, bail};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct EpochArgs {
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

const LONGEST: Duration = Duration::from_secs(300);
/// The target.
const COST_MAX_PERCENT: f64 = 5.0;
/// Integer loops, and 64 MiB touched page by page.
const WORK: &str = "quiet fathom.modules=none fathom.run=integer:300 fathom.run=sweep:64";
/// What the guest tells of them, by its clock, and the processor time of the whole run, from which a
/// busy host takes nothing.
const PARTS: [&str; 3] = ["integer", "sweep", CPU];
const CPU: &str = "cpu time";

pub(super) fn run(args: &EpochArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    build_fathom()?;
    // Of each part, the time with epochs by the time without, one figure a run.
    let mut ratios = PARTS.map(|_| Vec::new());
    for number in 1..=args.runs {
        let (without, with) = (times(&kit, false)?, times(&kit, true)?);
        for (part, ratios) in ratios.iter_mut().enumerate() {
            eprintln!(
                "run {number} of {}: {:8} {:.3} s without, {:.3} s with epochs",
                args.runs, PARTS[part], without[part], with[part]
            );
            ratios.push(with[part] / without[part]);
        }
    }
    println!("cost of epochs of 1 s, median of {} runs (target: at most 5 %)", args.runs);
    for (part, ratios) in PARTS.iter().zip(ratios) {
        let cost = median(ratios).map_or(f64::NAN, |ratio| 100.0 * (ratio - 1.0));
        let verdict = if cost > COST_MAX_PERCENT { "  <- more" } else { "" };
        println!("{part:8} {cost:+6.1} %{verdict}");
    }
    Ok(())
}

/// Seconds that each part took.
fn times(kit: &Kit, epochs: bool) -> Result<[f64; 3]> {
    let before = children_cpu_seconds()?;
    let mut guest = Guest::new(kit, WORK);
    if epochs {
        // A report has the working set in it, so it is measured all the time.
        guest = guest.named("bench-epoch", &workspace::target().join("bench-epoch.json"));
    }
    let events = guest.start(Vmm::Fathom)?.finish(LONGEST)?;
    let cpu = children_cpu_seconds()? - before;
    let times = PARTS.map(|part| {
        if part == CPU {
            return cpu;
        }
        let of_part = events.iter().filter(|event| event.is(part));
        of_part.map(|event| event.number("nanoseconds")).sum::<u64>() as f64 / 1e9
    });
    if times.contains(&0.0) {
        bail!("the guest measured nothing: is the kit's guest program old?");
    }
    Ok(times)
}
