//! `fathom save`: the VM's process, which can open no file, sends itself here; this one writes.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use std::os::fd::OwnedFd;

use api::{Client, SaveReport, SaveRequest, SocketDirectory};
use serde::Serialize;
use snapshot::Snapshot;
use vmm::saved::{Draft, DraftOptions, Kept, MachineState, Progress, SavedError};

use crate::arguments::SaveArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;
use crate::verbs;

/// A terabyte at the rate of a slow disk takes longer; then it is the user who waits.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Between two looks at how far it is.
const TICK: Duration = Duration::from_millis(100);

/// What `--json` prints.
#[derive(Serialize)]
struct Figures {
    /// From the command to a snapshot that is durable.
    seconds: f64,
    /// How long the guest stood.
    pause_seconds: f64,
    memory_bytes: u64,
    /// Of the memory image.
    image_bytes: u64,
    frames: snapshot::Totals,
    /// By which estimators the working set was found.
    working_set: api::WorkingSetSources,
}

pub(crate) fn save(arguments: &SaveArguments) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let directory = SocketDirectory::open()?;
    let client = directory.client(&arguments.name);
    // Before anything is made: a name that nobody has is the most likely mistake.
    let memory_bytes = client.status()?.configured_bytes;
    let path = &arguments.path;
    if path.symlink_metadata().is_ok() && !arguments.replace {
        let what = "something is there: name a path where nothing is, or --replace a snapshot";
        return Err(Failure::Usage(format!("{}: {what}", path.display())));
    }
    let parent = arguments.incremental.as_ref().map(Snapshot::open).transpose();
    let options = DraftOptions {
        compression: arguments.compress.into(),
        parent: parent.map_err(Failure::usage)?.map(Arc::new),
        lanes: lanes(),
        ..DraftOptions::default()
    };
    let (draft, lanes) = Draft::create(path, memory_bytes, options).map_err(Failure::usage)?;
    let request = SaveRequest {
        stop: arguments.stop,
        all: arguments.all,
        live: arguments.live,
        watch_milliseconds: arguments.watch,
        trace_milliseconds: arguments.trace,
        together: arguments.together,
    };
    let (report, kept) = take(client, draft, lanes, request, memory_bytes, |_| Ok(()))?;
    if arguments.stop {
        verbs::wait_for_end(&directory, &arguments.name)?;
    }
    let figures = Figures {
        seconds: begun.elapsed().as_secs_f64(),
        pause_seconds: report.pause_seconds,
        memory_bytes,
        image_bytes: kept.image_bytes,
        frames: kept.frames,
        working_set: report.working_set,
    };
    print(&if arguments.json { json(&figures)? } else { line(&figures, &kept) });
    Ok(ExitCode::from(SUCCESS))
}

/// Streams that a VM is sent on.
pub(crate) fn lanes() -> usize {
    thread::available_parallelism().map_or(1, |threads| threads.get().min(8))
}

/// Has the VM send itself, and keeps it; `amend` changes its state.
pub(crate) fn take(
    client: Client,
    draft: Draft,
    lanes: Vec<OwnedFd>,
    request: SaveRequest,
    memory_bytes: u64,
    amend: impl FnOnce(&mut MachineState) -> Result<(), SavedError>,
) -> Result<(SaveReport, Kept), Failure> {
    let client = client.with_timeout(TIMEOUT);
    let progress = Progress::default();
    let done = AtomicBool::new(false);
    let (report, kept) = thread::scope(|scope| {
        let asked = scope.spawn(|| client.save(lanes, request));
        let shown = scope.spawn(|| show(&progress, memory_bytes, &done));
        let kept = draft.keep_as(&progress, amend);
        done.store(true, Ordering::Relaxed);
        let panicked = || Failure::Host("a thread has panicked".to_owned());
        let report = asked.join().map_err(|_| panicked())?.map_err(Failure::from);
        shown.join().map_err(|_| panicked())?;
        Ok::<_, Failure>((report, kept))
    })?;
    // Which of the two is the cause: a disk that is full, or a VM that is gone.
    match (report, kept) {
        (Ok(report), Ok(kept)) => Ok((report, kept)),
        (_, Err(error)) if !error.is_of_the_stream() => Err(Failure::host(error)),
        (Err(error), _) => Err(error),
        (_, Err(error)) => Err(Failure::host(error)),
    }
}

fn json(figures: &Figures) -> Result<String, Failure> {
    Ok(serde_json::to_string(figures).map_err(Failure::host)? + "\n")
}

fn line(figures: &Figures, kept: &Kept) -> String {
    let parent = match kept.frames.parent {
        0 => String::new(),
        frames => format!(" and {} in its parent", text::bytes(u64::from(frames) * 4096)),
    };
    format!(
        "{} of {}{parent}; the guest stood for {:.0} ms\n",
        text::bytes(figures.image_bytes),
        text::bytes(figures.memory_bytes),
        figures.pause_seconds * 1e3
    )
}

/// On a terminal, how far it is, until it is done.
fn show(progress: &Progress, memory_bytes: u64, done: &AtomicBool) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let all = (memory_bytes / 4096).max(1);
    while !done.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let told = u64::from(progress.frames.load(Ordering::Relaxed));
        let written = u64::from(progress.written.load(Ordering::Relaxed)) * 4096;
        eprint!("\rfathom: {:3} %, {} written ", told * 100 / all, text::bytes(written));
        let _ = std::io::stderr().flush();
    }
    eprint!("\r\x1b[K");
}
