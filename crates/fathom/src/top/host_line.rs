//! The host in a line, where a daemon runs.

use api::SocketDirectory;
use host::HostStatus;

use crate::text;

/// `None`: there is no daemon, or it does not answer.
pub(super) fn of(directory: &SocketDirectory) -> Option<String> {
    HostStatus::ask(directory).map(|status| line(&status))
}

fn line(status: &HostStatus) -> String {
    let facts = &status.board.facts.host;
    let state = format!("{:?}", status.board.verdict.state).to_lowercase();
    let mut line = format!(
        "host  limit {}   used {}   free {}   state {state}",
        text::bytes(facts.limit),
        text::bytes(status.used()),
        text::bytes(facts.free),
    );
    if status.swap_bytes > 0 {
        line += &format!("   swap {}", text::bytes(status.swap_bytes));
    }
    if let Some(sharing) = status.sharing {
        line += &format!("   sharing saves {}", text::bytes(sharing.saved_bytes));
    }
    if let Some(pressure) = status.pressure.filter(|pressure| pressure.some >= 0.01) {
        line += &format!("   waits for memory {:.0} %", pressure.some * 100.0);
    }
    line
}
