//! From starting the VMM to the first line of `/init`.

use super::median;
use crate::kit::{self, Kit};
use crate::machine::{Guest, Next, Running, Vmm, build_fathom};
use anyhow::{Result, bail};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct BootArgs {
    /// Boots of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only QEMU, to try the benchmark without Fathom
    #[arg(long)]
    only_qemu: bool,
}

/// A boot that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(120);
/// Fathom's time may be this part of QEMU's.
const RATIO_MAX: f64 = 0.5;
/// QEMU's microvm without KVM hangs now and then before it prints anything; Fathom may not.
const QEMU_TRIES: usize = 5;

pub(super) fn run(args: &BootArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    let mut vmms = vec![Vmm::Qemu];
    if !args.only_qemu {
        build_fathom()?;
        vmms.push(Vmm::Fathom);
    }
    let mut seconds = vec![Vec::new(); vmms.len()];
    for number in 1..=args.runs {
        for (vmm, seconds) in vmms.iter().zip(&mut seconds) {
            let took = boot(&kit, *vmm)?;
            eprintln!("boot {number} of {}: {:9} {took:7.3} s", args.runs, vmm.name());
            seconds.push(took);
        }
    }
    let medians: Vec<f64> = seconds.into_iter().filter_map(median).collect();
    println!("kernel to /init, median of {} boots, {} MiB", args.runs, crate::machine::MEMORY_MIB);
    for (vmm, median) in vmms.iter().zip(&medians) {
        println!("{:9} {median:8.3} s", vmm.name());
    }
    if let [qemu, fathom] = medians[..] {
        println!("ratio     {:8.2}   (target: at most {RATIO_MAX})", fathom / qemu);
    }
    Ok(())
}

/// Seconds from the start of the VMM to `/init`.
pub(super) fn boot(kit: &Kit, vmm: Vmm) -> Result<f64> {
    let guest = Guest::new(kit, "quiet fathom.modules=none fathom.run=boot");
    let tries = if vmm == Vmm::Qemu { QEMU_TRIES } else { 1 };
    for _ in 0..tries {
        let limit = if vmm == Vmm::Qemu { LONGEST / 6 } else { LONGEST };
        if let Some(took) = time_to_init(guest.start(vmm)?, limit)? {
            return Ok(took);
        }
        eprintln!("{}: hung, tried again", vmm.name());
    }
    bail!("{}: no boot in {tries} tries", vmm.name())
}

/// Nothing if there was no sign of `/init` in time.
fn time_to_init(mut running: Running, limit: Duration) -> Result<Option<f64>> {
    loop {
        match running.next(limit.saturating_sub(running.elapsed())) {
            Next::Event(event) if event.is("init") => {
                running.finish(LONGEST)?;
                return Ok(Some(event.at.as_secs_f64()));
            }
            Next::Event(_) => {}
            Next::Quiet => return Ok(None),
            Next::Ended => {
                running.check_end()?;
                bail!("the guest ended before /init: run it by hand to see why");
            }
        }
    }
}
