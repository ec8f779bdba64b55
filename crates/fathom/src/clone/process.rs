//! The process of a clone, from what `fathom clone` gives it to the end of the VM.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use api::SocketDirectory;
use vmm::config::VmPlan;
use vmm::saved::Cloned;

use super::say_that_it_runs;
use crate::arguments::{CloneProcessArguments, Confinement};
use crate::failure::Failure;
use crate::run;

/// What came in the places of standard input, output and error.
struct Given {
    image: OwnedFd,
    state: File,
    /// Who waits until it runs.
    client: File,
}

pub(crate) fn run(arguments: &CloneProcessArguments) -> Result<ExitCode, Failure> {
    if arguments.confine == Confinement::On {
        confine::close_inherited(arguments.layer.as_slice()).map_err(Failure::host)?;
    }
    let Given { image, state, client } = take(arguments.log.as_deref()).map_err(Failure::host)?;
    let client = Cell::new(Some(client));
    let ended = go_on(arguments, image, state, &client);
    // Nobody waits any more when it has run.
    if let (Err(failure), Some(mut client)) = (&ended, client.take()) {
        let _ = writeln!(client, "fathom: {failure}");
    }
    ended
}

/// Takes them, and puts nothing in their places, or a log: what starts clones ends, and its terminal is not theirs.
fn take(log: Option<&Path>) -> io::Result<Given> {
    let image = io::stdin().as_fd().try_clone_to_owned()?;
    let state = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let client = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    // Only who leads a group cannot; `fathom clone` leads ours.
    rustix::process::setsid()?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    let log = log.map(|log| File::options().append(true).create(true).open(log)).transpose()?;
    rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&nothing))?;
    Ok(Given { image, state, client })
}

fn go_on(
    arguments: &CloneProcessArguments,
    image: OwnedFd,
    state: File,
    client: &Cell<Option<File>>,
) -> Result<ExitCode, Failure> {
    // Another descriptor of the same file, to read.
    let layer = arguments.layer.map(|layer| File::open(format!("/proc/self/fd/{layer}")));
    let layer = layer.transpose().map_err(Failure::host)?.map(OwnedFd::from);
    let cloned = Cloned::read(state, image, layer).map_err(Failure::usage)?;
    let plan = VmPlan::new(cloned.state.config.clone()).map_err(Failure::usage)?;
    let paused = arguments.paused;
    let start = move |plan, outside| vmm::clone_with(plan, outside, cloned, paused);
    let ready = || {
        if let Some(client) = client.take() {
            // Who has left in the meantime does not wait.
            let _ = say_that_it_runs(&client);
        }
    };
    run::live(plan, SocketDirectory::open()?, arguments.confine, false, None, start, ready)
}
