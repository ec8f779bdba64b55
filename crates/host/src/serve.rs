//! The daemon's loop.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::{self, Discriminant};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::{
    BalloonTarget, Client, ClientError, DirectoryError, DocumentServer, RunState, SocketDirectory,
    VmStatus,
};
use policy::{
    Action, Facts, HostFacts, MemoryState, Promise, Settings, Verdict, VmFacts, VmVerdict, admit,
    decide,
};
use rustix::fs::{FlockOperation, flock};

use crate::ask::{ask_each, facts};
use crate::board::Board;
use crate::config::{ConfigError, Configuration, Memory, VmFile};
use crate::curves::Curves;
use crate::merge::is_the_kernels;
use crate::share::Sharing;
use crate::swap::{SwapOptions, Taker};
use crate::vms::{Launch, Vms};
use crate::window::{HostStatus, Window};

/// Beside the sockets; held while a daemon runs.
const LOCK: &str = ".serve.lock";
/// A balloon that is to grow and has not for so long does not work.
const PATIENCE: Duration = Duration::from_secs(10);
/// It has grown if by more than this: bytes.
const PROGRESS: u64 = 1 << 20;
/// A process of ours without its guest's memory has about so much: bytes. It is counted when it runs.
const OVERHEAD: u64 = 24 << 20;

/// What the daemon is to do.
#[derive(Debug)]
pub struct HostOptions {
    /// Files of VMs; without, only those are balanced that somebody else starts.
    pub directory: Option<PathBuf>,
    /// What VMs may have in all: bytes.
    pub limit: u64,
    /// Of who gets what of it.
    pub settings: Settings,
    /// How VMs are started.
    pub launch: Launch,
    /// Where what is taken from guests goes; without, nothing is taken but by balloons.
    pub swap: Option<SwapOptions>,
    /// Frames that guests of one owner have alike are in one page.
    pub share: bool,
    /// Where what is decided can be read beside the daemon's own socket: by TCP, on the loopback interface.
    pub listen: Option<SocketAddr>,
    /// A socket for that which somebody else has made: it is taken in place of `listen`.
    pub listener: Option<TcpListener>,
}

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Two would pull at the same balloons.
    #[error("a daemon runs already for this user: {0} is locked")]
    Running(PathBuf),
    /// The directory of sockets.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The directory of files.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host refused.
    #[error("{path}: {source}")]
    Host {
        /// What of.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The socket that was handed over.
    #[error("the socket to listen on: {0}")]
    Listener(io::Error),
    /// Not an address of the loopback interface, or not to be had.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the host said.
        source: io::Error,
    },
}

/// A daemon.
#[derive(Debug)]
pub struct Host {
    options: HostOptions,
    sockets: SocketDirectory,
    /// What they show. They end before somebody else may have the lock.
    window: Arc<Window>,
    _servers: Vec<DocumentServer>,
    _lock: File,
    configuration: Configuration,
    /// Of the directory when it was read; of one that cannot be read there is none.
    stamp: Option<Vec<(PathBuf, u64, Option<SystemTime>)>>,
    vms: Vms,
    sharing: Option<Sharing>,
    balloons: BTreeMap<String, Seen>,
    curves: Curves,
    taker: Taker,
    state: MemoryState,
    verdict: Option<Verdict>,
}

/// A balloon over time.
#[derive(Clone, Copy, Debug)]
struct Seen {
    held: u64,
    /// When it held more than before, or had nothing to do.
    moved: Instant,
}

impl Host {
    /// Takes the place of the user's daemon.
    ///
    /// # Errors
    /// There is one; the files or sockets cannot be read.
    pub fn new(mut options: HostOptions, sockets: SocketDirectory) -> Result<Self, HostError> {
        let path = sockets.path().join(LOCK);
        let failed = |source: io::Error| HostError::Host { path: path.clone(), source };
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(HostError::Running(path)),
            locked => locked.map_err(|errno| failed(errno.into()))?,
        }
        // One that was killed has left VMs standing.
        let stopped = Board::read(sockets.path()).map(|board| board.stopped).unwrap_or_default();
        let taker = Taker::new(options.swap.clone(), stopped.into_iter().collect());
        let window = Arc::<Window>::default();
        let servers = listen(&mut options, &sockets, &window)?;
        let sharing = options.share.then(|| Sharing::begin(sockets.clone())).transpose();
        let sharing = sharing.map_err(failed)?;
        let mut host = Self {
            sharing,
            options,
            sockets,
            window,
            _servers: servers,
            _lock: lock,
            configuration: Configuration::default(),
            stamp: None,
            vms: Vms::default(),
            balloons: BTreeMap::new(),
            curves: Curves::default(),
            taker,
            state: MemoryState::default(),
            verdict: None,
        };
        host.read_configuration()?;
        Ok(host)
    }

    /// Looks, decides, acts: once a second, say. What fails is in the log, and tried again the next time.
    pub fn step(&mut self, now: Instant) {
        if let Err(error) = self.read_configuration() {
            tracing::error!("{error}: what it said before stays");
        }
        // Memory that is watched on KVM is in a file, for good, and the kernel shares none of that: whether it merges by
        // now or is told to later.
        let ask = if self.sharing.is_some() { ask_those_of_no_kernel } else { ask_all };
        let answers = match ask_each(&self.sockets, ask) {
            Ok(answers) => answers,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let mut running = Vec::new();
        for answer in answers {
            match answer {
                Ok(status) if status.state != RunState::Ended => running.push(status),
                Ok(_) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        self.start_vms(&running, now);
        let facts = self.facts(&running, now);
        self.act(facts, &running);
    }

    /// Reads the files if they have changed.
    fn read_configuration(&mut self) -> Result<(), HostError> {
        let Some(directory) = &self.options.directory else { return Ok(()) };
        let stamp = Configuration::stamp(directory)
            .map_err(|source| HostError::Host { path: directory.clone(), source })?;
        if self.stamp.as_ref() == Some(&stamp) {
            return Ok(());
        }
        let (configuration, errors) = Configuration::read(directory, &self.configuration)?;
        for error in errors {
            tracing::error!("{error}: what it said before stays");
        }
        if let Some(sharing) = &self.sharing {
            let owner =
                |(name, file): (&String, &VmFile)| Some((name.clone(), file.owner.clone()?));
            sharing.set_owners(configuration.vms.iter().filter_map(owner).collect());
        }
        self.configuration = configuration;
        self.stamp = Some(stamp);
        Ok(())
    }

    fn start_vms(&mut self, running: &[VmStatus], now: Instant) {
        let Self { options, configuration, vms, sockets, taker, .. } = self;
        let swap = taker.limit();
        let of =
            |name: &str| configuration.vms.get(name).map(|file| file.memory).unwrap_or_default();
        let mut promised: Vec<Promise> = running
            .iter()
            .map(|status| {
                let VmFacts { reservation, limit, overhead, .. } =
                    facts(status, of(&status.name), true);
                Promise { reservation, limit, overhead }
            })
            .collect();
        let may = |_: &str, file: &VmFile| {
            let Memory { reservation, limit, .. } = file.memory;
            let limit = limit.unwrap_or_else(|| file.size()).max(reservation);
            let new = Promise { reservation, limit, overhead: OVERHEAD };
            admit(&promised, new, options.limit, swap).map_err(|refusal| refusal.to_string())?;
            promised.push(new);
            Ok(())
        };
        vms.keep_up(configuration, sockets, &options.launch, now, may);
    }

    fn facts(&mut self, running: &[VmStatus], now: Instant) -> Facts {
        self.curves.look(&self.sockets, running, now);
        self.balloons.retain(|name, _| running.iter().any(|status| status.name == *name));
        let mut vms = Vec::with_capacity(running.len());
        for status in running {
            let works = self.balloon_works(status, now);
            let file = self.configuration.vms.get(&status.name);
            let memory = file.map(|file| file.memory).unwrap_or_default();
            let curve = self.curves.of(&status.name);
            vms.push(VmFacts { curve, ..facts(status, memory, works) });
        }
        let used: u64 = vms.iter().map(|vm| vm.resident + vm.overhead).sum();
        let used = used + self.sharing.as_ref().map_or(0, |sharing| sharing.figures().pool_bytes);
        let limit = self.options.limit;
        let host = HostFacts { limit, free: limit.saturating_sub(used), state: self.state };
        Facts { host, vms }
    }

    /// Whether it does in time what it was asked.
    fn balloon_works(&mut self, status: &VmStatus, now: Instant) -> bool {
        let held = status.ballooned_bytes;
        let seen = self.balloons.entry(status.name.clone()).or_insert(Seen { held, moved: now });
        let is_done = held + PROGRESS >= status.balloon_target_bytes;
        // A guest that stands cannot.
        let stands = status.state == RunState::Paused;
        if is_done || stands || held > seen.held + PROGRESS {
            *seen = Seen { held, moved: now };
        }
        now - seen.moved < PATIENCE
    }

    fn act(&mut self, facts: Facts, running: &[VmStatus]) {
        let settings = self.options.settings;
        let verdict = match decide(&facts, &settings) {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::error!("{error}: what was decided before stays");
                return;
            }
        };
        self.state = verdict.state;
        for (decided, status) in verdict.vms.iter().zip(running) {
            let target_bytes = status.configured_bytes.saturating_sub(decided.target);
            if target_bytes == status.balloon_target_bytes {
                continue;
            }
            let set = self.sockets.client(&status.name).set_balloon(BalloonTarget { target_bytes });
            if let Err(error) = set {
                tracing::warn!("{error}");
            }
        }
        self.taker.act(&self.sockets, &verdict, running);
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at = at.map_or(0.0, |since| since.as_secs_f64());
        let stopped = self.taker.stopped();
        let (pid, takes) = (std::process::id(), self.options.swap.is_some());
        let board = Board { at, pid, facts, settings, verdict, takes, stopped };
        if self.verdict.as_ref().is_none_or(|before| differs(before, &board.verdict)) {
            let line = serde_json::to_string(&board).unwrap_or_default();
            tracing::info!(target: "fathom::decision", "{line}");
        }
        if let Err(error) = board.write(self.sockets.path()) {
            tracing::warn!("{error}");
        }
        self.verdict = Some(board.verdict.clone());
        let (limit, restarts) = (self.taker.limit(), self.vms.restarts());
        let sharing = self.sharing.as_ref().map(Sharing::figures);
        self.window.show(HostStatus::new(board, running, limit, sharing, restarts));
    }
}

/// Where it is told what is decided. Nothing else needs the daemon's own socket.
fn listen(
    options: &mut HostOptions,
    sockets: &SocketDirectory,
    window: &Arc<Window>,
) -> Result<Vec<DocumentServer>, HostError> {
    let mut servers = Vec::new();
    match (options.listener.take(), options.listen) {
        (Some(listener), _) => {
            let server = DocumentServer::on(listener, Arc::clone(window) as _);
            servers.push(server.map_err(HostError::Listener)?);
        }
        (None, Some(address)) => {
            let server = DocumentServer::loopback(address, Arc::clone(window) as _);
            servers.push(server.map_err(|source| HostError::Listen { address, source })?);
        }
        (None, None) => {}
    }
    for address in servers.iter().filter_map(DocumentServer::address) {
        tracing::info!("shown at http://{address}/");
    }
    let path = sockets.daemon_socket();
    match DocumentServer::at(&path, Arc::clone(window) as _) {
        Ok(server) => servers.push(server),
        Err(error) => tracing::warn!("{}: {error}: metrics are not to be had", path.display()),
    }
    Ok(servers)
}

/// Watched from now on.
fn ask_all(client: &Client) -> Result<VmStatus, ClientError> {
    client.watch().and_then(|()| client.status())
}

/// The same, but for those whose frames the host's kernel is to share.
fn ask_those_of_no_kernel(client: &Client) -> Result<VmStatus, ClientError> {
    let status = client.status()?;
    if is_the_kernels(&status) { Ok(status) } else { ask_all(client) }
}

/// Whether it is worth a line: somebody is to have something else.
fn differs(before: &Verdict, after: &Verdict) -> bool {
    let targets = |verdict: &Verdict| -> Vec<(String, u64)> {
        verdict.vms.iter().map(|vm| (vm.name.clone(), vm.target)).collect()
    };
    // How much is taken changes with each frame.
    let actions = |verdict: &Verdict| -> Vec<Vec<Discriminant<Action>>> {
        let of = |vm: &VmVerdict| vm.actions.iter().map(mem::discriminant).collect();
        verdict.vms.iter().map(of).collect()
    };
    before.state != after.state
        || targets(before) != targets(after)
        || actions(before) != actions(after)
}

impl Drop for Host {
    fn drop(&mut self) {
        self.taker.end(&self.sockets);
        // What is on it would not be true any more. Balloons stay as they are: guests go on with what they have.
        Board::remove(self.sockets.path());
    }
}
