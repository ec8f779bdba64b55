//! `fathom clone`: the VM's process hands out its memory and its state; a process is started of them for each clone.
//!
//! ```text
//!   fathom clone --PUT clone--> the VM: stands, its memory becomes an image, goes on
//!        | <-- state, image --
//!        |  for each clone: names, disks and sockets of its own
//!        +--> clone-process: standard input is the image, standard output the state, standard error says how it went
//! ```

mod config;
mod disks;
pub(crate) mod process;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use api::{Client, CloneReport, CloneRequest, SocketDirectory};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use vmm::saved::{MachineState, Saved};

use crate::arguments::{ActivateArguments, CloneArguments, CloneHow, Confinement};
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;
use disks::Overlays;

/// What absent memory has to be fetched, or a later clone's to be copied, takes time.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// So many may be asked for.
const COUNT_MAX: u32 = 10_000;
/// What a clone says that runs.
const RUNS: u8 = b'+';

/// What was done, for scripts.
#[derive(Debug, Serialize)]
struct Done {
    /// How long the guest stood, if one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_seconds: Option<f64>,
    memory_bytes: u64,
    copied_bytes: u64,
    /// From the command to the last clone.
    seconds: f64,
    clones: Vec<Clone>,
}

/// A clone that runs.
#[derive(Debug, Serialize)]
struct Clone {
    name: String,
    pid: u32,
    /// Files that were made for its disks.
    overlays: Vec<PathBuf>,
    /// Where the host connects to it.
    vsock: Option<PathBuf>,
}

pub(crate) fn clone(arguments: &CloneArguments) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let how = &arguments.how;
    check_count(how)?;
    let directory = SocketDirectory::open()?;
    let client = directory.client(&arguments.name);
    // Before anything is made: a name that nobody has is the most likely mistake.
    client.status()?;
    let names = names(how, &arguments.name, &directory)?;
    let (report, pause_seconds, state, memory, overlays) = fetch(&client, &names)?;
    let started = start_all(how, &names, &state, &memory, overlays)?;
    let done = Done {
        pause_seconds: Some(pause_seconds),
        memory_bytes: report.memory_bytes,
        copied_bytes: report.copied_bytes,
        seconds: begun.elapsed().as_secs_f64(),
        clones: started,
    };
    done.tell(how)
}

/// `fathom activate`: the same from a snapshot.
pub(crate) fn activate(arguments: &ActivateArguments) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let how = &arguments.how;
    check_count(how)?;
    let saved = Saved::open(&arguments.path).map_err(Failure::usage)?;
    let image = saved.common_image().map_err(Failure::usage)?;
    let directory = SocketDirectory::open()?;
    let state = saved.state;
    let stem = state.config.name.as_deref().unwrap_or("vm");
    let names = names(how, stem, &directory)?;
    let overlays = Overlays::copy_first(&state.config, &names)?;
    let memory_bytes = state.config.memory.0;
    let memory = Memory { image, layer: None };
    let clones = start_all(how, &names, &state, &memory, overlays)?;
    let seconds = begun.elapsed().as_secs_f64();
    Done { pause_seconds: None, memory_bytes, copied_bytes: 0, seconds, clones }.tell(how)
}

fn check_count(how: &CloneHow) -> Result<(), Failure> {
    if how.count == 0 || how.count > COUNT_MAX {
        return Err(Failure::Usage(format!("--count: write 1 to {COUNT_MAX}")));
    }
    Ok(())
}

impl Done {
    fn tell(&self, how: &CloneHow) -> Result<ExitCode, Failure> {
        if how.json {
            print(&(serde_json::to_string(self).map_err(Failure::host)? + "\n"));
            return Ok(ExitCode::from(SUCCESS));
        }
        self.clones.iter().for_each(|clone| print(&format!("{}\n", clone.name)));
        let (count, bytes) = (self.clones.len(), text::bytes(self.memory_bytes));
        let stood = |seconds| format!("; the guest stood for {:.1} ms", seconds * 1e3);
        let stood = self.pause_seconds.map_or(String::new(), stood);
        print(&format!("{count} of {bytes} in {:.0} ms{stood}\n", self.seconds * 1e3));
        Ok(ExitCode::from(SUCCESS))
    }
}

/// As asked, or the first numbers that nobody has.
fn names(how: &CloneHow, stem: &str, directory: &SocketDirectory) -> Result<Vec<String>, Failure> {
    if let (Some(name), 1) = (&how.clone_name, how.count) {
        return Ok(vec![name.clone()]);
    }
    let stem = how.clone_name.as_deref().unwrap_or(stem);
    let taken = directory.names()?;
    let free =
        (1u32..).map(|number| format!("{stem}-{number}")).filter(|name| !taken.contains(name));
    Ok(free.take(how.count as usize).collect())
}

/// What clones lie over.
struct Memory {
    image: OwnedFd,
    /// Inherited by what this process starts.
    layer: Option<OwnedFd>,
}

type Fetched = (CloneReport, f64, MachineState, Memory, Overlays);

/// The state, the image of memory, and the disks of that moment.
fn fetch(client: &Client, names: &[String]) -> Result<Fetched, Failure> {
    let client = client.clone().with_timeout(TIMEOUT);
    let memory = memfd("fathom-guest-ram")?;
    let mut machine = File::from(memfd("fathom-clone")?);
    let begun = Instant::now();
    let (report, images) = client.make_clonable(&machine, &memory, CloneRequest::default())?;
    let copied = read_state(&mut machine).and_then(|state| {
        let overlays = Overlays::copy_first(&state.config, names)?;
        Ok((state, overlays))
    });
    let mut pause = report.pause_seconds;
    if report.stands {
        client.resume()?;
        pause = begun.elapsed().as_secs_f64();
    }
    let (state, overlays) = copied?;
    let mut images = images.into_iter();
    let image = images.next().ok_or_else(|| Failure::Host("no image of memory came".to_owned()))?;
    let layer = images.next();
    if let Some(layer) = &layer {
        let flags = rustix::io::FdFlags::empty();
        rustix::io::fcntl_setfd(layer, flags).map_err(Failure::host)?;
    }
    Ok((report, pause, state, Memory { image, layer }, overlays))
}

fn memfd(name: &str) -> Result<OwnedFd, Failure> {
    let made = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    made.map_err(|error| Failure::Host(format!("make a file in memory: {error}")))
}

fn read_state(file: &mut File) -> Result<MachineState, Failure> {
    let mut json = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut json)).map_err(Failure::host)?;
    serde_json::from_slice(&json).map_err(|error| {
        Failure::Host(format!("the VM's state: {error}: is it run by another version?"))
    })
}

/// Starts them all, then waits until each runs. Where one fails, those that run stay, and the error says so.
fn start_all(
    how: &CloneHow,
    names: &[String],
    state: &MachineState,
    memory: &Memory,
    mut overlays: Overlays,
) -> Result<Vec<Clone>, Failure> {
    let mut state = state.clone();
    let parent = state.config.clone();
    let mut children = Vec::new();
    let mut failed = None;
    for (index, name) in names.iter().enumerate() {
        let started = overlays.of(name).and_then(|own| {
            state.config = config::of_clone(&parent, name, index, &own, how.output.as_deref());
            let clone = Clone {
                name: name.clone(),
                pid: 0,
                overlays: own,
                vsock: state.config.vsock.as_ref().map(|vsock| vsock.path.clone()),
            };
            Ok((clone, start(how, &state, memory)?))
        });
        match started {
            Ok(started) => children.push(started),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let mut running = Vec::new();
    for (clone, child) in children {
        match wait_until_it_runs(child) {
            Ok(pid) => {
                overlays.keep(&clone.name);
                running.push(Clone { pid, ..clone });
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        None => Ok(running),
        Some(error) if running.is_empty() => Err(error),
        Some(error) => Err(Failure::Host(format!(
            "{error}: {} of {} run, `fathom list` shows them",
            running.len(),
            names.len()
        ))),
    }
}

fn start(how: &CloneHow, state: &MachineState, memory: &Memory) -> Result<Child, Failure> {
    let mut file = File::from(memfd("fathom-clone")?);
    let json = serde_json::to_vec(state).map_err(Failure::host)?;
    file.write_all(&json).and_then(|()| file.rewind()).map_err(Failure::host)?;
    let mut command = Command::new(program());
    command.arg("clone-process");
    if how.paused {
        command.arg("--paused");
    }
    if how.confine == Confinement::Off {
        command.args(["--confine", "off"]);
    }
    if let (Some(output), Some(name)) = (&how.output, &state.config.name) {
        command.arg("--log").arg(log_of(output, name));
    }
    if let Some(layer) = &memory.layer {
        command.arg("--layer").arg(layer.as_raw_fd().to_string());
    }
    let image = memory.image.try_clone().map_err(Failure::host)?;
    command.stdin(Stdio::from(image)).stdout(Stdio::from(file)).stderr(Stdio::piped());
    command.spawn().map_err(|error| Failure::Host(format!("start a clone's process: {error}")))
}

/// This one; by its name, which lists of processes show, unless its file is gone.
fn program() -> PathBuf {
    let named = std::env::current_exe().ok().filter(|path| path.is_file());
    named.unwrap_or_else(|| "/proc/self/exe".into())
}

fn log_of(output: &Path, name: &str) -> PathBuf {
    output.join(format!("{name}.log"))
}

/// The process id of a clone that runs. It goes on without us.
fn wait_until_it_runs(mut child: Child) -> Result<u32, Failure> {
    let mut said = Vec::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_end(&mut said).map_err(Failure::host)?;
    }
    if said == [RUNS] {
        return Ok(child.id());
    }
    let status = child.wait().map_err(Failure::host)?;
    let said = String::from_utf8_lossy(&said);
    let line = said.trim().trim_start_matches("fathom: ");
    if line.is_empty() {
        return Err(Failure::Host(format!("a clone's process ended with {status}")));
    }
    Err(Failure::Host(line.to_owned()))
}

/// Tells who waits in [`wait_until_it_runs`].
fn say_that_it_runs(mut client: &File) -> io::Result<()> {
    client.write_all(&[RUNS])
}
