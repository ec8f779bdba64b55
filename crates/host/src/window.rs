//! What the daemon tells whoever asks its socket: the last decision, in JSON, as metrics, and as a page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{ControlError, Document, Documents, RunState, SocketDirectory, VmStatus};
use policy::{Action, VmVerdict};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::metrics;
use crate::pressure::Pressure;
use crate::share::SharedFrames;

/// Draws what `/fathom/host` says each second. All of it is in this file.
const PAGE: &str = include_str!("page.html");
/// Where [`HostStatus`] is.
const STATUS: &str = "/fathom/host";
/// A daemon that works has it at hand.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Answer to `GET /fathom/host`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// What was decided, of what, and when.
    #[serde(flatten)]
    pub board: Board,
    /// What has become of it, in the order of the facts.
    pub vms: Vec<VmState>,
    /// What is in the swap stores of all VMs: bytes.
    pub swap_bytes: u64,
    /// What they may take, where there is a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_limit_bytes: Option<u64>,
    /// What VMs have in common, where the daemon shares (`--share`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharedFrames>,
    /// How much this host's processes wait for memory, where its kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// How often the daemon has started again each VM that has a file, whether it runs or not.
    pub restarts: BTreeMap<String, u64>,
}

/// A VM that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// Which.
    pub name: String,
    /// Why its target is what it is, and what is done beside setting its balloon.
    pub why: String,
    /// Its vCPUs stand, whoever had them stand.
    pub paused: bool,
    /// They stand since the host has no memory for them.
    pub stopped: bool,
    /// What its swap store takes.
    pub swap_bytes: u64,
    /// Of its memory, what is in pages that others may have, too.
    #[serde(default)]
    pub shared_bytes: u64,
    /// What it waits for, or why not all was taken from it that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl HostStatus {
    /// What the user's daemon says; `None`: there is none that answers.
    #[must_use]
    pub fn ask(sockets: &SocketDirectory) -> Option<Self> {
        let text = sockets.daemon().with_timeout(ANSWER_TIMEOUT).document(STATUS).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// `running` is in the order of the verdict.
    pub(crate) fn new(
        board: Board,
        running: &[VmStatus],
        swap_limit_bytes: Option<u64>,
        sharing: Option<SharedFrames>,
        restarts: BTreeMap<String, u64>,
    ) -> Self {
        let pressure = Pressure::read();
        let state = |(decided, status): (&VmVerdict, &VmStatus)| {
            let reclaim = status.reclaim.as_ref();
            let problem = || reclaim.and_then(|reclaim| reclaim.problem.clone());
            VmState {
                name: status.name.clone(),
                why: why(decided, board.takes, |bytes| format!("{} MiB", bytes >> 20)),
                paused: status.state == RunState::Paused,
                stopped: board.stopped.contains(&status.name),
                swap_bytes: reclaim.map_or(0, |reclaim| reclaim.store_bytes),
                shared_bytes: status.shared_bytes,
                problem: status.waits_for.clone().or_else(problem),
            }
        };
        let vms: Vec<VmState> = board.verdict.vms.iter().zip(running).map(state).collect();
        let swap_bytes = vms.iter().fold(0u64, |sum, vm| sum.saturating_add(vm.swap_bytes));
        Self { board, vms, swap_bytes, swap_limit_bytes, sharing, pressure, restarts }
    }

    /// What of the limit somebody has: bytes. It may be more than the limit.
    #[must_use]
    pub fn used(&self) -> u64 {
        let vms = self.board.facts.vms.iter();
        let pools = self.sharing.map_or(0, |sharing| sharing.pool_bytes);
        vms.fold(pools, |sum: u64, vm| sum.saturating_add(vm.resident.saturating_add(vm.overhead)))
    }
}

/// The reason of a verdict and what is done, in words; `bytes` says a size, `takes` whether the host can take memory.
pub fn why(decided: &VmVerdict, takes: bool, bytes: impl Fn(u64) -> String) -> String {
    let mut words = decided.reason.to_string();
    for action in &decided.actions {
        words += &match action {
            Action::Reclaim(taken) if !takes => {
                let taken = bytes(*taken);
                format!("; {taken} are over that, and only its balloon can give them: no --swap")
            }
            // It would give nothing while it stands.
            Action::Stop if !takes => String::new(),
            Action::Reclaim(taken) => {
                format!("; {} are taken, which its balloon does not give in time", bytes(*taken))
            }
            Action::Stop => "; it should stand until then".to_owned(),
        };
    }
    words
}

/// Where the daemon puts it, and its sockets find it.
#[derive(Debug, Default)]
pub(crate) struct Window(Mutex<Option<Arc<HostStatus>>>);

impl Window {
    pub(crate) fn show(&self, status: HostStatus) {
        // Replacing leaves it whole whoever panics.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(status));
    }

    fn status(&self) -> Result<Arc<HostStatus>, ControlError> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shown.ok_or_else(|| ControlError::State("nothing is decided yet: ask again".to_owned()))
    }
}

impl Documents for Window {
    fn read(&self, path: &str) -> Option<Result<Document, ControlError>> {
        match path {
            "/" => Some(Ok(Document::page(PAGE))),
            STATUS => Some(self.status().and_then(|status| Document::json(&*status))),
            "/metrics" => {
                Some(self.status().map(|status| Document::metrics(metrics::text(&status))))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use policy::{Balloon, Facts, HostFacts, MemoryState, Settings, VmFacts, decide};

    use super::*;

    /// Two VMs that have too much, one of which stands and has a strange name.
    pub(crate) fn status() -> HostStatus {
        let mib = |n: u64| n << 20;
        let vm = |name: &str, active| VmFacts {
            name: name.to_owned(),
            limit: mib(256),
            memory: mib(256),
            overhead: mib(4),
            resident: mib(200),
            active: mib(active),
            balloon: Balloon { works: true, ..Balloon::default() },
            ..VmFacts::default()
        };
        let host = HostFacts { limit: mib(410), free: mib(2), state: MemoryState::High };
        let facts = Facts { host, vms: vec![vm("busy", 200), vm(STRANGE, 20)] };
        let settings = Settings::default();
        let verdict = decide(&facts, &settings).expect("a verdict");
        let stopped = vec![STRANGE.to_owned()];
        let takes = true;
        let board = Board { at: 1.5, pid: 7, facts, settings, verdict, takes, stopped };
        let reclaim = api::ReclaimStatus {
            store_bytes: mib(30),
            problem: Some("the swap store is full".to_owned()),
            ..api::ReclaimStatus::default()
        };
        let running = [
            VmStatus { name: "busy".to_owned(), shared_bytes: mib(9), ..VmStatus::default() },
            VmStatus {
                name: STRANGE.to_owned(),
                state: RunState::Paused,
                reclaim: Some(reclaim),
                ..VmStatus::default()
            },
        ];
        let restarts = [("busy".to_owned(), 3), ("gone".to_owned(), 9)].into();
        let [shared_bytes, pool_bytes, saved_bytes] = [9, 2, 7].map(mib);
        let sharing = SharedFrames { shared_bytes, pool_bytes, saved_bytes };
        let status = HostStatus::new(board, &running, Some(mib(100)), Some(sharing), restarts);
        let pressure = Pressure { some: 0.25, full: 0.125, some_seconds: 3.5, full_seconds: 2.0 };
        HostStatus { pressure: Some(pressure), ..status }
    }

    pub(crate) const STRANGE: &str = "<b>\"x\\\n";

    #[test]
    fn what_is_told_is_what_was_decided() {
        let window = Window::default();
        let wait = window.read(STATUS).expect("a path").expect_err("nothing yet");
        assert!(matches!(wait, ControlError::State(_)), "{wait}");
        let status = status();
        window.show(status.clone());
        let told = window.read(STATUS).expect("a path").expect("decided");
        let told: HostStatus = serde_json::from_str(told.text()).expect("a status");
        assert_eq!(told, status);
        // As `fathom balance --json` has it, and more.
        let board: Board =
            serde_json::to_value(&told).and_then(serde_json::from_value).expect("a board");
        assert_eq!(board, status.board);
        assert_eq!((told.used(), told.swap_bytes), (410 << 20, 30 << 20));
        assert!(!told.vms[0].stopped && told.vms[1].stopped && told.vms[1].paused);
        assert_eq!(told.vms[1].problem.as_deref(), Some("the swap store is full"));
        let (busy, idle) = (&told.vms[0].why, &told.vms[1].why);
        assert!(idle.contains("90 % of it is idle") && idle.contains("MiB are taken"), "{idle}");
        assert!(idle.ends_with("it should stand until then") && busy != idle, "{busy}");
        // Without a swap store nothing is taken, and nobody stands.
        let alone = why(&told.board.verdict.vms[1], false, |bytes| bytes.to_string());
        assert!(alone.ends_with("only its balloon can give them: no --swap"), "{alone}");
        assert!(window.read("/fathom/vm").is_none() && window.read("").is_none());
    }

    #[test]
    fn the_page_needs_nothing_but_itself_and_writes_names_as_text() {
        let page = Window::default().read("/").expect("a path").expect("a page");
        let page = page.text();
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            let of_svg = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!of_svg.contains(outside), "{outside}");
        }
        // What could make markup of a name.
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!page.contains(markup), "{markup}");
        }
        assert!(page.contains("default-src 'none'") && page.contains(STATUS));
        assert!(page.contains("prefers-color-scheme: dark"));
    }
}
