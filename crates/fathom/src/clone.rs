//! `fathom clone`: the VM's process hands out its memory and its state; a process is started of them for each clone.
//!
//! ```text
//!   fathom clone --PUT clone--> the VM: stands, its memory becomes an image, goes on
//!        | <-- state, image --
//!        |  for each clone: names, disks and sockets of its own
//!        +--> clone-process: standard input is the image, standard output the state, standard error says how it went
//! ```

mod config;
pub(crate) mod disks;
mod gate;
pub(crate) mod process;
mod running;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use api::{Client, CloneReport, CloneRequest, SocketDirectory};
use remote::Address;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use snapshot::Extent;
use vmm::config::VmConfig;
use vmm::saved::{CommonImage, MachineState, Saved};

use crate::arguments::{ActivateArguments, CloneArguments, CloneHow, Confinement, PoolPlace};
use crate::failure::{Failure, SUCCESS};
use crate::identity::{self, Became, Change};
use crate::list::print;
use crate::{cluster, pool, store, text};
use disks::Overlays;
use gate::Gate;

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
pub(crate) struct Clone {
    name: String,
    pid: u32,
    /// Files that were made for its disks.
    overlays: Vec<PathBuf>,
    /// Where the host connects to it.
    vsock: Option<PathBuf>,
    /// Of one that was activated.
    #[serde(flatten)]
    became: Option<Became>,
}

impl Clone {
    /// Its name and, if it was activated, what it has become.
    pub(crate) fn became(&self) -> Option<(&str, &Became)> {
        self.became.as_ref().map(|became| (self.name.as_str(), became))
    }
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
    let started = start_all(how, &names, &state, &memory, overlays, &[], begun)?;
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
    if let Some(file) = &arguments.cluster {
        return cluster::activate(file, how, &arguments.place, arguments.disks.as_deref(), begun);
    }
    check_count(how)?;
    let path = arguments.path.as_deref().unwrap_or(Path::new(""));
    let substrate = Substrate::find(path, &arguments.place)?;
    let config = &substrate.saved.state.config;
    let stem = substrate.name.as_deref().or(config.name.as_deref()).unwrap_or("vm");
    let names = names(how, stem, &SocketDirectory::open()?)?;
    let changes = identity::changes(&arguments.identity, config, &names)?;
    if how.paused && changes.iter().any(Change::needs_agent) {
        let why = "--paused: a guest that stands has no agent that answers: give it --memory only";
        return Err(Failure::Usage(why.to_owned()));
    }
    let memory_bytes = config.memory.0;
    let memory = substrate.memory(arguments.identity.net.is_some())?;
    let disks = arguments.disks.as_deref();
    let clones = activate_all(how, &substrate, &memory, &names, &changes, disks, begun)?;
    let seconds = begun.elapsed().as_secs_f64();
    Done { pause_seconds: None, memory_bytes, copied_bytes: 0, seconds, clones }.tell(how)
}

/// What VMs are activated from.
pub(crate) struct Substrate {
    saved: Saved,
    /// In the pool.
    name: Option<String>,
}

impl Substrate {
    /// By its name in the pool, or the path or URL of a snapshot.
    pub(crate) fn find(path: &Path, place: &PoolPlace) -> Result<Self, Failure> {
        if Address::is_url(path) {
            return Ok(Self { saved: store::restored::open_here(path)?, name: None });
        }
        let (path, name) = pool::find(path, place)?;
        Ok(Self { saved: Saved::open(&path).map_err(Failure::usage)?, name })
    }

    pub(crate) fn config(&self) -> &VmConfig {
        &self.saved.state.config
    }

    /// Its memory, which is checked; `own_nets` if each VM has a network of its own instead of the saved one's.
    pub(crate) fn memory(&self, own_nets: bool) -> Result<Memory, Failure> {
        Memory::common(self.saved.common_image(own_nets).map_err(Failure::usage)?)
    }
}

/// Starts VMs of these names, each with its change; copies of overlays are in the folder `disks`, or beside them.
pub(crate) fn activate_all(
    how: &CloneHow,
    substrate: &Substrate,
    memory: &Memory,
    names: &[String],
    changes: &[Change],
    disks: Option<&Path>,
    begun: Instant,
) -> Result<Vec<Clone>, Failure> {
    let state = &substrate.saved.state;
    let overlays = Overlays::copy_first(&state.config, names, disks)?;
    start_all(how, names, state, memory, overlays, changes, begun)
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
        match self.clones.first().and_then(Clone::became) {
            Some(_) => print(&identity::table(self.clones.iter().filter_map(Clone::became))),
            None => self.clones.iter().for_each(|clone| print(&format!("{}\n", clone.name))),
        }
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
pub(crate) struct Memory {
    image: OwnedFd,
    /// Inherited by what this process starts, as are all below.
    layer: Option<OwnedFd>,
    /// Says what is elsewhere than in the image.
    extents: Option<OwnedFd>,
    /// Where that is.
    shared: Vec<OwnedFd>,
}

impl Memory {
    fn common(image: CommonImage) -> Result<Self, Failure> {
        let CommonImage { file, extents, shared } = image;
        let extents = if extents.is_empty() {
            None
        } else {
            let mut file = File::from(memfd("fathom-extents")?);
            file.write_all(&Extent::encode_all(&extents)).map_err(Failure::host)?;
            Some(OwnedFd::from(file))
        };
        extents.iter().chain(&shared).try_for_each(inherited)?;
        Ok(Self { image: file, layer: None, extents, shared })
    }
}

/// Has processes that are started keep it.
fn inherited(file: &OwnedFd) -> Result<(), Failure> {
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).map_err(Failure::host)
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
        let overlays = Overlays::copy_first(&state.config, names, None)?;
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
    layer.iter().try_for_each(inherited)?;
    let memory = Memory { image, layer, extents: None, shared: Vec::new() };
    Ok((report, pause, state, memory, overlays))
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

/// Starts them all, then waits until each runs, and has it become what `changes` has for it, if anything. Where one fails,
/// those that run stay, and the error says so.
fn start_all(
    how: &CloneHow,
    names: &[String],
    state: &MachineState,
    memory: &Memory,
    mut overlays: Overlays,
    changes: &[Change],
    begun: Instant,
) -> Result<Vec<Clone>, Failure> {
    let mut state = state.clone();
    let parent = state.config.clone();
    let mut children = Vec::new();
    let mut failed = None;
    let gate = (names.len() > 1 && !how.paused).then(Gate::new).transpose();
    let gate = gate.map_err(Failure::host)?;
    for (index, name) in names.iter().enumerate() {
        let started = overlays.of(name).and_then(|own| {
            state.config = config::of_clone(&parent, name, index, &own, how.output.as_deref());
            changes.get(index).inspect(|change| change.configure(&mut state));
            let clone = Clone {
                name: name.clone(),
                pid: 0,
                overlays: own,
                vsock: state.config.vsock.as_ref().map(|vsock| vsock.path.clone()),
                became: None,
            };
            Ok((clone, start(how, &state, memory, gate.as_ref())?))
        });
        match started {
            Ok(started) => children.push(started),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let said = gate.map(|gate| gate.open(children.iter_mut().map(|(_, child)| child)));
    let said = said.into_iter().flatten().chain(std::iter::repeat(Vec::new()));
    let children = children.into_iter().zip(said).collect();
    let (running, error) =
        running::wait_for_all(children, changes, begun, |name| overlays.keep(name));
    failed = failed.or(error);
    match failed {
        None => Ok(running),
        Some(error) if running.is_empty() => Err(error),
        Some(error) => Err(Failure::Host(format!(
            "{error}: {} of {} run: {}",
            running.len(),
            names.len(),
            some_names(&running)
        ))),
    }
}

/// Not all where they are many: `fathom list` has them.
fn some_names(running: &[Clone]) -> String {
    const SHOWN: usize = 20;
    let names: Vec<&str> = running.iter().take(SHOWN).map(|clone| clone.name.as_str()).collect();
    names.join(", ") + if running.len() > SHOWN { " and others" } else { "" }
}

fn start(
    how: &CloneHow,
    state: &MachineState,
    memory: &Memory,
    gate: Option<&Gate>,
) -> Result<Child, Failure> {
    let mut file = File::from(memfd("fathom-clone")?);
    let json = serde_json::to_vec(state).map_err(Failure::host)?;
    file.write_all(&json).and_then(|()| file.rewind()).map_err(Failure::host)?;
    let mut command = Command::new(program());
    store::restored::without_keys(&mut command);
    command.arg("clone-process");
    if how.paused {
        command.arg("--paused");
    }
    if let Some(gate) = gate {
        command.arg("--gate").arg(gate.descriptor().to_string());
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
    if let Some(extents) = &memory.extents {
        command.arg("--extents").arg(extents.as_raw_fd().to_string());
    }
    for shared in &memory.shared {
        command.arg("--shared").arg(shared.as_raw_fd().to_string());
    }
    let image = memory.image.try_clone().map_err(Failure::host)?;
    command.stdin(Stdio::from(image)).stdout(Stdio::from(file)).stderr(Stdio::piped());
    command.spawn().map_err(|error| Failure::Host(format!("start a clone's process: {error}")))
}

/// This one; by its name, which lists of processes show, unless its file is gone.
pub(crate) fn program() -> PathBuf {
    let named = std::env::current_exe().ok().filter(|path| path.is_file());
    named.unwrap_or_else(|| "/proc/self/exe".into())
}

fn log_of(output: &Path, name: &str) -> PathBuf {
    output.join(format!("{name}.log"))
}

/// The process id of a clone that runs. It goes on without us. `said`: what was read of it before.
fn wait_until_it_runs(mut child: Child, mut said: Vec<u8>) -> Result<u32, Failure> {
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
