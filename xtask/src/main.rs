//! Every chore of the project: `cargo xtask guest`, `test`, `soak`, `lab`, `tidy`, `demo`, `bench`, `reproduce`.
//!
//! Continuous integration runs the same commands as a person does.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod bench;
mod command;
mod demo;
mod dots;
mod kit;
mod lab;
mod machine;
mod picture;
mod reproduce;
mod soak;
mod test;
mod tidy;
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
    /// Check the project's own rules: dependency direction, unsafe code, file sizes
    Tidy,
    /// Prepare the guest kit and run every test of the workspace
    Test(test::TestArgs),
    /// Start, pause and stop guests many times, and many at once: nothing may be left behind
    Soak(soak::SoakArgs),
    /// Run commands on real KVM, on any machine: in a machine of QEMU's translator
    Lab(lab::LabArgs),
    /// In the lab's machine: hold a VM
    #[command(hide = true)]
    StandingVm,
    /// Boot a guest that touches known amounts of memory, and show what Fathom sees of it
    Demo(demo::DemoArgs),
    /// Benchmarks, each side by side with what it is compared to
    #[command(subcommand)]
    Bench(bench::Bench),
    /// The experiments of published systems, with our figures beside theirs
    #[command(subcommand)]
    Reproduce(reproduce::Reproduce),
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Guest(args) => kit::prepare(&args).map(drop),
        Chore::Tidy => tidy::run(),
        Chore::Test(args) => test::test(&args),
        Chore::Soak(args) => soak::soak(&args),
        // The status of what ran there.
        Chore::Lab(args) => return lab::run(&args).unwrap_or_else(|error| failed(&error)),
        Chore::StandingVm => lab::stand().map(|never| match never {}),
        Chore::Demo(args) => demo::run(&args),
        Chore::Bench(bench) => bench::run(&bench),
        Chore::Reproduce(row) => reproduce::run(&row),
    };
    done.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// Without a backtrace: these errors are for people.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
