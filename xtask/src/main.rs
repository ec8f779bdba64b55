//! Every chore of the project: `cargo xtask guest`, `test`, `tidy`, `demo`, `bench`.
//!
//! Continuous integration runs the same commands as a person does.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};

mod command;
mod kit;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores", version)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch Debian's kernel and busybox, build the guest program and the initramfs, without root
    Guest(kit::GuestArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Guest(args) => kit::prepare(&args).map(drop),
    }
}
