//! Memory that is taken from guests which do not give it, and VMs that stand until enough is.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api::{Client, ReclaimRequest, RunState, SocketDirectory, VmStatus};
use policy::{Action, Verdict, VmVerdict};

/// Where what is taken from guests goes that is nowhere else.
#[derive(Clone, Debug)]
pub struct SwapOptions {
    /// Files are made there, one a VM. They have no names: their space is free when their VMs end.
    pub directory: PathBuf,
    /// What all of them may take: bytes.
    pub limit: Option<u64>,
}

/// Makes a store for a VM: a file that nobody else can open.
///
/// # Errors
/// Something is there, or the host refuses.
pub fn make_store(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// What was done to VMs beside setting their balloons.
#[derive(Debug, Default)]
pub(crate) struct Taker {
    options: Option<SwapOptions>,
    /// Asked to give memory, and not told since that it is enough.
    asked: BTreeSet<String>,
    /// Stand since this, or the daemon before, told them.
    stopped: BTreeSet<String>,
}

impl Taker {
    /// `stopped`: by the daemon before.
    pub(crate) fn new(options: Option<SwapOptions>, stopped: BTreeSet<String>) -> Self {
        Self { options, asked: BTreeSet::new(), stopped }
    }

    /// What all stores may take, where there is a bound.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.options.as_ref()?.limit
    }

    /// VMs that stand until the host has memory for them.
    pub(crate) fn stopped(&self) -> Vec<String> {
        self.stopped.iter().cloned().collect()
    }

    /// Does what is decided of each of `running`, which are in the order of the verdict.
    pub(crate) fn act(
        &mut self,
        sockets: &SocketDirectory,
        verdict: &Verdict,
        running: &[VmStatus],
    ) {
        let is_running = |name: &String| running.iter().any(|status| status.name == *name);
        self.asked.retain(is_running);
        self.stopped.retain(is_running);
        let room = self.room(verdict, running);
        for (decided, status) in verdict.vms.iter().zip(running) {
            let client = sockets.client(&status.name);
            self.reclaim(&client, decided, status, room);
            self.stand(&client, decided, status);
        }
    }

    /// What each store may take beyond what it has.
    fn room(&self, verdict: &Verdict, running: &[VmStatus]) -> Option<u64> {
        let used = running.iter().flat_map(|status| &status.reclaim);
        let used: u64 = used.map(|reclaim| reclaim.store_bytes).sum();
        let takers = verdict.vms.iter().filter(|vm| taken(vm) > 0).count() as u64;
        Some(self.limit()?.saturating_sub(used) / takers.max(1))
    }

    fn reclaim(
        &mut self,
        client: &Client,
        decided: &VmVerdict,
        status: &VmStatus,
        room: Option<u64>,
    ) {
        let name = &status.name;
        // Without a place for it, balloons are left to do what they can.
        let bytes = if self.options.is_some() { taken(decided) } else { 0 };
        if bytes == 0 {
            if self.asked.remove(name) {
                warn(client.reclaim(ReclaimRequest::default(), None));
            }
            return;
        }
        let before = status.reclaim.clone().unwrap_or_default();
        let store_limit_bytes = room.map(|room| before.store_bytes + room);
        let request = ReclaimRequest { bytes, bytes_per_second: None, store_limit_bytes };
        let store = match &self.options {
            Some(options) if before.store_limit_bytes.is_none() => {
                let path = options.directory.join(format!(".{name}.{}.swap", std::process::id()));
                let made = make_store(&path);
                made.inspect_err(|error| tracing::error!("{}: {error}", path.display())).ok()
            }
            _ => None,
        };
        if self.asked.insert(name.clone()) {
            tracing::info!(vm = name, "{} MiB are taken: {}", bytes >> 20, decided.reason);
        }
        warn(client.reclaim(request, store.as_ref()));
    }

    /// A VM stands only while that helps: as long as what it has can be put somewhere.
    fn stand(&mut self, client: &Client, decided: &VmVerdict, status: &VmStatus) {
        let name = &status.name;
        let helps = status.reclaim.as_ref().is_some_and(|reclaim| {
            reclaim.store_limit_bytes.is_some() && reclaim.problem.is_none()
        });
        let is_to_stand = decided.actions.contains(&Action::Stop) && helps;
        if is_to_stand && status.state == RunState::Running && !self.stopped.contains(name) {
            tracing::warn!(
                vm = name,
                "stands: the host is short of memory, and it has more than its target"
            );
            self.stopped.insert(name.clone());
            warn(client.pause());
        } else if !is_to_stand && self.stopped.contains(name) {
            tracing::info!(vm = name, "goes on");
            let resumed = client.resume();
            if resumed.is_ok() {
                self.stopped.remove(name);
            }
            warn(resumed);
        }
    }

    /// The daemon ends: nobody would let them go on.
    pub(crate) fn end(&mut self, sockets: &SocketDirectory) {
        for name in std::mem::take(&mut self.stopped) {
            warn(sockets.client(&name).resume());
        }
        for name in std::mem::take(&mut self.asked) {
            warn(sockets.client(&name).reclaim(ReclaimRequest::default(), None));
        }
    }
}

/// Bytes that the host is to take.
fn taken(decided: &VmVerdict) -> u64 {
    let taken = decided.actions.iter().map(|action| match action {
        Action::Reclaim(bytes) => *bytes,
        Action::Stop => 0,
    });
    taken.sum()
}

/// It is tried again the next time.
fn warn<E: std::fmt::Display>(done: Result<(), E>) {
    if let Err(error) = done {
        tracing::warn!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use api::testing::FakeVm;
    use api::{ReclaimStatus, Server};
    use policy::{MemoryState, Reason};

    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        sockets: SocketDirectory,
        vm: Arc<FakeVm>,
        _server: Server,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().expect("folder");
        let sockets = SocketDirectory::at(folder.path().join("sockets")).expect("sockets");
        let vm = Arc::new(FakeVm::new("web"));
        let claim = sockets.claim("web").expect("free");
        let server = Server::start(claim, Arc::clone(&vm) as _).expect("served");
        Place { folder, sockets, vm, _server: server }
    }

    impl Place {
        fn options(&self, limit: Option<u64>) -> Option<SwapOptions> {
            Some(SwapOptions { directory: self.folder.path().to_owned(), limit })
        }

        fn act(&self, taker: &mut Taker, actions: &[Action], status: &VmStatus) {
            let vm = VmVerdict {
                name: "web".into(),
                published: 0,
                by_curve: None,
                target: 0,
                idle: 0.0,
                marginal: None,
                actions: actions.to_vec(),
                reason: Reason::Shares,
            };
            let verdict = Verdict { state: MemoryState::Low, supply: 0, vms: vec![vm] };
            taker.act(&self.sockets, &verdict, std::slice::from_ref(status));
        }

        fn asked(&self) -> Option<(ReclaimRequest, bool)> {
            self.vm.reclaimed.lock().expect("no panic").take()
        }
    }

    fn status(reclaim: Option<ReclaimStatus>) -> VmStatus {
        VmStatus { name: "web".into(), reclaim, ..VmStatus::default() }
    }

    fn with_store(bytes: u64, problem: Option<&str>) -> VmStatus {
        status(Some(ReclaimStatus {
            store_bytes: bytes,
            store_limit_bytes: Some(u64::MAX),
            problem: problem.map(str::to_owned),
            ..ReclaimStatus::default()
        }))
    }

    #[test]
    fn a_store_is_given_once_and_what_is_enough_is_said() {
        let place = place();
        let mut taker = Taker::new(place.options(Some(100 << 20)), BTreeSet::new());
        place.act(&mut taker, &[Action::Reclaim(7 << 20)], &status(None));
        let (request, store) = place.asked().expect("asked");
        assert_eq!((request.bytes, request.store_limit_bytes), (7 << 20, Some(100 << 20)));
        assert!(store);
        let left: Vec<_> = fs::read_dir(place.folder.path()).expect("read").flatten().collect();
        assert!(left.iter().all(|entry| !entry.path().ends_with("swap")), "{left:?}");
        place.act(&mut taker, &[Action::Reclaim(1 << 20)], &with_store(60 << 20, None));
        let (request, store) = place.asked().expect("asked");
        assert_eq!((request.store_limit_bytes, store), (Some(100 << 20), false));
        place.act(&mut taker, &[], &with_store(60 << 20, None));
        assert_eq!(place.asked().expect("told").0.bytes, 0);
        place.act(&mut taker, &[], &with_store(60 << 20, None));
        assert_eq!(place.asked(), None, "what somebody else asks is not ours");
    }

    #[test]
    fn a_vm_stands_only_while_that_helps_and_goes_on_with_the_next_daemon() {
        let place = place();
        let paused = || place.vm.paused.load(Ordering::Relaxed);
        let both = [Action::Reclaim(1 << 20), Action::Stop];
        let mut taker = Taker::new(None, BTreeSet::new());
        place.act(&mut taker, &both, &status(None));
        assert!(!paused(), "there is nowhere to put what it has");
        assert_eq!(place.asked(), None);
        let mut taker = Taker::new(place.options(None), BTreeSet::new());
        place.act(&mut taker, &both, &with_store(0, None));
        assert!(paused());
        assert_eq!(taker.stopped(), ["web"]);
        place.act(&mut taker, &both, &with_store(0, Some("the swap store is full")));
        assert!(!paused());
        place.act(&mut taker, &both, &with_store(0, None));
        assert!(paused());
        let stopped = taker.stopped().into_iter().collect();
        drop(taker);
        let mut next = Taker::new(None, stopped);
        let stands = VmStatus { state: RunState::Paused, ..with_store(0, None) };
        place.act(&mut next, &[], &stands);
        assert!(!paused());
        // Whoever paused it now was the user.
        place.vm.paused.store(true, Ordering::Relaxed);
        place.act(&mut next, &[], &stands);
        next.end(&place.sockets);
        assert!(paused());
    }
}
