//! The process of a clone, from what `fathom clone` gives it to the end of the VM.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;

use api::SocketDirectory;
use memory::{FRAME_SIZE, ImageRun, ImageRuns};
use snapshot::Extent;
use vmm::config::VmPlan;
use vmm::saved::Cloned;

use super::{gate, say_that_it_runs};
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
        let given = arguments.layer.iter().chain(&arguments.gate).chain(&arguments.extents);
        let given: Vec<RawFd> = given.chain(&arguments.shared).copied().collect();
        confine::close_inherited(&given).map_err(Failure::host)?;
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

/// What of the image is elsewhere.
fn runs(mut extents: File, shared: Vec<File>) -> io::Result<ImageRuns> {
    let mut bytes = Vec::new();
    extents.read_to_end(&mut bytes)?;
    let runs = Extent::decode_all(&bytes).into_iter().map(|extent| ImageRun {
        frames: extent.frames,
        file: extent.file.checked_sub(1).map(|number| number as usize),
        from: u64::from(extent.at) * FRAME_SIZE as u64,
    });
    Ok(ImageRuns { files: shared.into_iter().map(OwnedFd::from).collect(), runs: runs.collect() })
}

fn go_on(
    arguments: &CloneProcessArguments,
    image: OwnedFd,
    state: File,
    client: &Cell<Option<File>>,
) -> Result<ExitCode, Failure> {
    // Another descriptor of the same file, to read.
    let open = |given: &i32| File::open(format!("/proc/self/fd/{given}")).map_err(Failure::host);
    let layer = arguments.layer.as_ref().map(open).transpose()?.map(OwnedFd::from);
    let runs = match arguments.extents.as_ref().map(open).transpose()? {
        None => ImageRuns::default(),
        Some(extents) => {
            let shared: Vec<File> = arguments.shared.iter().map(open).collect::<Result<_, _>>()?;
            runs(extents, shared).map_err(Failure::host)?
        }
    };
    let mut gate = arguments.gate.as_ref().map(open).transpose()?;
    let cloned = Cloned::read(state, image, layer).map_err(Failure::usage)?.with_runs(runs);
    let plan = VmPlan::new(cloned.state.config.clone()).map_err(Failure::usage)?;
    let (paused, vm) = (arguments.paused || gate.is_some(), OnceCell::new());
    let start = |plan, outside| {
        let handle = vmm::clone_with(plan, outside, cloned, paused)?;
        Ok(vm.get_or_init(|| handle).clone())
    };
    let ready = || {
        if let Some(client) = client.take() {
            if let (Some(gate), Some(vm)) = (&mut gate, vm.get()) {
                gate::stand(gate, &client);
                // It may have been stopped there.
                let _ = vm.resume();
            }
            // Who has left in the meantime does not wait.
            let _ = say_that_it_runs(&client);
        }
    };
    run::live(plan, SocketDirectory::open()?, arguments.confine, false, None, start, ready)
}
