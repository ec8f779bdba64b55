//! Frames that somebody needs and cannot have now, since their source fails or does not answer.
//!
//! ```text
//!   vCPU:    fetch fails -> its run ends -> it stands ... retry, retry ... -> it runs on
//!   device:  fetch fails -> waits in its access ......... retry, retry ... -> it goes on
//! ```
//! Nothing is lost by waiting: the frame stays absent, and whoever needs it has not gone on without it.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::address::{Access, Frame};
use crate::guest_memory::{GuestMemory, HostPage, ResolveError};
use crate::source::SourceError;

/// The first pause before a source that failed is asked again. Each is twice the one before, up to
/// [`LONGEST_PAUSE`].
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a source that failed is asked again.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A source that has not answered for so long counts as one that hangs.
const SILENCE: Duration = Duration::from_secs(1);

/// A frame that is needed and cannot be had now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// The frame.
    pub frame: Frame,
    /// For how long.
    pub lasts: Duration,
    /// What its source said; `None` where it has not answered yet.
    pub reason: Option<String>,
}

/// Of one memory.
#[derive(Default)]
pub(crate) struct Shortages {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Since when, and why; a line for each vCPU and device that waits, at most.
    failed: BTreeMap<Frame, (Instant, String)>,
    /// Being fetched because somebody needs them; a line for each thread that does, at most.
    fetching: BTreeMap<Frame, Instant>,
    /// Devices wait instead of failing.
    patient: bool,
}

impl Shortages {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a frame is being fetched, until dropped.
    pub(crate) fn fetching(&self, frame: Frame) -> Fetching<'_> {
        self.lock().fetching.insert(frame, Instant::now());
        Fetching { shortages: self, frame }
    }

    fn note<T>(&self, frame: Frame, outcome: &Result<T, ResolveError>) {
        let mut state = self.lock();
        match outcome {
            Ok(_) => drop(state.failed.remove(&frame)),
            Err(error) => {
                let since = state.failed.get(&frame).map_or_else(Instant::now, |(since, _)| *since);
                state.failed.insert(frame, (since, error.to_string()));
            }
        }
    }

    /// Waits before the next try. False: the caller is to fail instead.
    fn pause(&self, pause: Duration) -> bool {
        let state = self.lock();
        let waiting = self.changed.wait_timeout_while(state, pause, |state| state.patient);
        waiting.unwrap_or_else(PoisonError::into_inner).0.patient
    }
}

pub(crate) struct Fetching<'a> {
    shortages: &'a Shortages,
    frame: Frame,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.shortages.lock().fetching.remove(&self.frame);
    }
}

impl ResolveError {
    /// Whether it may go away by itself: the source cannot be read or reached now. Then one waits and tries again;
    /// else the contents are lost.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Source { error: SourceError::Io(_) | SourceError::Unavailable(_), .. })
    }
}

impl GuestMemory {
    /// Whether any source has been added.
    pub fn has_sources(&self) -> bool {
        !self.sources.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// From now on devices wait for a source that fails instead of failing themselves: whoever uses a
    /// [`crate::DeviceView`] comes back when the source does, or after [`GuestMemory::stop_waiting`].
    pub fn wait_for_sources(&self) {
        self.shortages.lock().patient = true;
    }

    /// Ends that: who waits fails now. A fetch under way goes on.
    pub fn stop_waiting(&self) {
        self.shortages.lock().patient = false;
        self.shortages.changed.notify_all();
    }

    /// Tries again to fetch a frame that somebody needs; nothing where it is there. It is not an access, and
    /// [`GuestMemory::shortage`] tells how it went.
    ///
    /// # Errors
    /// As for [`GuestMemory::resolve`].
    pub fn retry(&self, frame: Frame) -> Result<(), ResolveError> {
        if self.facts(frame).is_none() {
            return Err(ResolveError::NoSuchFrame(frame));
        }
        let outcome = self.make_resident(frame, false);
        self.shortages.note(frame, &outcome);
        outcome
    }

    /// As [`GuestMemory::resolve`], by somebody who cannot come back later: waits as devices do.
    ///
    /// # Errors
    /// As for [`GuestMemory::resolve`].
    pub fn resolve_patiently(
        &self,
        frame: Frame,
        access: Access,
    ) -> Result<HostPage, ResolveError> {
        self.patiently(frame, || self.resolve(frame, access))
    }

    /// Tries until it works, where it may come to work and devices are to wait.
    pub(crate) fn patiently<T>(
        &self,
        frame: Frame,
        attempt: impl Fn() -> Result<T, ResolveError>,
    ) -> Result<T, ResolveError> {
        let mut outcome = attempt();
        let mut pause = FIRST_PAUSE;
        while outcome.as_ref().is_err_and(ResolveError::may_pass) && self.shortages.lock().patient {
            self.shortages.note(frame, &outcome);
            if self.shortages.pause(pause) {
                outcome = attempt();
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        if pause > FIRST_PAUSE || outcome.is_err() {
            self.shortages.lock().failed.remove(&frame);
        }
        outcome
    }

    /// The frame that somebody has waited for longest: its source fails, or has not answered for a second.
    pub fn shortage(&self) -> Option<Shortage> {
        let state = self.shortages.lock();
        let failed = state.failed.iter().min_by_key(|(_, (since, _))| *since);
        let failed = failed.map(|(&frame, (since, reason))| Shortage {
            frame,
            lasts: since.elapsed(),
            reason: Some(reason.clone()),
        });
        let slowest = state.fetching.iter().min_by_key(|(_, since)| **since);
        let silent = slowest
            .map(|(&frame, since)| Shortage { frame, lasts: since.elapsed(), reason: None })
            .filter(|shortage| shortage.lasts >= SILENCE);
        failed.or(silent)
    }

    /// Whether any source is being asked for a frame that somebody needs.
    pub fn is_fetching(&self) -> bool {
        !self.shortages.lock().fetching.is_empty()
    }

    /// Whether a source has not answered for a second: who waits for it may never come back.
    pub fn hangs(&self) -> bool {
        self.shortages.lock().fetching.values().any(|since| since.elapsed() >= SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::{io, thread};

    use super::*;
    use crate::{DeviceView, Epoch, FRAME_SIZE, FrameState, Gpa, Source};

    /// Fails so many times.
    struct Failing(AtomicU32);

    impl Source for Failing {
        fn fetch(&self, _: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            let less = |left: u32| left.checked_sub(1);
            match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
                Ok(_) => Err(SourceError::Io(io::Error::other("the disk is gone"))),
                Err(_) => {
                    into.fill(7);
                    Ok(())
                }
            }
        }
    }

    fn failing(times: u32) -> (Arc<GuestMemory>, Arc<Failing>) {
        let memory = Arc::new(GuestMemory::with_bytes(1 << 20).expect("memory"));
        assert!(!memory.has_sources());
        let source = Arc::new(Failing(AtomicU32::new(times)));
        let id = memory.add_source(Arc::clone(&source) as _).expect("a source");
        assert!(memory.has_sources());
        memory.make_absent((0..16).map(Frame), id).expect("absent");
        (memory, source)
    }

    #[test]
    fn a_retry_tells_how_it_went_and_is_no_access() {
        let (memory, _) = failing(2);
        for _ in 0..2 {
            assert!(memory.retry(Frame(3)).expect_err("fails").may_pass());
            let shortage = memory.shortage().expect("a shortage");
            let reason = Some("frame 3: fetch: the disk is gone".to_owned());
            assert_eq!((shortage.frame, shortage.reason), (Frame(3), reason));
        }
        memory.retry(Frame(3)).expect("back");
        memory.retry(Frame(3)).expect("there already");
        assert_eq!(memory.shortage(), None);
        let facts = memory.facts(Frame(3)).expect("a frame");
        assert_eq!((facts.state, facts.accessed), (FrameState::Resident, Epoch::NEVER));
        assert!(!memory.retry(Frame(9999)).expect_err("no such frame").may_pass());
    }

    #[test]
    fn a_device_waits_until_its_source_is_back() {
        let (memory, source) = failing(1);
        let view = DeviceView::new(Arc::clone(&memory));
        view.read(Gpa(0x2000), &mut [0; 4]).expect_err("it is not to wait yet");
        source.0.store(2, Ordering::Relaxed);
        memory.wait_for_sources();
        let device = thread::spawn(move || {
            let mut bytes = [0; 4];
            view.read(Gpa(0x2000), &mut bytes).map(|()| bytes)
        });
        while memory.shortage().is_none() {
            thread::yield_now();
        }
        assert_eq!(device.join().expect("no panic").expect("read"), [7; 4]);
        assert_eq!(memory.shortage(), None);
        assert_eq!(source.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_waits_when_it_is_over() {
        let (memory, _) = failing(u32::MAX);
        memory.wait_for_sources();
        let view = DeviceView::new(Arc::clone(&memory));
        let device = thread::spawn(move || view.write(Gpa(0x2ffe), &[1; 4]));
        while memory.shortage().is_none() {
            thread::yield_now();
        }
        memory.stop_waiting();
        device.join().expect("no panic").expect_err("its source fails");
        assert_eq!(memory.shortage(), None);
        assert_eq!(memory.facts(Frame(2)).expect("a frame").pins, 0);
    }

    #[test]
    fn a_source_that_does_not_answer_is_told_after_a_second() {
        struct Hanging(Mutex<mpsc::Receiver<()>>);
        impl Source for Hanging {
            fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
                self.0.lock().expect("receiver").recv().expect("an answer");
                Ok(())
            }
        }
        let memory = GuestMemory::with_bytes(1 << 20).expect("memory");
        let (answer, wait) = mpsc::channel();
        let id = memory.add_source(Arc::new(Hanging(Mutex::new(wait)))).expect("a source");
        memory.make_absent([Frame(1)], id).expect("absent");
        thread::scope(|scope| {
            scope.spawn(|| memory.resolve(Frame(1), Access::Read).expect("fetched"));
            while !memory.hangs() {
                thread::sleep(Duration::from_millis(10));
            }
            let shortage = memory.shortage().expect("a shortage");
            assert_eq!((shortage.frame, shortage.reason), (Frame(1), None));
            assert!(shortage.lasts >= SILENCE);
            answer.send(()).expect("answered");
        });
        assert_eq!(memory.shortage(), None);
        assert!(!memory.hangs());
    }

    #[test]
    fn contents_that_are_wrong_are_not_waited_for() {
        let error = SourceError::Corrupt("chunk 5: checksum".into());
        assert!(!ResolveError::Source { frame: Frame(1), error }.may_pass());
    }
}
