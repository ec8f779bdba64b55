//! `cargo xtask test`: everything a change must pass, as continuous integration runs it.

use crate::command::run;
use crate::kit::Kit;
use crate::{kit, lab, workspace};
use anyhow::{Context, Result};
use std::ffi::OsString;

#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Nothing on KVM, which takes the longest
    #[arg(long)]
    no_lab: bool,
    /// Passed on to `cargo test`, for example `-p memory` or `-- --nocapture`; with any, nothing
    /// runs on KVM
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Prepare the kit, which end-to-end tests boot, then run all tests of the workspace, then those
/// that need KVM.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::everything())?;
    let mut cargo = workspace::cargo();
    cargo.arg("test").env("FATHOM_KIT", kit.folder());
    if !args.arguments.iter().any(|argument| argument == "-p" || argument == "--package") {
        // Every test program runs, so that one failure does not hide another.
        cargo.args(["--workspace", "--no-fail-fast"]);
    }
    let here = run(cargo.args(&args.arguments));
    if args.no_lab || !args.arguments.is_empty() {
        return here;
    }
    let on_kvm = test_on_kvm(&kit, std::env::var_os("CI"));
    // What failed first is what to look at first; both have said what it is.
    here.and(on_kvm)
}

/// The suite for engines and real guests. Without KVM and without a lab an engine goes untested: a word about
/// it, and where nobody reads words, a failure.
fn test_on_kvm(kit: &Kit, ci: Option<OsString>) -> Result<()> {
    match (lab::available(kit), ci) {
        (Ok(()), _) => lab::run_short(),
        (Err(why), Some(_)) => Err(why).context("the lab does not run, which CI requires"),
        (Err(why), None) => {
            eprintln!("\n*** NOT TESTED: engine kvm: the lab does not run: {why:#} ***\n");
            Ok(())
        }
    }
}
