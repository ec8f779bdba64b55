//! `fathom dock`: makes a VM small, and keeps it in the pool.

mod shrink;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use api::{SaveRequest, SocketDirectory};
use serde::Serialize;
use vmm::saved::{Draft, DraftOptions, Kept, MachineState, Saved, SavedError};

use crate::arguments::DockArguments;
use crate::clone::disks;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::pool::{LockedPool, Pool};
use crate::{agent, save, text, verbs};

/// What it came to, for scripts.
#[derive(Debug, Serialize)]
struct Figures {
    name: String,
    /// From the command to a substrate.
    seconds: f64,
    /// How long the guest stood, if one ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_seconds: Option<f64>,
    memory_bytes: u64,
    /// Its memory that is stored for it.
    own_bytes: u64,
    /// That others have already, or it has twice.
    shared_bytes: u64,
    frames: snapshot::Totals,
    /// What the guest was made to forget before.
    taken_bytes: u64,
}

pub(crate) fn dock(arguments: &DockArguments) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let path = Path::new(&arguments.source);
    let is_path = arguments.source.contains('/') || path.symlink_metadata().is_ok();
    let mut figures = if is_path { dock_snapshot(arguments, path)? } else { dock_vm(arguments)? };
    figures.seconds = begun.elapsed().as_secs_f64();
    print(&if arguments.json {
        serde_json::to_string(&figures).map_err(Failure::host)? + "\n"
    } else {
        figures.line()
    });
    Ok(ExitCode::from(SUCCESS))
}

impl Figures {
    fn of(name: &str, memory_bytes: u64, kept: &Kept) -> Self {
        Self {
            name: name.to_owned(),
            seconds: 0.0,
            pause_seconds: None,
            memory_bytes,
            own_bytes: kept.image_bytes,
            shared_bytes: kept.shared_bytes,
            frames: kept.frames,
            taken_bytes: 0,
        }
    }

    fn line(&self) -> String {
        let frames = |frames: u32| text::bytes(u64::from(frames) * memory::FRAME_SIZE as u64);
        let left = [
            ("zeros", self.frames.zero),
            ("free", self.frames.free),
            ("in the balloon", self.frames.ballooned),
        ];
        let left = left.iter().filter(|(_, count)| *count > 0);
        let left: Vec<_> = left.map(|(what, count)| format!("{} {what}", frames(*count))).collect();
        let stood = |seconds| format!("; the guest stood for {:.0} ms", seconds * 1e3);
        format!(
            "{}: {} of its own and {} shared, of {}; left out: {}; {:.0} ms{}\n",
            self.name,
            text::bytes(self.own_bytes),
            text::bytes(self.shared_bytes),
            text::bytes(self.memory_bytes),
            if left.is_empty() { "nothing".to_owned() } else { left.join(", ") },
            self.seconds * 1e3,
            self.pause_seconds.map_or(String::new(), stood),
        )
    }
}

fn dock_vm(arguments: &DockArguments) -> Result<Figures, Failure> {
    let directory = SocketDirectory::open()?;
    let client = directory.client(&arguments.source);
    // Before anything is made: a name that nobody has is the most likely mistake.
    let memory_bytes = client.status()?.configured_bytes;
    let pool = Pool::open(&arguments.place)?.lock()?;
    let name = arguments.substrate.as_ref().unwrap_or(&arguments.source);
    let path = pool.place_for(name)?;
    let facts = agent::before_dock(&client, arguments.keep_running)?;
    let taken_bytes = if arguments.keep_cache { 0 } else { shrink::shrink(&client)? };
    let options = DraftOptions {
        lanes: save::lanes(),
        sharing: Some(pool.sharing()?),
        agent: facts.is_some(),
        ..DraftOptions::default()
    };
    let (draft, lanes) = Draft::create(&path, memory_bytes, options).map_err(Failure::usage)?;
    let request = SaveRequest { stop: !arguments.keep_running, ..SaveRequest::default() };
    let mut overlays = Overlays::default();
    let amend = |state: &mut MachineState| overlays.take(state, &pool, name);
    let (report, kept) = save::take(client, draft, lanes, request, memory_bytes, amend)?;
    overlays.keep();
    if !arguments.keep_running {
        verbs::wait_for_end(&directory, &arguments.source)?;
    }
    let pause_seconds = Some(report.pause_seconds);
    Ok(Figures { pause_seconds, taken_bytes, ..Figures::of(name, memory_bytes, &kept) })
}

fn dock_snapshot(arguments: &DockArguments, path: &Path) -> Result<Figures, Failure> {
    let saved = Saved::open(path).map_err(Failure::usage)?;
    let pool = Pool::open(&arguments.place)?.lock()?;
    let own = path.canonicalize().ok();
    let own = own.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let own = own.map(|name| name.strip_suffix(".snapshot").unwrap_or(name));
    let name = arguments.substrate.as_deref().or(own).unwrap_or_default();
    let to = pool.place_for(name)?;
    let mut overlays = Overlays::default();
    let amend = |state: &mut MachineState| overlays.take(state, &pool, name);
    let kept = saved.copy_to(&to, pool.sharing()?, amend).map_err(Failure::usage)?;
    overlays.keep();
    Ok(Figures::of(name, saved.state.config.memory.0, &kept))
}

/// Copies of a VM's overlays, removed again unless they are kept.
#[derive(Default)]
struct Overlays(Vec<PathBuf>);

impl Overlays {
    /// Copies those of `state`, and has it use the copies.
    fn take(
        &mut self,
        state: &mut MachineState,
        pool: &LockedPool,
        name: &str,
    ) -> Result<(), SavedError> {
        state.check_common()?;
        let theirs = state.config.disks.iter().filter_map(|disk| disk.overlay.as_ref());
        for (number, from) in theirs.enumerate() {
            let to = pool.pool().overlay_of(name, number);
            disks::copy(from, &to)
                .map_err(|source| SavedError::File { path: to.clone(), source })?;
            self.0.push(to);
        }
        state.set_overlays(&self.0)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        for path in &self.0 {
            // What cannot be removed now is when the next one is docked by that name.
            let _ = fs::remove_file(path);
        }
    }
}
