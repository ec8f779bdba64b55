//! The memory of a restored machine, which comes from its snapshot before the guest runs, while it runs, or both.
//!
//! ```text
//!                  eager            working-set                      lazy
//!  before it runs  everything       what is in within FIRST          nothing
//!  while it runs                    the working set, in its order
//!                                   the rest, out of the guest's way the rest, out of the guest's way
//! ```
//! A frame that the guest needs before it has come is fetched at once, with its neighbours in the file
//! ([`demand::Demand`]); so all modes are right whatever is in the working set. While that is learnt
//! ([`learn`]), it is what the guest really touched, in the order in which it did.

mod demand;
mod learn;
mod read;
mod report;

use std::fmt;
use std::io;
use std::process::Child;
use std::sync::Arc;
use std::time::Instant;

use memory::{Frame, GuestMemory};
use snapshot::{Snapshot, WorkingSet};

use crate::error::VmError;

use demand::Demand;
pub(crate) use learn::Learner;
pub(crate) use read::{Readers, together};
pub use report::{Responsiveness, RestoreFaults, RestoreReport};

/// Waits that are written down for a report, 48 bytes each: of more, it is said that they are not in it.
const WAITS_MAX: usize = 1 << 17;

/// When the memory of a restored machine comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RestoreMode {
    /// All of it before the guest runs.
    Eager,
    /// Each frame when the guest needs it, and the rest behind it.
    Lazy,
    /// First of all what the guest will need first, as far as that is known.
    #[default]
    WorkingSet,
}

impl RestoreMode {
    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::WorkingSet => "working-set",
        }
    }
}

/// How a machine is restored.
#[derive(Debug)]
pub struct RestoreOptions {
    /// When its memory comes.
    pub mode: RestoreMode,
    /// Who is told what the guest needs first, and makes a working set of it: another process, so a guest that has taken
    /// over this one can write nothing that the next one reads.
    pub learning: Option<Keeper>,
    /// When somebody asked for it: what times count from.
    pub asked: Instant,
}

/// Is told which frames were touched, in their order.
pub type Tell = Box<dyn FnOnce(&[Frame]) -> io::Result<()> + Send>;

/// Who keeps what a restore learns.
pub enum Keeper {
    /// Told at its standard input, which is a pipe: frame numbers, each in four bytes, little-endian.
    Process(Child),
    /// Told by this, which answers when it is kept.
    Told(Tell),
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(child) => f.debug_tuple("Process").field(child).finish(),
            Self::Told(_) => f.debug_tuple("Told").finish_non_exhaustive(),
        }
    }
}

/// The restore of one machine: shared by the threads that carry it out.
pub(crate) struct Restore {
    memory: Arc<GuestMemory>,
    snapshot: Arc<Snapshot>,
    mode: RestoreMode,
    demand: Arc<Demand>,
    asked: Instant,
    progress: read::Progress,
}

impl Restore {
    /// Makes the frames of `memory`, which is untouched, absent that have contents.
    pub(crate) fn begin(
        memory: &Arc<GuestMemory>,
        snapshot: &Arc<Snapshot>,
        set: Option<Arc<WorkingSet>>,
        mode: RestoreMode,
        asked: Instant,
        recorded: bool,
    ) -> Result<Arc<Self>, VmError> {
        let demand = Demand::register(memory, snapshot)?;
        let contents = snapshot.runs().iter().filter(|run| run.kind.has_contents());
        let frames = contents.flat_map(|run| (run.first.0..run.first.0 + run.count).map(Frame));
        let absent = memory.make_absent(frames, demand.source());
        absent.map_err(|error| {
            VmError::Engine(engine::EngineError::Unsupported(error.to_string()))
        })?;
        if recorded {
            memory.record_waits(WAITS_MAX);
        }
        let progress = read::Progress::new(set, mode);
        let (memory, snapshot) = (Arc::clone(memory), Arc::clone(snapshot));
        Ok(Arc::new(Self { memory, snapshot, mode, demand, asked, progress }))
    }
}
