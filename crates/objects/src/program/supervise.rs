//! Who outlives the process that reads a store for a VM: it holds the VM's socket, too, and starts the next one if that
//! process dies. The VM's own can start nothing.
//!
//! ```text
//!   VM's process --- socket ---+--- fathom-store serve    (holds it, does nothing)
//!                              |      | starts, again and again
//!                              +--- fathom-store answer   (reads the store, answers)
//! ```

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// After one that died at once; twice as long after the next, up to the longest.
const WAIT: Duration = Duration::from_millis(50);
const WAIT_LONGEST: Duration = Duration::from_secs(5);
/// One that lived for so long did not die at once.
const LIVED: Duration = Duration::from_secs(10);
/// Of what it says of the snapshots: an identity has 32 characters, and there are at most 33.
const IDENTITIES_MAX: u64 = 4096;

pub(crate) fn serve(url: &str) -> Result<(), Failure> {
    let mut wait = WAIT;
    let mut again = false;
    let mut identities = None;
    loop {
        let begun = Instant::now();
        let mut child = start(url, again, identities.as_deref()).map_err(Failure::host)?;
        identities = identities.or_else(|| told(&mut child));
        let status = child.wait().map_err(Failure::host)?;
        if has_ended(status) {
            return Ok(());
        }
        tracing::warn!("{url}: the process that reads it has died ({status}): the next one begins");
        wait = if begun.elapsed() < LIVED { wait } else { WAIT };
        thread::sleep(wait);
        wait = (wait * 2).min(WAIT_LONGEST);
        again = true;
    }
}

fn start(url: &str, again: bool, identities: Option<&str>) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("answer").arg(url).args(again.then_some("--again"));
    if let Some(identities) = identities {
        command.args(["--identities", identities]);
    }
    // Standard input, the socket, is the same for all.
    command.stdout(Stdio::piped()).spawn()
}

/// Which snapshots it has found; `None` where it died before.
fn told(child: &mut Child) -> Option<String> {
    let mut line = String::new();
    let mut from = BufReader::new(child.stdout.take()?).take(IDENTITIES_MAX);
    from.read_line(&mut line).ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}

/// By itself: the VM has ended, or what it asks is nothing that can be.
fn has_ended(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0..=2))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn who_was_killed_or_panicked_is_started_again() {
        assert!([0, 1, 2].iter().all(|code| has_ended(ExitStatus::from_raw(code << 8))));
        assert!(!has_ended(ExitStatus::from_raw(9)));
        assert!(!has_ended(ExitStatus::from_raw(101 << 8)));
    }

    #[test]
    fn what_it_found_is_a_whole_line() {
        let said = |text: &str| {
            let mut command = Command::new("printf");
            let mut child = command.arg(text).stdout(Stdio::piped()).spawn().expect("printf");
            let told = told(&mut child);
            child.wait().expect("ended");
            told
        };
        assert_eq!(said("one,two\\n").as_deref(), Some("one,two"));
        assert_eq!(said("one,tw"), None);
    }
}
