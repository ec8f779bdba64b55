//! `fathom push` and `fathom pull`: snapshots on their way into object stores and out of them.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use objects::{Location, ObjectsError, Pushed};
use serde::Serialize;

use crate::Common;
use crate::failure::Failure;

/// Between two words of how far it is.
const TICK: Duration = Duration::from_millis(100);

/// What `--json` prints.
#[derive(Serialize)]
struct Figures {
    seconds: f64,
    /// That went over the network, for a push; of guest memory, for a pull.
    bytes: u64,
}

pub(crate) fn push(path: &Path, url: &str, common: &Common) -> Result<(), Failure> {
    let begun = Instant::now();
    let location = Location::parse(url)?;
    let progress = Progress::default();
    let put = objects::push(path, &location, common.replace, |bytes| progress.tell(bytes, "put"));
    progress.end();
    let Pushed { bytes } = put?;
    tell(common.json, &Figures { seconds: begun.elapsed().as_secs_f64(), bytes }, "put")
}

pub(crate) fn pull(url: &str, path: &Path, common: &Common) -> Result<(), Failure> {
    let begun = Instant::now();
    let location = Location::parse(url)?;
    refuse_what_is_there(path, common.replace)?;
    let snapshot = objects::open(&location)?;
    let progress = Progress::default();
    let last = Cell::new(0);
    let copied = snapshot.copy(path, |bytes| {
        last.set(bytes);
        progress.tell(bytes, "come");
    });
    progress.end();
    if let Some(old) = copied.map_err(ObjectsError::from)? {
        tracing::warn!("{}: the old snapshot could not be removed: remove it", old.display());
    }
    let figures = Figures { seconds: begun.elapsed().as_secs_f64(), bytes: last.get() };
    tell(common.json, &figures, "of memory")?;
    if let Some(parent) = &snapshot.manifest().parent
        && !common.json
    {
        print(&format!("it needs its parent, {}: pull that, too\n", parent.path));
    }
    Ok(())
}

fn refuse_what_is_there(path: &Path, replace: bool) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() && !replace {
        let what = "something is there: name a path where nothing is, or --replace a snapshot";
        return Err(Failure::usage(format!("{}: {what}", path.display())));
    }
    Ok(())
}

fn tell(json: bool, figures: &Figures, what: &str) -> Result<(), Failure> {
    let Figures { seconds, bytes } = figures;
    print(&if json {
        serde_json::to_string(figures).map_err(Failure::host)? + "\n"
    } else {
        format!("{} {what} in {seconds:.1} s\n", mebibytes(*bytes))
    });
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}M", bytes as f64 / (1 << 20) as f64)
}

/// Prints; a reader who closed the pipe has seen enough.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// On a terminal, how far it is.
#[derive(Default)]
struct Progress(Cell<Option<Instant>>);

impl Progress {
    fn tell(&self, bytes: u64, what: &str) {
        let early = self.0.get().is_some_and(|last| last.elapsed() < TICK);
        if early || !std::io::stderr().is_terminal() {
            return;
        }
        self.0.set(Some(Instant::now()));
        eprint!("\rfathom: {} {what} ", mebibytes(bytes));
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.0.get().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
