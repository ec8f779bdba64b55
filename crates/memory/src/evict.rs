//! Taking frames from a guest that does not give them: their contents go to a source, their pages to the host.
//!
//! ```text
//!              begin            revoked, not touched     contents kept, page punched
//!  resident ----------> discarding ----------> punching ----------> absent(source)
//!     ^                     |                      |
//!     +---------------------+----------------------+
//!        an access takes it back      nobody could keep it
//! ```
//! As a discard (`discard`), but nothing is lost at any step: while a frame is punching nobody has a translation or a pin
//! of it, so that its contents cannot change; they are kept before the page goes, and whoever wants the frame waits until
//! it is one or the other. A frame that cannot be kept stays with the guest.

use std::sync::PoisonError;

use crate::address::{FRAME_SIZE, Frame, FrameRange};
use crate::guest_memory::GuestMemory;
use crate::revoke::Revocation;
use crate::source::SourceId;

/// Frames whose contents are kept before their pages go: bounds how long an access to one of them waits.
const KEPT_TOGETHER: usize = 32;

/// Keeps what is evicted; a part of the source that it will be fetched from.
pub trait Evict {
    /// No frame is on its way, and none will be before this returns; nobody reads memory of an earlier moment
    /// ([`crate::Frozen`]). What frames that are not absent once had at the source is needed by nobody.
    fn begin(&mut self) {}

    /// Keeps `contents`, so that the source answers them for `frame`. False: it cannot, and the guest keeps the frame.
    ///
    /// Those who want the frame wait for this, so it must wait for nobody but a disk. After true the frame may stay
    /// with the guest all the same.
    fn keep(&mut self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> bool;
}

/// What an eviction came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Frames that are absent now, and were resident.
    pub evicted: u32,
    /// Frames that were not resident, that a device holds, or that somebody accessed meanwhile.
    pub busy: u32,
    /// Frames that could not be kept.
    pub refused: u32,
}

/// Why nothing was evicted, or not all.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// There is no other way to the contents of a page than the page.
    #[error("evict frames: the memory is anonymous, or over an image: move it to a file before")]
    Anonymous,
    /// Who saves it reads frames by their state.
    #[error("evict frames: the memory is being saved")]
    Frozen,
    /// The engine cannot wait for the guest's accesses to absent frames on this host.
    #[error("evict frames: {0}")]
    Engine(String),
    /// The host does not take pages back.
    #[error("evict {} frames from frame {}: {errno}: the guest keeps them", run.count, run.first)]
    Punch {
        /// The first run that was refused.
        run: FrameRange,
        /// What the host said.
        errno: rustix::io::Errno,
    },
}

impl GuestMemory {
    /// Makes those of `frames` absent that are resident and that nobody uses meanwhile, with their contents at
    /// `source`, where `to` puts them. Their pages go back to the host.
    ///
    /// Where guests reach memory by themselves ([`crate::MappingObserver::maps_by_itself`]) no vCPU may run until it
    /// returns. Must not be called by a vCPU.
    ///
    /// # Errors
    /// See [`EvictError`]; after any, frames have their contents, resident or absent.
    pub fn evict(
        &self,
        frames: impl IntoIterator<Item = Frame>,
        source: SourceId,
        to: &mut dyn Evict,
    ) -> Result<Evicted, EvictError> {
        let mut frames: Vec<Frame> = frames.into_iter().collect();
        frames.retain(|frame| frame.0 < self.table.len());
        frames.sort_unstable();
        frames.dedup();
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_anonymous() {
            return Err(EvictError::Anonymous);
        }
        if self.is_frozen() {
            return Err(EvictError::Frozen);
        }
        to.begin();
        let all = frames.len() as u32;
        frames.retain(|&frame| self.table.begin_evict(frame));
        let mut report = Evicted { busy: all - frames.len() as u32, ..Evicted::default() };
        if frames.is_empty() {
            return Ok(report);
        }
        let runs = FrameRange::coalesce(&frames, u32::MAX);
        let watched = self.observer().map_or(Ok(()), |observer| observer.before_absent(&runs));
        if let Err(why) = watched {
            frames.iter().for_each(|&frame| self.table.cancel_discard(frame));
            return Err(EvictError::Engine(why));
        }
        self.revoke(Revocation::Frames(&runs));
        let mut done = 0;
        for chunk in frames.chunks(KEPT_TOGETHER) {
            done += chunk.len();
            if let Err(error) = self.evict_chunk(chunk, source, to, &mut report) {
                frames[done..].iter().for_each(|&frame| self.table.cancel_discard(frame));
                return Err(error);
            }
        }
        Ok(report)
    }

    /// Of frames whose translations have been revoked.
    fn evict_chunk(
        &self,
        chunk: &[Frame],
        source: SourceId,
        to: &mut dyn Evict,
        report: &mut Evicted,
    ) -> Result<(), EvictError> {
        let mut leaving = Leaving { memory: self, frames: Vec::with_capacity(chunk.len()) };
        let mut kept: Vec<[u8; FRAME_SIZE]> = Vec::with_capacity(chunk.len());
        for &frame in chunk {
            if !self.table.begin_punch(frame) {
                report.busy += 1;
                continue;
            }
            leaving.frames.push(frame);
            let mut contents = [0; FRAME_SIZE];
            self.ram.copy(frame, &mut contents);
            if to.keep(frame, &contents) {
                kept.push(contents);
            } else {
                leaving.settle(frame, None);
                report.refused += 1;
            }
        }
        let mut contents = kept.iter();
        for run in FrameRange::coalesce(&leaving.frames, u32::MAX) {
            if let Err(errno) = self.ram.punch(run) {
                // Some of its pages may be gone all the same.
                for (frame, contents) in run.frames().zip(contents) {
                    let is_back = self.ram.fill(frame, contents).is_ok();
                    leaving.settle(frame, (!is_back).then_some(source));
                }
                return Err(EvictError::Punch { run, errno });
            }
            run.frames().for_each(|frame| leaving.settle(frame, Some(source)));
            contents.by_ref().take(run.count as usize).for_each(drop);
            report.evicted += run.count;
        }
        Ok(())
    }
}

/// Frames that are punching. Those that are so still when it is dropped (an error, a panic in who keeps them) have their
/// pages, and stay with the guest.
struct Leaving<'a> {
    memory: &'a GuestMemory,
    frames: Vec<Frame>,
}

impl Leaving<'_> {
    fn settle(&mut self, frame: Frame, source: Option<SourceId>) {
        self.frames.retain(|&leaving| leaving != frame);
        self.memory.table.evicted(frame, source);
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.frames.iter().for_each(|&frame| self.memory.table.evicted(frame, None));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::{
        Access, DeviceView, Discard, FrameState, Gpa, Keep, ReadView, Source, SourceError,
    };

    /// Keeps so many frames, in memory.
    #[derive(Default)]
    struct Store(Mutex<HashMap<Frame, Box<[u8; FRAME_SIZE]>>>);

    impl Source for Store {
        fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let missing = || SourceError::Corrupt(format!("frame {frame} was never kept"));
            *into = **kept.get(&frame).ok_or_else(missing)?;
            Ok(())
        }
    }

    struct To<'a>(&'a Store, usize);

    impl Evict for To<'_> {
        fn keep(&mut self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> bool {
            let mut kept = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= self.1 {
                return false;
            }
            kept.insert(frame, Box::new(*contents));
            true
        }
    }

    const FRAMES: u32 = 100;

    /// Memory of which each frame has its own contents.
    fn memory() -> (Arc<GuestMemory>, DeviceView, Arc<Store>, SourceId) {
        let memory = GuestMemory::with_bytes(u64::from(FRAMES) * FRAME_SIZE as u64);
        let memory = Arc::new(memory.expect("memory"));
        let view = DeviceView::new(Arc::clone(&memory));
        for frame in 0..FRAMES {
            view.write(gpa(frame), &[frame as u8 + 1; FRAME_SIZE]).expect("written");
        }
        let store = Arc::new(Store::default());
        let source = memory.add_slow_source(Arc::clone(&store) as _).expect("a source");
        (memory, view, store, source)
    }

    fn gpa(frame: u32) -> Gpa {
        Gpa(u64::from(frame) * FRAME_SIZE as u64)
    }

    fn has_its_contents(view: &DeviceView, frames: impl IntoIterator<Item = u32>) {
        for frame in frames {
            let mut bytes = [0; FRAME_SIZE];
            view.read(gpa(frame), &mut bytes).expect("read");
            assert!(bytes.iter().all(|byte| *byte == frame as u8 + 1), "frame {frame}");
        }
    }

    #[test]
    fn frames_go_with_their_contents_and_come_back() {
        let (memory, view, store, source) = memory();
        let accessed = memory.facts(Frame(7)).expect("facts").accessed;
        memory.mark_code(Frame(7));
        let all = (0..200).map(Frame);
        let report = memory.evict(all, source, &mut To(&store, 1000)).expect("evicted");
        assert_eq!(report, Evicted { evicted: FRAMES, ..Evicted::default() });
        assert_eq!((memory.backed_bytes().expect("asked"), memory.counts().absent), (0, FRAMES));
        let facts = memory.facts(Frame(7)).expect("facts");
        assert_eq!((facts.state, facts.code), (FrameState::Absent(source), false));
        assert_eq!(facts.accessed, accessed, "what was known of it stays");
        has_its_contents(&view, 0..FRAMES);
        assert_eq!(memory.counts().resident, FRAMES);
    }

    #[test]
    fn what_is_held_or_cannot_be_kept_stays() {
        let (memory, view, store, source) = memory();
        let pin = view.slice(gpa(3), 2 * FRAME_SIZE, Access::Write).expect("a pin");
        memory.discard([Frame(5)], Discard::Balloon).expect("ballooned");
        let frames = (0..10).map(Frame);
        let report = memory.evict(frames, source, &mut To(&store, 4)).expect("evicted");
        assert_eq!(report, Evicted { evicted: 4, busy: 3, refused: 3 });
        drop(pin);
        let states = (0..10).map(|frame| memory.facts(Frame(frame)).expect("facts").state);
        assert_eq!(states.filter(|state| *state == FrameState::Resident).count(), 5);
        has_its_contents(&view, (0..FRAMES).filter(|frame| *frame != 5));
    }

    /// An engine by whose revocation somebody looks, reads or writes.
    struct Meanwhile<F>(std::sync::Weak<GuestMemory>, F);

    impl<F: Fn(&Arc<GuestMemory>) + Send + Sync> crate::MappingObserver for Meanwhile<F> {
        fn revoke(&self, _: Revocation<'_>) {
            (self.1)(&self.0.upgrade().expect("in use"));
        }

        fn code_written(&self, _: Gpa, _: usize) {}
    }

    #[test]
    fn who_looks_meanwhile_sees_contents_and_keeps_the_frame() {
        let (memory, view, store, source) = memory();
        let look = |memory: &Arc<GuestMemory>| {
            let mut bytes = [0; 4];
            ReadView::new(Arc::clone(memory)).read(gpa(8), &mut bytes).expect("read");
            assert_eq!(bytes, [9; 4]);
            memory.resolve(Frame(9), Access::Write).expect("resident");
        };
        memory.set_observer(Arc::new(Meanwhile(Arc::downgrade(&memory), look)));
        let frames = (8..12).map(Frame);
        let report = memory.evict(frames, source, &mut To(&store, 4)).expect("evicted");
        assert_eq!(report, Evicted { evicted: 2, busy: 2, refused: 0 });
        has_its_contents(&view, 0..FRAMES);
    }

    #[test]
    fn an_engine_that_cannot_wait_keeps_all() {
        struct Blind;
        impl crate::MappingObserver for Blind {
            fn revoke(&self, _: Revocation<'_>) {}

            fn code_written(&self, _: Gpa, _: usize) {}

            fn before_absent(&self, _: &[FrameRange]) -> Result<(), String> {
                Err("no userfaultfd".into())
            }
        }
        let (memory, view, store, source) = memory();
        memory.set_observer(Arc::new(Blind));
        let error = memory.evict([Frame(1)], source, &mut To(&store, 9)).expect_err("refused");
        assert_eq!(error.to_string(), "evict frames: no userfaultfd");
        assert_eq!((memory.counts().resident, memory.counts().absent), (FRAMES, 0));
        has_its_contents(&view, 0..FRAMES);
    }

    #[test]
    fn neither_frozen_nor_anonymous_memory_is_evicted() {
        struct Nobody;
        impl Keep for Nobody {
            fn keep(&self, _: Frame, _: &[u8; FRAME_SIZE]) {}
        }
        let (memory, _, store, source) = memory();
        let frozen = memory.freeze(Box::new(Nobody)).expect("frozen");
        let error = memory.evict([Frame(1)], source, &mut To(&store, 9)).expect_err("frozen");
        assert!(matches!(error, EvictError::Frozen));
        drop(frozen);
        let anonymous = GuestMemory::anonymous(1 << 20).expect("memory");
        let source = anonymous.add_slow_source(Arc::clone(&store) as _).expect("a source");
        let error = anonymous.evict([Frame(1)], source, &mut To(&store, 9)).expect_err("anonymous");
        assert!(matches!(error, EvictError::Anonymous));
    }

    #[test]
    fn a_keeper_that_panics_leaves_no_frame_behind() {
        struct Panics(u32);
        impl Evict for Panics {
            fn keep(&mut self, frame: Frame, _: &[u8; FRAME_SIZE]) -> bool {
                assert!(frame.0 < self.0, "a mistake");
                true
            }
        }
        let (memory, view, _, source) = memory();
        let evict = || memory.evict((0..40).map(Frame), source, &mut Panics(5));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(evict)).expect_err("panics");
        has_its_contents(&view, 0..FRAMES);
    }
}
