//! The command line: parses, wires the crates together, reports. It decides nothing about a VM.
#![forbid(unsafe_code)]

mod arguments;
mod clone;
mod curve;
mod doctor;
mod explain;
mod failure;
mod inspect;
mod list;
mod log;
mod run;
mod save;
mod svg;
mod text;
mod top;
mod verbs;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::Failure;

fn main() -> ExitCode {
    let asked = Instant::now();
    vmm::begin_to_measure_time();
    log::start();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::bad_arguments(&error),
    };
    match execute(arguments.command, asked) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn execute(command: Command, asked: Instant) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(arguments) => run::run(*arguments),
        Command::List(arguments) => list::list(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Curve(arguments) => curve::curve(&arguments),
        Command::Inspect(arguments) => inspect::inspect(&arguments),
        Command::Pause(vm) => verbs::pause(&vm),
        Command::Resume(vm) => verbs::resume(&vm),
        Command::Stop(vm) => verbs::stop(&vm),
        Command::Save(arguments) => save::save(&arguments),
        Command::Restore(arguments) => run::restore(arguments, asked),
        Command::Clone(arguments) => clone::clone(&arguments),
        Command::Activate(arguments) => clone::activate(&arguments),
        Command::LearnProcess(arguments) => run::learn::keep(&arguments),
        Command::CloneProcess(arguments) => clone::process::run(&arguments),
        Command::Balloon(arguments) => verbs::balloon(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
    }
}
