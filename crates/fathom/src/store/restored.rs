//! Who reads a store for a VM: a process beside the VM's, which may open no socket and has no keys.
//!
//! ```text
//!   fathom restore s3://... --starts--> fathom-store (AWS_ variables, network)
//!         | becomes, without the AWS_ variables  ^
//!         v                                      | one socket
//!   fathom restore s3://... --store FD ----------+
//! ```

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use remote::{Address, Remote};
use rustix::io::FdFlags;
use snapshot::{Snapshot, SnapshotError};
use vmm::Keeper;
use vmm::saved::Saved;

use crate::arguments::RestoreArguments;
use crate::failure::Failure;

/// What keys of stores are in. A guest that breaks out of its VM reads the memory of its process, which has them not.
const KEYS: &str = "AWS_";

/// The saved machine that `arguments` name, who keeps what is learnt of it, and when it was asked for. It is had by the second process of the picture
/// above; the first one does not return, unless it fails.
pub(crate) fn open(
    arguments: &RestoreArguments,
    asked: Instant,
) -> Result<(Saved, Option<Keeper>, Instant), Failure> {
    let url = url_of(&arguments.path)?;
    let address = Address::parse(url).map_err(Failure::usage)?;
    let Some(store) = arguments.store else { return Err(start_again(&address, asked)?) };
    let socket = confine::inherited(store).map_err(Failure::host)?;
    let remote = Remote::new(socket, url);
    let keeper = arguments.learn.then(|| Keeper::Told(Box::new(remote.learner())));
    let snapshot = Snapshot::open_store(Box::new(remote)).map_err(blame)?;
    let saved = Saved::of(snapshot, &arguments.path).map_err(Failure::usage)?;
    let begun = Duration::from_nanos(arguments.begun.unwrap_or(0));
    Ok((saved, keeper, asked.checked_sub(begun).unwrap_or(asked)))
}

/// The saved machine at the URL `path`, for a process that runs no guest.
pub(crate) fn open_here(path: &Path) -> Result<Saved, Failure> {
    let url = url_of(path)?;
    let address = Address::parse(url).map_err(Failure::usage)?;
    let socket = serve(&super::program()?, &address).map_err(Failure::host)?;
    let snapshot = Snapshot::open_store(Box::new(Remote::new(socket, url))).map_err(blame)?;
    Saved::of(snapshot, path).map_err(Failure::usage)
}

/// Starts who reads the store; the socket to ask it.
fn serve(program: &Path, address: &Address) -> io::Result<OwnedFd> {
    let (near, far) = remote::pair()?;
    let mut store = Command::new(program);
    store.args(["serve", &address.to_string()]).stdin(far);
    // What stops the VM by a key does not stop this one before it has been told what was learnt.
    store.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(near)
}

/// Takes the keys of stores out of what `command` will have.
pub(crate) fn without_keys(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(KEYS) {
            command.env_remove(name);
        }
    }
}

fn url_of(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::Usage(format!("{}: no address", path.display())))
}

/// Who is to mend it.
fn blame(error: SnapshotError) -> Failure {
    match error {
        SnapshotError::Host { .. } => Failure::host(error),
        _ => Failure::usage(error),
    }
}

/// Why not.
fn start_again(address: &Address, asked: Instant) -> Result<Failure, Failure> {
    let program = super::program()?;
    let again = || -> io::Result<io::Error> {
        let near = serve(&program, address)?;
        let mut command = Command::new("/proc/self/exe");
        command.args(std::env::args_os().skip(1));
        // Inherited, and closed where it is taken up.
        rustix::io::fcntl_setfd(&near, FdFlags::empty())?;
        command.args(["--store", &near.as_raw_fd().to_string()]);
        command.args(["--begun", &asked.elapsed().as_nanos().to_string()]);
        without_keys(&mut command);
        Ok(command.exec())
    };
    Ok(Failure::host(again().unwrap_or_else(|error| error)))
}
