//! Instructions per second on integer code, as the guest's own clock has it.

use crate::kit;
use crate::machine::{Event, Guest, Vmm, build_fathom};
use anyhow::{Result, bail};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct MipsArgs {
    /// Millions of instructions in each loop
    #[arg(long, default_value_t = 300)]
    millions: u64,
    /// QEMU too
    #[arg(long)]
    qemu: bool,
    /// Only QEMU, to try the benchmark without Fathom
    #[arg(long)]
    only_qemu: bool,
}

const LONGEST: Duration = Duration::from_secs(300);
/// The target for the interpreter.
const MIPS_MIN: u64 = 60;

pub(super) fn run(args: &MipsArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    let mut vmms = Vec::new();
    if !args.only_qemu {
        build_fathom()?;
        vmms.push(Vmm::Fathom);
    }
    if args.qemu || args.only_qemu {
        vmms.push(Vmm::Qemu);
    }
    println!("million instructions per second, {} million each", args.millions);
    for vmm in vmms {
        let words = format!("quiet fathom.modules=none fathom.run=integer:{}", args.millions);
        let events = Guest::new(&kit, &words).start(vmm)?.finish(LONGEST)?;
        let loops: Vec<&Event> = events.iter().filter(|event| event.is("integer")).collect();
        if loops.is_empty() {
            bail!("{}: the guest measured nothing", vmm.name());
        }
        for event in loops {
            println!("{:9} {:8} {:6}", vmm.name(), event.text("kind"), mips(event));
        }
    }
    println!("target: at least {MIPS_MIN} on the interpreter");
    Ok(())
}

fn mips(event: &Event) -> u64 {
    event.number("instructions") * 1000 / event.number("nanoseconds").max(1)
}
