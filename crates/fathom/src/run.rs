//! `fathom run` and `fathom restore`: one VM, from what the user asked to the status that the shell sees.

mod confinement;
mod control;
mod kernel;
pub(crate) mod learn;
mod report;
mod restored;
mod signals;

use std::fs::File;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use api::{Server, SocketDirectory};
use confine::{Jail, Thread};
use remote::Address;
use vmm::config::{ConsoleConfig, VmConfig, VmPlan};
use vmm::saved::Saved;
use vmm::{Keeper, Outcome, Outside, RestoreOptions, VmError, VmHandle};

use crate::arguments::{Confinement, ModeArgument, RestoreArguments, RunArguments};
use crate::failure::{Failure, GUEST_PANIC, SUCCESS};
use crate::store;
use control::HandleControl;
use signals::StopSignals;

pub(crate) fn run(arguments: RunArguments) -> Result<ExitCode, Failure> {
    let (confine, stats) = (arguments.confine, arguments.translate_stats);
    let jail = arguments.jail.clone();
    confinement::begin(&arguments)?;
    let plan = VmPlan::new(VmConfig::from(arguments)).map_err(Failure::usage)?;
    let sockets = match jail {
        Some(_) => SocketDirectory::at(Jail::SOCKETS.into()),
        None => SocketDirectory::open(),
    }?;
    live(plan, sockets, confine, stats, None, vmm::start_with, || ())
}

/// `fathom restore`.
///
/// `asked`: when the command began.
pub(crate) fn restore(arguments: RestoreArguments, asked: Instant) -> Result<ExitCode, Failure> {
    if arguments.confine == Confinement::On {
        confine::close_inherited(arguments.store.as_slice()).map_err(Failure::host)?;
    }
    let (saved, learning, asked) = if Address::is_url(&arguments.path) {
        store::restored::open(&arguments, asked)?
    } else {
        let saved = Saved::open(&arguments.path).map_err(Failure::usage)?;
        if arguments.mode == ModeArgument::WorkingSet {
            saved.expect_set();
        }
        let keeper = arguments.learn.then(|| learn::start_keeper(&arguments.path));
        (saved, keeper.flatten().map(Keeper::Process), asked)
    };
    let (confine, paused) = (arguments.confine, arguments.paused);
    let options = RestoreOptions { mode: arguments.mode.into(), learning, asked };
    let plan = VmPlan::new(arguments.config(&saved.state.config)).map_err(Failure::usage)?;
    // Later it can make no file.
    let picture = plan.report.as_deref().map(restored::make_picture).transpose()?;
    let start = move |plan, outside| vmm::restore_with(plan, outside, saved, options, paused);
    live(plan, SocketDirectory::open()?, confine, false, picture, start, || ())
}

/// From the plan to the end, whichever way the guest starts; `ready` when it runs and can be asked.
pub(crate) fn live(
    plan: VmPlan,
    sockets: SocketDirectory,
    confine: Confinement,
    stats: bool,
    picture: Option<File>,
    start: impl FnOnce(VmPlan, Outside) -> Result<VmHandle, VmError>,
    ready: impl FnOnce(),
) -> Result<ExitCode, Failure> {
    let claim = sockets.claim(&plan.name)?;
    let (name, report, line) = (plan.name.clone(), plan.report.clone(), opening(&plan));

    let vsock = plan.vsock.as_ref().map(|vsock| vsock.path.clone());

    // passt is started here, unconfined by our walls and with its own.
    let outside = plan.open_outside().map_err(blame)?;
    confinement::complete(confine, &plan, &sockets)?;
    let vm = start(plan, outside).map_err(blame)?;
    let (outcome, written) = {
        let _signals = StopSignals::watch(vm.clone()).map_err(|error| abandon(&vm, error))?;
        let control = Arc::new(HandleControl::new(vm.clone(), vsock));
        let _server = Server::start(claim, control).map_err(|error| abandon(&vm, error))?;
        confine::enter(Thread::Main).map_err(|error| abandon(&vm, error))?;
        // On a terminal in raw mode a line feed does not return to the margin.
        eprint!("fathom: {line}{}", if vm.has_terminal() { "\r\n" } else { "\n" });
        ready();
        let outcome = vm.wait();
        // Before the name is free: who waits for that, as `fathom stop` does, finds the report.
        let figures = vm.report();
        if let Some(figures) = figures.as_ref().filter(|_| stats) {
            eprint!("{}", report::translation(figures));
        }
        let written = match (&report, figures) {
            (Some(path), Some(figures)) => {
                report::write(path, &name, figures, &outcome, picture.as_ref())
            }
            _ => Ok(()),
        };
        (outcome, written)
    };
    written?;
    match outcome {
        Ok(Outcome::Poweroff | Outcome::Stopped) => Ok(ExitCode::from(SUCCESS)),
        Ok(Outcome::Panic) => {
            eprintln!("fathom: VM `{name}`: the guest's kernel panicked: its console says why");
            Ok(ExitCode::from(GUEST_PANIC))
        }
        Err(message) => Err(Failure::Host(format!("VM `{name}`: {message}"))),
    }
}

/// Which engine and why, and how to leave.
fn opening(plan: &VmPlan) -> String {
    let (name, engine, reason) = (&plan.name, plan.engine.kind.name(), &plan.engine.reason);
    let keys = plan.console == ConsoleConfig::Stdio && std::io::stdin().is_terminal();
    let leave = if keys { "; Ctrl-A x stops the VM" } else { "" };
    let gdb = plan.gdb.as_ref().filter(|gdb| gdb.wait);
    let wait =
        gdb.map_or(String::new(), |gdb| format!("; it waits for gdb at {}", gdb.socket.display()));
    format!("VM `{name}` runs on engine {engine} ({reason}){wait}{leave}")
}

/// Ends a VM that nobody could reach.
fn abandon(vm: &VmHandle, error: std::io::Error) -> Failure {
    vm.stop();
    // The terminal is restored when this returns; how it ended no longer matters.
    let _ = vm.wait();
    Failure::host(error)
}

fn blame(error: VmError) -> Failure {
    match error {
        VmError::Boot(_)
        | VmError::Disk(_)
        | VmError::Net(_)
        | VmError::Vsock(_)
        | VmError::Saved(_)
        | VmError::Console { .. } => Failure::usage(error),
        _ => Failure::host(error),
    }
}
