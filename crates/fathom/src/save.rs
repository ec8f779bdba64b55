//! `fathom save`: the files are opened here, since a VM's process can open none; the VM writes them.

use std::process::ExitCode;
use std::time::Duration;

use api::{SaveRequest, SocketDirectory};
use vmm::saved::Draft;

use crate::arguments::SaveArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;
use crate::verbs;

/// A terabyte at the rate of a slow disk takes longer; then it is the user who waits.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn save(arguments: &SaveArguments) -> Result<ExitCode, Failure> {
    let directory = SocketDirectory::open()?;
    let client = directory.client(&arguments.name);
    // Before anything is made: a name that nobody has is the most likely mistake.
    client.status()?;
    let (draft, files) = Draft::create(&arguments.path).map_err(Failure::usage)?;
    let request = SaveRequest { stop: arguments.stop };
    let client = client.with_timeout(TIMEOUT);
    let report = client.save(&files.machine, &files.memory, request)?;
    draft.finish().map_err(Failure::host)?;
    if arguments.stop {
        verbs::wait_for_end(&directory, &arguments.name)?;
    }
    print(&format!(
        "{} of {}; the guest stood for {:.0} ms\n",
        text::bytes(report.written_bytes),
        text::bytes(report.memory_bytes),
        report.pause_seconds * 1e3
    ));
    Ok(ExitCode::from(SUCCESS))
}
