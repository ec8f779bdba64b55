//! `fathom pause`, `resume`, `stop` and `balloon`.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use api::{BalloonTarget, Client, ClientError, SocketDirectory};

use crate::arguments::{BalloonArguments, VmArgument};
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;

/// How long a stopped VM may take to flush its disks and leave.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(20);

pub(crate) fn pause(vm: &VmArgument) -> Result<ExitCode, Failure> {
    tell(vm, Client::pause)
}

pub(crate) fn resume(vm: &VmArgument) -> Result<ExitCode, Failure> {
    tell(vm, Client::resume)
}

/// Returns when the VM's name is free again.
pub(crate) fn stop(vm: &VmArgument) -> Result<ExitCode, Failure> {
    let directory = SocketDirectory::open()?;
    directory.client(&vm.name).stop()?;
    wait_for_end(&directory, &vm.name)?;
    Ok(ExitCode::from(SUCCESS))
}

/// Waits until a VM that was told to end has given up its name.
pub(crate) fn wait_for_end(directory: &SocketDirectory, name: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + END_TIMEOUT;
    while directory.is_running(name) {
        if Instant::now() > deadline {
            let seconds = END_TIMEOUT.as_secs();
            let line = format!("VM `{name}` has not ended {seconds} s after it was told to");
            return Err(Failure::Host(line));
        }
        thread::sleep(END_POLL);
    }
    Ok(())
}

pub(crate) fn balloon(arguments: &BalloonArguments) -> Result<ExitCode, Failure> {
    let client = SocketDirectory::open()?.client(&arguments.name);
    if let Some(size) = arguments.size {
        client.set_balloon(BalloonTarget { target_bytes: size.0 })?;
        return Ok(ExitCode::from(SUCCESS));
    }
    let status = client.status()?;
    let (taken, target) = (status.ballooned_bytes, status.balloon_target_bytes);
    print(&format!("{} of {}\n", text::bytes(taken), text::bytes(target)));
    Ok(ExitCode::from(SUCCESS))
}

fn tell(
    vm: &VmArgument,
    verb: fn(&Client) -> Result<(), ClientError>,
) -> Result<ExitCode, Failure> {
    verb(&SocketDirectory::open()?.client(&vm.name))?;
    Ok(ExitCode::from(SUCCESS))
}
