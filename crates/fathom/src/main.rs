//! The command line: parses, wires the crates together, reports. It decides nothing about a VM.
#![forbid(unsafe_code)]

mod agent;
mod arguments;
mod balance;
mod clone;
mod cluster;
mod curve;
mod dock;
mod doctor;
mod explain;
mod failure;
mod identity;
mod inspect;
mod list;
mod log;
mod pool;
mod reclaim;
mod run;
mod save;
mod serve;
mod store;
mod svg;
mod text;
mod top;
mod verbs;

use std::process::ExitCode;
use std::time::Instant;

use arguments::{Arguments, Command};
use failure::Failure;

fn main() -> ExitCode {
    let asked = Instant::now();
    vmm::begin_to_measure_time();
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => return failure::bad_arguments(&error),
    };
    log::start(&arguments.command);
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
        Command::Push(arguments) => match store::push(&arguments)? {},
        Command::Pull(arguments) => match store::pull(&arguments)? {},
        Command::Agent(arguments) => agent::agent(&arguments),
        Command::Dock(arguments) => dock::dock(&arguments),
        Command::Pool(arguments) => pool::pool(&arguments),
        Command::LearnProcess(arguments) => run::learn::keep(&arguments),
        Command::CloneProcess(arguments) => clone::process::run(&arguments),
        Command::Balloon(arguments) => verbs::balloon(&arguments),
        Command::Reclaim(arguments) => reclaim::reclaim(&arguments),
        Command::Serve(arguments) => serve::serve(&arguments),
        Command::Balance(arguments) => balance::balance(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
    }
}
