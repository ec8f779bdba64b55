//! `cargo xtask soak`: the same things many times, and many VMs at once, until something is left behind; and
//! what the interpreter checks of the translator, and snapshots that are mutated, for minutes.

use crate::command::run;
use crate::{kit, lab, workspace};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct SoakArgs {
    /// What runs the guests; KVM in the lab, where this host has none
    #[arg(long, default_value = "translate", value_parser = ["translate", "kvm"])]
    engine: String,
    /// A part of the times, for continuous integration
    #[arg(long)]
    short: bool,
    /// Processors of each of the lab's machines
    #[arg(long, value_enum, value_name = "COUNT", default_value_t)]
    processors: lab::Processors,
}

/// One test after the other, since what one leaves must not be seen by another.
pub(crate) const OPTIONS: [&str; 3] = ["--include-ignored", "--test-threads=1", "--nocapture"];
/// What tests have in their names.
pub(crate) const TESTS: [&str; 5] =
    ["leave_nothing", "come_and_go", "in_lockstep", "for_long", "killed_often"];

pub(crate) fn soak(args: &SoakArgs) -> Result<()> {
    let how = if args.short { "short" } else { "full" };
    if args.engine == "kvm" && !lab::is_direct() {
        return lab::soak(how, args.processors);
    }
    let kit = kit::prepare(&kit::GuestArgs::everything())?;
    // Of the whole workspace, so that nothing is built again that its tests have built.
    let mut cargo = workspace::cargo();
    cargo
        .args(["test", "--workspace"])
        .args(["mutations", "leaks", "guest"].map(|test| format!("--test={test}")));
    cargo
        .env("FATHOM_KIT", kit.folder())
        .env("FATHOM_ENGINE", &args.engine)
        .env("FATHOM_SOAK", how);
    run(cargo.arg("--").args(OPTIONS).args(TESTS))
}
