//! `cargo xtask test`: everything a change must pass, as continuous integration runs it.

use crate::command::run;
use crate::{kit, workspace};
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Passed on to `cargo test`, for example `-p memory` or `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Prepare the kit, which end-to-end tests boot, then run all tests of the workspace.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::everything())?;
    let mut cargo = workspace::cargo();
    cargo.arg("test").env("FATHOM_KIT", kit.folder());
    if !args.arguments.iter().any(|argument| argument == "-p" || argument == "--package") {
        // Every test program runs, so that one failure does not hide another.
        cargo.args(["--workspace", "--no-fail-fast"]);
    }
    run(cargo.args(&args.arguments))
}
