//! Frames that somebody waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use memory::{FRAME_SIZE, Frame, GuestMemory, Source, SourceError, SourceId};
use snapshot::{Batch, Snapshot};

use crate::error::VmError;

/// Frames of a plain image that are read with one that somebody waits for. From the host's page cache 16 take some ten
/// microseconds more than one; from a disk nothing more.
const NEIGHBOURS: u32 = 16;

/// The snapshot as a source of the frames that were not read ahead.
pub(super) struct Demand {
    snapshot: Arc<Snapshot>,
    /// The one whose frames these are; it holds this.
    memory: Weak<GuestMemory>,
    /// As the memory has registered this.
    id: OnceLock<SourceId>,
    /// Not in use.
    batches: Mutex<Vec<Batch>>,
    fetched: AtomicU64,
    neighbours: AtomicU64,
    /// Frames that were read, whether anybody took them or not.
    read: AtomicU64,
}

impl Demand {
    pub(super) fn register(
        memory: &Arc<GuestMemory>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Arc<Self>, VmError> {
        let demand = Arc::new(Self {
            snapshot: Arc::clone(snapshot),
            memory: Arc::downgrade(memory),
            id: OnceLock::new(),
            batches: Mutex::default(),
            fetched: AtomicU64::new(0),
            neighbours: AtomicU64::new(0),
            read: AtomicU64::new(0),
        });
        let id = memory.add_source(Arc::clone(&demand) as Arc<dyn Source>);
        let full = || VmError::Host("register the snapshot".into(), std::io::ErrorKind::Other.into());
        let _ = demand.id.set(id.ok_or_else(full)?);
        Ok(demand)
    }

    /// # Panics
    /// Never: `register` has set it before anybody could ask.
    pub(super) fn source(&self) -> SourceId {
        *self.id.get().expect("registered")
    }

    /// Frames that were fetched since somebody needed them.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Frames that came along with these.
    pub(super) fn neighbours(&self) -> u64 {
        self.neighbours.load(Ordering::Relaxed)
    }

    /// Frames that were read for them.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn fetch_with(
        &self,
        frame: Frame,
        into: &mut [u8; FRAME_SIZE],
        batch: &mut Batch,
    ) -> Result<(), SourceError> {
        let Some(place) = self.snapshot.place_around(frame, NEIGHBOURS).map_err(SourceError::from)?
        else {
            self.read.fetch_add(1, Ordering::Relaxed);
            return self.snapshot.fetch(frame, into);
        };
        self.snapshot.read_place(place, batch).map_err(SourceError::from)?;
        self.read.fetch_add(batch.frames().len() as u64, Ordering::Relaxed);
        *into = *batch.get(frame).ok_or_else(|| {
            SourceError::Corrupt(format!("frame {frame} is not where the index has it"))
        })?;
        // What comes of these is nothing to the one who waits.
        if let (Some(memory), Some(id)) = (self.memory.upgrade(), self.id.get()) {
            let others = by_frame(batch, |other| other != frame);
            let supplied = memory.supply(*id, &others).unwrap_or(0);
            self.neighbours.fetch_add(u64::from(supplied), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Those of a batch that are `wanted`, by rising frame, as [`GuestMemory::supply`] likes them.
pub(super) fn by_frame(
    batch: &Batch,
    mut wanted: impl FnMut(Frame) -> bool,
) -> Vec<(Frame, &[u8; FRAME_SIZE])> {
    let mut pages: Vec<_> = batch.iter().filter(|(frame, _)| wanted(*frame)).collect();
    pages.sort_unstable_by_key(|(frame, _)| *frame);
    pages
}

impl Source for Demand {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let spare = || self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = spare().pop().unwrap_or_default();
        let fetched = self.fetch_with(frame, into, &mut batch);
        spare().push(batch);
        fetched
    }
}
