//! Guest RAM and its one fault path.

use std::io::IoSlice;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::io::Errno;

use crate::address::{Access, Epoch, FRAME_SIZE, Frame, FrameRange, Gpa};
use crate::events::Events;
use crate::freeze::Freezing;
use crate::layout::{LayoutError, RamLayout};
use crate::merge::Merging;
use crate::origins::OriginTable;
use crate::ram::Ram;
use crate::revoke::{MappingObserver, Revocation};
use crate::share::Sharing;
use crate::shortage::Shortages;
use crate::source::{Source, SourceError, SourceId};
use crate::table::{Entered, FrameCounts, FrameFacts, FrameTable};
use crate::waits::WaitLog;

/// The RAM of one guest. Shared as an `Arc` by vCPUs, devices and whoever wants to know.
pub struct GuestMemory {
    pub(crate) layout: RamLayout,
    pub(crate) table: FrameTable,
    pub(crate) origins: OriginTable,
    pub(crate) ram: Ram,
    pub(crate) sources: RwLock<Vec<Arc<dyn Source>>>,
    observer: RwLock<Option<Arc<dyn MappingObserver>>>,
    pub(crate) events: Events,
    /// Held through a discard, see `FrameTable::begin_discard`, and while the engine tells what it saw.
    pub(crate) discarding: Mutex<()>,
    /// Held to read while a pin is taken: nobody takes one while it is held to write.
    pub(crate) pinning: RwLock<()>,
    pub(crate) waits: WaitLog,
    pub(crate) shortages: Shortages,
    /// Who wants to know what is overwritten.
    pub(crate) freezing: Freezing,
    pub(crate) sharing: Sharing,
    pub(crate) merging: Merging,
}

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size asked for.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host's answer.
    #[error(
        "map {bytes} bytes of guest memory: {errno}: give the guest less memory or raise the limit on address space (ulimit -v)"
    )]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What the host said.
        errno: Errno,
    },
}

/// Why a frame could not be made resident.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The number is past the end of RAM: a bug of the caller, since
    /// [`GuestMemory::frame_of`] makes no such frame.
    #[error("frame {0}: past the end of guest memory")]
    NoSuchFrame(Frame),
    /// The source of an absent frame failed. The frame is absent still; another try may succeed.
    #[error("frame {frame}: fetch: {error}")]
    Source {
        /// The frame.
        frame: Frame,
        /// What its source said.
        error: SourceError,
    },
    /// The host has no page for the contents of an absent frame. The frame is absent still.
    #[error("frame {frame}: {errno}: the host has no memory for it: free some, or raise the limit")]
    Store {
        /// The frame.
        frame: Frame,
        /// What the host said.
        errno: Errno,
    },
}

/// Why frames could not be made absent.
#[derive(Debug, thiserror::Error)]
#[error("wait for absent frames: {0}")]
pub struct AbsentError(String);

/// The host's page of a resident frame: 4096 bytes, aligned, readable and writable.
///
/// Only an address. It may be used by a vCPU until that vCPU has acknowledged the next
/// [`Revocation`] that covers the frame, and by nobody else: a thread that takes part in no
/// revocation uses [`crate::DeviceView`], which pins. Whoever writes through it must have
/// resolved it with [`Access::Write`]. The guest's other vCPUs and its devices access the same
/// bytes at any time: use volatile or atomic accesses, never a Rust reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage(NonNull<u8>);

// SAFETY: a HostPage is a number until somebody dereferences it, under the contract above.
unsafe impl Send for HostPage {}
// SAFETY: as above.
unsafe impl Sync for HostPage {}

impl HostPage {
    /// The address of its first byte.
    #[inline]
    pub const fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }
}

impl GuestMemory {
    /// Maps RAM for `layout`, every frame untouched. Costs no host memory but page tables.
    pub fn new(layout: RamLayout) -> Result<GuestMemory, MemoryError> {
        Self::map(layout, false)
    }

    /// Maps `bytes` of RAM in the usual layout, anonymous: with large pages of the host, and without what
    /// needs a file ([`GuestMemory::move_to_file`] tells what that is).
    pub fn anonymous(bytes: u64) -> Result<GuestMemory, MemoryError> {
        Self::map(RamLayout::new(bytes)?, true)
    }

    fn map(layout: RamLayout, anonymous: bool) -> Result<GuestMemory, MemoryError> {
        let bytes = layout.bytes();
        let ram = Ram::map(bytes as usize, anonymous)
            .map_err(|errno| MemoryError::Map { bytes, errno })?;
        Ok(Self::of(layout, FrameTable::new(layout.frames()), ram))
    }

    pub(crate) fn of(layout: RamLayout, table: FrameTable, ram: Ram) -> GuestMemory {
        let origins = OriginTable::new(layout.frames());
        let merging = Merging::of(&ram);
        GuestMemory {
            layout,
            table,
            origins,
            ram,
            sources: RwLock::default(),
            observer: RwLock::default(),
            events: Events::default(),
            discarding: Mutex::default(),
            pinning: RwLock::default(),
            waits: WaitLog::default(),
            shortages: Shortages::default(),
            freezing: Freezing::default(),
            sharing: Sharing::default(),
            merging,
        }
    }

    /// Maps `bytes` of RAM in the usual layout.
    pub fn with_bytes(bytes: u64) -> Result<GuestMemory, MemoryError> {
        GuestMemory::new(RamLayout::new(bytes)?)
    }

    /// Where RAM lies in the physical address space.
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// The size of RAM in bytes.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// The frame that holds `gpa`, or `None` outside RAM.
    #[inline]
    pub const fn frame_of(&self, gpa: Gpa) -> Option<Frame> {
        self.layout.frame_of(gpa)
    }

    /// The first address of `frame`, or `None` if there is no such frame.
    pub const fn gpa_of(&self, frame: Frame) -> Option<Gpa> {
        self.layout.gpa_of(frame)
    }

    /// The frame whose page is at this address of the host, where [`GuestMemory::resolve`] says.
    #[inline]
    pub fn frame_at(&self, host_page: usize) -> Option<Frame> {
        let offset = host_page.wrapping_sub(self.ram.page(Frame(0)).as_ptr() as usize);
        let frame = offset / FRAME_SIZE;
        (frame < self.table.len() as usize).then_some(Frame(frame as u32))
    }

    /// Makes `frame` resident, whatever it was, records the access in the current epoch, and
    /// answers where its page is. The one fault path.
    ///
    /// Untouched and ballooned frames read as zeros. An absent one is fetched from its source, by
    /// one thread, while others that want it wait. Never waits for a revocation.
    ///
    /// After [`Access::Read`] the page may be read only, so that the first write of an epoch is
    /// seen: an engine that caches translations caches the access with them.
    #[inline]
    pub fn resolve(&self, frame: Frame, access: Access) -> Result<HostPage, ResolveError> {
        match self.table.is_resident(frame) {
            Some(true) => {}
            Some(false) if access == Access::Read && self.shows_slot(frame) => {}
            Some(false) => self.make_resident(frame, false)?,
            None => return Err(ResolveError::NoSuchFrame(frame)),
        }
        if access == Access::Write && self.freezing.is_armed() {
            self.keep(frame);
        }
        self.table.note_access(frame, access);
        Ok(HostPage(self.ram.page(frame)))
    }

    /// As [`GuestMemory::resolve`], and keeps the frame resident until
    /// [`FrameTable::unpin`].
    pub(crate) fn resolve_pinned(&self, frame: Frame, access: Access) -> Result<(), ResolveError> {
        if frame.0 >= self.table.len() {
            return Err(ResolveError::NoSuchFrame(frame));
        }
        self.patiently(frame, || {
            // A freeze waits for the pin from here on, and must not be waited for with the lock held.
            let _pinning = self.pinning.read().unwrap_or_else(PoisonError::into_inner);
            self.make_resident(frame, true)
        })?;
        if access == Access::Write && self.freezing.is_armed() {
            self.keep(frame);
        }
        self.table.note_access(frame, access);
        if let Some(events) = self.events() {
            events.note_device(frame);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn make_resident(&self, frame: Frame, pin: bool) -> Result<(), ResolveError> {
        let begin = if self.table.is_elsewhere(frame) { self.waits.begin() } else { None };
        match self.table.enter(frame, pin) {
            Entered::Resident { waited } => {
                self.waits.end(begin.filter(|_| waited), frame, false);
                Ok(())
            }
            Entered::Fill(source) => {
                let outcome = self.fill(frame, source, pin);
                self.waits.end(begin, frame, outcome.is_ok());
                outcome
            }
        }
    }

    /// Fetches an absent frame. The contents go through a buffer, so that a failed fetch leaves no
    /// page behind and no Rust reference into guest memory is made; and into the file by a write of
    /// the whole page, so that whoever maps it without asking (KVM's page faults) finds no page or
    /// all of it.
    fn fill(&self, frame: Frame, source: SourceId, pin: bool) -> Result<(), ResolveError> {
        let filling = Filling { table: &self.table, frame };
        let _under_way = self.shortages.fetching(frame);
        let id = source;
        let source = self.source(id);
        let mut contents = [0; FRAME_SIZE];
        source
            .fetch(frame, &mut contents)
            .map_err(|error| ResolveError::Source { frame, error })?;
        let (_, filled) = self.ram.fill_run(frame, &[IoSlice::new(&contents)]);
        let shown = filled.and_then(|()| self.show_filled(frame, id));
        shown.map_err(|errno| ResolveError::Store { frame, errno })?;
        filling.done(pin);
        Ok(())
    }

    pub(crate) fn source(&self, id: SourceId) -> Arc<dyn Source> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&sources[id.0 as usize])
    }

    /// Registers a source for [`GuestMemory::make_absent`]. `None` if 65,535 are registered.
    pub fn add_source(&self, source: Arc<dyn Source>) -> Option<SourceId> {
        let id = self.add_slow_source(source)?;
        self.ram.open_landing();
        Some(id)
    }

    /// The same, without what makes it fast for many threads at once, and takes calls to the system that a confined
    /// process has given up.
    pub fn add_slow_source(&self, source: Arc<dyn Source>) -> Option<SourceId> {
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        let id = u16::try_from(sources.len()).ok().filter(|&id| id < SourceId::BASE.0)?;
        sources.push(source);
        Some(SourceId(id))
    }

    /// Says that the contents of `frames` are at `source`. Only untouched and ballooned frames
    /// become absent; the answer is how many did. Panics on a source of another memory.
    ///
    /// # Errors
    /// The engine cannot wait for the guest's accesses to absent frames on this host. No frame has
    /// become absent: fill them beforehand instead.
    pub fn make_absent(
        &self,
        frames: impl IntoIterator<Item = Frame>,
        source: SourceId,
    ) -> Result<u32, AbsentError> {
        let registered = self.sources.read().unwrap_or_else(PoisonError::into_inner).len();
        assert!((source.0 as usize) < registered, "{source:?} of {registered} sources");
        if self.is_anonymous() {
            let what = "the memory is anonymous, or over an image: move it to a file before";
            return Err(AbsentError(what.into()));
        }
        if self.is_frozen() {
            return Err(AbsentError("the memory is being saved".into()));
        }
        let mut frames: Vec<Frame> = frames.into_iter().collect();
        frames.retain(|frame| frame.0 < self.table.len());
        frames.sort_unstable();
        frames.dedup();
        if let Some(observer) = self.observer() {
            observer
                .before_absent(&FrameRange::coalesce(&frames, u32::MAX))
                .map_err(AbsentError)?;
        }
        let made =
            frames.into_iter().filter(|&frame| self.table.make_absent(frame, source)).count();
        Ok(made as u32)
    }

    /// The engine saw that the guest has accessed `frame` by itself. A frame that is absent, or is
    /// being given back, stays what it is: the access was before that.
    pub fn note(&self, frame: Frame, access: Access) {
        if frame.0 < self.table.len() && self.table.settle_resident(frame) {
            self.table.note_access(frame, access);
        }
    }

    /// Sets who is told of revocations: the engine. Set it before the first vCPU runs.
    ///
    /// The memory keeps it alive; an observer that holds the memory must hold it weakly.
    pub fn set_observer(&self, observer: Arc<dyn MappingObserver>) {
        *self.observer.write().unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }

    pub(crate) fn revoke(&self, revoked: Revocation<'_>) {
        if let Some(observer) = self.observer() {
            observer.revoke(revoked);
        }
    }

    pub(crate) fn observer(&self) -> Option<Arc<dyn MappingObserver>> {
        self.observer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Marks `frame` as decoded: from now on, device writes to it reach
    /// [`MappingObserver::code_written`]. True if it was not marked.
    ///
    /// The order that loses no write: resolve the frame, mark it, make sure that no vCPU writes it
    /// through a cached translation without noticing, then read the bytes to decode. A discard
    /// clears the mark after its revocation.
    pub fn mark_code(&self, frame: Frame) -> bool {
        let marked = self.table.mark_code(frame);
        // Pairs with the fence in `DeviceView`'s writes: either the device sees the mark after
        // its write, or the decoder sees the written bytes.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        marked
    }

    /// Ends [`GuestMemory::mark_code`], once the engine has dropped all code of the frame.
    pub fn clear_code(&self, frame: Frame) {
        self.table.clear_code(frame);
    }

    /// Whether `frame` is marked as decoded.
    pub fn is_code(&self, frame: Frame) -> bool {
        self.table.is_code(frame)
    }

    /// What the table says of `frame`; `None` past the end of RAM.
    pub fn facts(&self, frame: Frame) -> Option<FrameFacts> {
        self.table.facts(frame)
    }

    /// How many frames are in each state. Read without stopping anybody: exact when nothing moves.
    pub fn counts(&self) -> FrameCounts {
        self.table.counts()
    }

    /// The bytes of all resident frames, by the table.
    pub fn resident_bytes(&self) -> u64 {
        u64::from(self.counts().resident) * FRAME_SIZE as u64
    }

    /// The host memory that RAM's file occupies, measured by asking the host. Less than
    /// [`GuestMemory::resident_bytes`] by frames that were resolved and then not accessed, and by what is
    /// anonymous: the host counts that as the process's own.
    pub fn backed_bytes(&self) -> Result<u64, MemoryError> {
        let bytes = self.bytes();
        self.ram.backed_bytes().map_err(|errno| MemoryError::Map { bytes, errno })
    }

    /// The epoch that accesses are recorded in now.
    pub fn epoch(&self) -> Epoch {
        self.table.epoch()
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory")
            .field("layout", &self.layout)
            .field("counts", &self.counts())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

/// A fetch under way. Dropped before it is done (an error, a panic in the source), it makes the
/// frame absent again, so that nobody waits for ever.
struct Filling<'a> {
    table: &'a FrameTable,
    frame: Frame,
}

impl Filling<'_> {
    fn done(self, pin: bool) {
        self.table.filled(self.frame, true, pin);
        std::mem::forget(self);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.table.filled(self.frame, false, false);
    }
}
