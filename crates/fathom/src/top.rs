//! `fathom top`: what every VM holds and what it uses.

mod detail;
mod history;
mod host_line;
mod screen;
mod terminal;

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use api::{ClientError, RunState, SocketDirectory, VmStatus};

use crate::arguments::TopArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::{complain, json_line, print, waiting, watch_all};
use crate::text;
use history::History;

/// `--once` waits so long for the first figures of VMs that nobody watched before.
const FIRST_FIGURES: Duration = Duration::from_secs(4);
const FIRST_FIGURES_POLL: Duration = Duration::from_millis(200);

pub(crate) fn top(arguments: &TopArguments) -> Result<ExitCode, Failure> {
    let directory = SocketDirectory::open()?;
    match (arguments.once, arguments.json) {
        (true, json) => once(&directory, json)?,
        (false, true) => stream(&directory, arguments.interval)?,
        (false, false) if stdout().is_terminal() => terminal::run(directory, arguments.interval)?,
        (false, false) => {
            let line = "top: standard output is not a terminal: add --once or --json";
            return Err(Failure::Usage(line.to_owned()));
        }
    }
    Ok(ExitCode::from(SUCCESS))
}

fn once(directory: &SocketDirectory, json: bool) -> Result<(), Failure> {
    let mut history = History::default();
    let deadline = Instant::now() + FIRST_FIGURES;
    let answers = loop {
        let answers = watch_all(directory)?;
        history.add(&answers);
        if !answers.iter().any(has_no_figures_yet) || Instant::now() > deadline {
            break answers;
        }
        thread::sleep(FIRST_FIGURES_POLL);
    };
    complain(&answers);
    if json {
        let vms: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        print(&json_line(&vms)?);
    } else {
        history.host = host_line::of(directory);
        print(&table(&history));
    }
    Ok(())
}

/// A paused guest uses nothing, so its figures may never come.
fn has_no_figures_yet(answer: &Result<VmStatus, ClientError>) -> bool {
    answer.as_ref().is_ok_and(|status| {
        status.state == RunState::Running && status.working_set.window_1s_bytes.is_none()
    })
}

fn stream(directory: &SocketDirectory, interval: Duration) -> Result<(), Failure> {
    use std::io::Write as _;
    loop {
        let next = Instant::now() + interval;
        let answers = watch_all(directory)?;
        complain(&answers);
        let vms: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        let line = json_line(&vms)?;
        let mut out = stdout().lock();
        if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
            // The reader closed the pipe.
            return Ok(());
        }
        drop(out);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn table(history: &History) -> String {
    let mut rows = vec![screen::HEADS.map(str::to_owned).to_vec()];
    rows.extend(history.rows().map(|row| screen::cells(row).to_vec()));
    let waiting = history.rows().filter_map(|row| waiting(&row.latest));
    let host = history.host.iter().map(|line| format!("{line}\n")).collect::<String>();
    host + &text::table(&rows) + &waiting.map(|line| line + "\n").collect::<String>()
}
