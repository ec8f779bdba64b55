//! `fathom reclaim`: memory that the host takes from a guest.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use api::{ReclaimRequest, ReclaimStatus, SocketDirectory};

use crate::arguments::ReclaimArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;

/// A guest on KVM may have to stand first while its memory is copied into a file, and nothing is answered meanwhile.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Between two looks at how far it is.
const POLL: Duration = Duration::from_millis(100);

/// Returns when all is taken, or no more can be.
pub(crate) fn reclaim(arguments: &ReclaimArguments) -> Result<ExitCode, Failure> {
    let client = SocketDirectory::open()?.client(&arguments.name);
    let before = client.status()?.reclaim.unwrap_or_default();
    let store = arguments.store.as_ref().map(|path| {
        let refused = |error| Failure::Usage(format!("{}: {error}", path.display()));
        host::make_store(path).map_err(refused)
    });
    let store = store.transpose()?;
    let request = ReclaimRequest {
        bytes: arguments.size.0,
        bytes_per_second: arguments.rate.map(|rate| rate.0),
        store_limit_bytes: arguments.store_limit.map(|limit| limit.0),
    };
    let client = client.with_timeout(TIMEOUT);
    client.reclaim(request, store.as_ref())?;
    let status = loop {
        let status = client.status()?.reclaim.unwrap_or_default();
        if status.wanted_bytes == 0 {
            break status;
        }
        thread::sleep(POLL);
    };
    let taken = status.taken_bytes.saturating_sub(before.taken_bytes);
    if let Some(problem) = status.problem.as_ref().filter(|_| taken < arguments.size.0) {
        let (name, taken) = (&arguments.name, text::bytes(taken));
        return Err(Failure::Host(format!("VM `{name}`: {problem}; {taken} were taken")));
    }
    if arguments.json {
        print(&(serde_json::to_string(&status).map_err(Failure::host)? + "\n"));
    } else {
        print(&line(taken, &status));
    }
    Ok(ExitCode::from(SUCCESS))
}

fn line(taken: u64, status: &ReclaimStatus) -> String {
    let ReclaimStatus { written_bytes, zero_bytes, disk_bytes, unchanged_bytes, .. } = *status;
    let dropped = zero_bytes + disk_bytes + unchanged_bytes;
    format!(
        "{} taken; in all {} written, {} dropped, {} came back; {} in the store\n",
        text::bytes(taken),
        text::bytes(written_bytes),
        text::bytes(dropped),
        text::bytes(status.returned_bytes + status.prefetched_bytes),
        text::bytes(status.store_bytes),
    )
}
