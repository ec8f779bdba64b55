//! Memory as of one moment, read while the guest goes on: what a live save copies.
//!
//! ```text
//!            pending ------------------------+         first write: copying, the contents go to the
//!    freeze ---> absent (at its source) -----+-->      keeper, then kept
//!            zero (nothing to copy)          |
//!                                            +-->      take: copying, then taken
//! ```
//! Each frame has one state. Whoever takes it from pending to copying, the first to write or the one who takes,
//! copies the contents; the others wait for that. A write is what may change contents: by a vCPU, a device (from the
//! moment that it pins the frame for writing) or a discard. Reads never come here.
//!
//! That the guest's writes come to [`GuestMemory::resolve`] again is the engine's part
//! ([`crate::MappingObserver::write_protect`]): one that caches translations takes back those for writing, one whose guests
//! reach memory by themselves has the host's kernel stop them. Before the freeze and after it nothing of this costs
//! more than a load where a frame is resolved for writing.
//!
//! It is *not* a snapshot of what has no frame (vCPUs, devices): who freezes has everything stand still, takes down
//! that state, freezes, and lets go.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use crate::address::{FRAME_SIZE, Frame, FrameRange, is_zero};
use crate::guest_memory::GuestMemory;
use crate::merge::MergeError;
use crate::source::{SourceError, SourceId};
use crate::word::{Tag, Word};

/// How long a device may keep a frame pinned before a freeze gives up: the guest stands meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks at a frame that somebody copies before the thread gives its processor away.
const SPINS: u32 = 64;

/// Takes the contents that are about to be overwritten.
pub trait Keep: Send + Sync {
    /// `contents` were of `frame` at the moment of the freeze, and are not all zero. Called once for a frame, on the
    /// thread that is about to write to it, and only for frames for which [`Frozen::take`] answers
    /// [`Taken::Kept`], before or after it does.
    ///
    /// It may block, which holds up that writer and no other: a bounded queue makes the guest wait for the disk. It
    /// must not write to the same memory, nor wait for who does.
    fn keep(&self, frame: Frame, contents: &[u8; FRAME_SIZE]);
}

/// Why memory could not be frozen. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Only one at a time: each write would have to be told to both.
    #[error("freeze guest memory: it is frozen already, for another save that is not over yet")]
    Already,
    /// A device works, although it should stand.
    #[error("freeze guest memory: a device holds some of it for {} s", PATIENCE.as_secs())]
    Pinned,
    /// The engine cannot tell the guest's writes on this host.
    #[error("freeze guest memory: {0}: save without --live, which stops the guest meanwhile")]
    Protect(String),
    /// What the host's kernel has merged could not be had apart.
    #[error("freeze guest memory: {0}")]
    Merged(#[from] MergeError),
}

/// What became of a frame's contents of the moment of the freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They were copied.
    Contents,
    /// The keeper has got them, or is just getting them.
    Kept,
    /// They were zeros: the frame was untouched or ballooned, or had nothing else in it.
    Zero,
    /// They were at this source, and still are ([`Frozen::fetch`]).
    Absent(SourceId),
}

/// Why a frame could not be taken: both are mistakes of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// Past the end of RAM.
    #[error("frame {0}: past the end of guest memory")]
    NoSuchFrame(Frame),
    /// It was taken before: since then its contents may have changed.
    #[error("frame {0}: taken twice")]
    Again(Frame),
}

/// What is left to do for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Left {
    /// It had no contents, or zeros.
    Zero = 0,
    /// Its contents are as they were.
    Pending = 1,
    /// Somebody copies them.
    Copying = 2,
    /// [`Frozen::take`] has answered.
    Taken = 3,
    /// The keeper has got them.
    Kept = 4,
    /// They were at a source; where the frame has been fetched since, they are as they were.
    Absent = 5,
    /// They were at a source, and are there only.
    Elsewhere = 6,
}

/// [`Left`] in the low 8 bits, the number of the source above.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u32);

impl State {
    fn new(left: Left, source: SourceId) -> Self {
        Self(left as u32 | u32::from(source.0) << 8)
    }

    fn left(self) -> Left {
        match self.0 & 0xff {
            0 => Left::Zero,
            1 => Left::Pending,
            2 => Left::Copying,
            3 => Left::Taken,
            4 => Left::Kept,
            5 => Left::Absent,
            _ => Left::Elsewhere,
        }
    }

    fn source(self) -> SourceId {
        SourceId((self.0 >> 8) as u16)
    }

    fn with(self, left: Left) -> Self {
        Self::new(left, self.source())
    }
}

/// The freeze under way, if any.
#[derive(Default)]
pub(crate) struct Freezing {
    /// There is one. Changes while no vCPU runs and nobody holds a pin, so whoever is about to write knows it.
    armed: AtomicBool,
    now: RwLock<Option<Arc<Freeze>>>,
}

impl Freezing {
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    fn now(&self) -> Option<Arc<Freeze>> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// False: there is one.
    fn begin(&self, freeze: &Arc<Freeze>) -> bool {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let free = now.is_none();
        if free {
            *now = Some(Arc::clone(freeze));
            self.armed.store(true, Ordering::SeqCst);
        }
        free
    }

    fn end(&self) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        *now = None;
        self.armed.store(false, Ordering::SeqCst);
    }
}

/// What whoever writes and whoever takes share.
struct Freeze {
    states: Box<[AtomicU32]>,
    kept: AtomicU32,
    keeper: Box<dyn Keep>,
}

impl Freeze {
    /// Makes the caller the one who copies `frame`, and answers what it was; `Err` with what is left where there is
    /// nothing to copy. Waits while somebody else copies.
    fn claim(&self, frame: Frame) -> Result<State, State> {
        let mut spins = 0u32;
        loop {
            let state = self.state(frame);
            match state.left() {
                Left::Pending | Left::Absent => {
                    if self.change(frame, state, state.with(Left::Copying)) {
                        return Ok(state);
                    }
                }
                Left::Copying => {
                    spins += 1;
                    if spins.is_multiple_of(SPINS) {
                        thread::yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                }
                Left::Zero | Left::Taken | Left::Kept | Left::Elsewhere => return Err(state),
            }
        }
    }

    /// Ends what [`Freeze::claim`] began. Release: who goes on to write comes after the copy.
    fn settle(&self, frame: Frame, state: State) {
        self.states[frame.index()].store(state.0, Ordering::Release);
    }

    fn state(&self, frame: Frame) -> State {
        State(self.states[frame.index()].load(Ordering::Acquire))
    }

    fn change(&self, frame: Frame, from: State, to: State) -> bool {
        let state = &self.states[frame.index()];
        state.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn before_write(&self, memory: &GuestMemory, frame: Frame) {
        let Ok(state) = self.claim(frame) else { return };
        let mut contents = [0; FRAME_SIZE];
        if !memory.copy_frame(frame, &mut contents) {
            self.settle(frame, state.with(Left::Elsewhere));
        } else if is_zero(&contents) {
            self.settle(frame, state.with(Left::Zero));
        } else {
            self.kept.fetch_add(1, Ordering::Relaxed);
            // Before the keeper, which may block: another writer need not wait for that.
            self.settle(frame, state.with(Left::Kept));
            self.keeper.keep(frame, &contents);
        }
    }
}

impl GuestMemory {
    /// Freezes the memory of now: it can be taken frame by frame while the guest goes on, and what the guest changes
    /// before that goes to `keeper`. Takes some milliseconds for each GiB.
    ///
    /// No vCPU runs and no device works until it returns; a device that still holds frames is waited for.
    ///
    /// # Errors
    /// See [`FreezeError`]. Nothing has changed then.
    pub fn freeze(self: &Arc<Self>, keeper: Box<dyn Keep>) -> Result<Frozen, FreezeError> {
        if self.freezing.is_armed() {
            return Err(FreezeError::Already);
        }
        if self.is_anonymous() {
            // Else a frame that nobody has told of is looked for when its turn comes.
            self.catch_up();
        }
        let _no_discard = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        let _no_pins = self.wait_unpinned(PATIENCE).ok_or(FreezeError::Pinned)?;
        // KSM would merge a page that is protected, and its next write would not be told.
        self.unmark_all_held()?;
        let states = self.first_states();
        let freeze = Arc::new(Freeze { states, kept: AtomicU32::new(0), keeper });
        if !self.freezing.begin(&freeze) {
            return Err(FreezeError::Already);
        }
        // Ends the freeze where the engine refuses.
        let frozen = Frozen { memory: Arc::clone(self), freeze };
        if let Some(observer) = self.observer() {
            observer.write_protect().map_err(FreezeError::Protect)?;
        }
        Ok(frozen)
    }

    /// Whether memory is frozen now.
    pub fn is_frozen(&self) -> bool {
        self.freezing.is_armed()
    }

    fn first_states(&self) -> Box<[AtomicU32]> {
        // Where guests reach memory by themselves, the file has pages that the table does not know of. Of anonymous
        // memory it has just been told everything.
        let unseen = self.observer().is_some_and(|observer| observer.maps_by_itself())
            && !self.is_anonymous();
        let state = |word: Word| match word.tag() {
            Tag::Untouched | Tag::Ballooned if !unseen => Left::Zero,
            Tag::Absent if word.has_page() => Left::Pending,
            Tag::Absent | Tag::Filling => Left::Absent,
            _ => Left::Pending,
        };
        let of = |word: Word| AtomicU32::new(State::new(state(word), word.source()).0);
        self.table.words().map(of).collect()
    }

    /// The caller is about to change `frame`, which has a page if it has contents.
    #[cold]
    #[inline(never)]
    pub(crate) fn keep(&self, frame: Frame) {
        if let Some(freeze) = self.freezing.now() {
            freeze.before_write(self, frame);
        }
    }

    /// Before a discard of these frames, which may have been in use at the moment of a freeze.
    pub(crate) fn keep_all(&self, frames: &[Frame]) {
        if self.freezing.is_armed() {
            let known = frames.iter().filter(|frame| frame.0 < self.table.len());
            known.for_each(|&frame| self.keep(frame));
        }
    }

    /// Copies what `frame` has now; false if that is at its source. Nobody changes it meanwhile.
    fn copy_frame(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> bool {
        let word = self.table.word(frame);
        match word.tag() {
            Tag::Absent if word.has_page() => self.ram.copy(frame, into),
            Tag::Absent | Tag::Filling => return false,
            Tag::Resident | Tag::Discarding | Tag::Punching => self.ram.copy(frame, into),
            // Not known to have a page: a look by the mapping would give it one.
            Tag::Untouched | Tag::Ballooned => self.ram.peek(frame, into),
        }
        true
    }
}

/// Memory as of the moment of [`GuestMemory::freeze`]. Dropped, it ends the freeze: nobody is held up any more, and
/// the keeper is not called for writes from then on.
///
/// May be used by several threads at once, each with frames of its own.
pub struct Frozen {
    memory: Arc<GuestMemory>,
    freeze: Arc<Freeze>,
}

impl Frozen {
    /// Takes the frame's contents of that moment, once; `into` has them only where the answer is
    /// [`Taken::Contents`].
    ///
    /// # Errors
    /// See [`TakeError`].
    pub fn take(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<Taken, TakeError> {
        if frame.index() >= self.freeze.states.len() {
            return Err(TakeError::NoSuchFrame(frame));
        }
        match self.freeze.claim(frame) {
            Ok(state) => {
                let copied = self.memory.copy_frame(frame, into);
                self.freeze.settle(frame, state.with(Left::Taken));
                Ok(match copied {
                    false => Taken::Absent(state.source()),
                    true if is_zero(into) => Taken::Zero,
                    true => Taken::Contents,
                })
            }
            Err(state) => {
                let taken = match state.left() {
                    Left::Zero => Taken::Zero,
                    Left::Kept => Taken::Kept,
                    Left::Elsewhere => Taken::Absent(state.source()),
                    _ => return Err(TakeError::Again(frame)),
                };
                // Nobody else changes what needs no copying.
                if self.freeze.change(frame, state, state.with(Left::Taken)) {
                    Ok(taken)
                } else {
                    Err(TakeError::Again(frame))
                }
            }
        }
    }

    /// Asks the source of a frame that was [`Taken::Absent`] for its contents.
    ///
    /// # Errors
    /// What the source says.
    pub fn fetch(
        &self,
        frame: Frame,
        source: SourceId,
        into: &mut [u8; FRAME_SIZE],
    ) -> Result<(), SourceError> {
        self.memory.source(source).fetch(frame, into)
    }

    /// Frames whose contents the keeper has got so far, or is getting.
    pub fn kept(&self) -> u32 {
        self.freeze.kept.load(Ordering::Relaxed)
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.memory.freezing.end();
        if let Some(observer) = self.memory.observer() {
            observer.unprotect(FrameRange { first: Frame(0), count: self.memory.table.len() });
        }
    }
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen")
            .field("memory", &self.memory)
            .field("kept", &self.kept())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "freeze_tests.rs"]
mod tests;
