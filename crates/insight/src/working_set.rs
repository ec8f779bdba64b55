//! The working set: how much memory the guest accessed in the last second, ten, sixty.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use memory::{FRAME_SIZE, GuestMemory};
use serde::Serialize;

/// The longest window that can be asked for.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

/// Epochs looked back on at most, however short they are.
const MAX_EPOCHS: usize = 6000;

/// Samples of history: an hour of seconds. Older ones are dropped.
const HISTORY: usize = 3600;

/// Measures working sets by census: of every frame the table knows the epoch of its last access,
/// and the working set over a window is the number of frames whose last access lies in it.
///
/// The caller ends an epoch every `epoch_length` with [`WorkingSetTracker::tick`]. Results are as
/// of the last tick and cover finished epochs only; what the guest does in the running epoch shows
/// at its end.
///
/// How exact it is. Every frame accessed in the window counts, none other, up to two borders:
/// - A window is a whole number of epochs: the fewest latest ones that reach it to within half an
///   epoch. With one-second epochs, one second is one epoch.
/// - A vCPU forgets its translations at its first safe point in a new epoch. A frame that it
///   accesses through an old translation before that point, and not after it, counts in the epoch
///   before; and a tick counts some microseconds before it ends the epoch.
///
/// Frames discarded (ballooned, reported free) since their last access don't count. Device
/// accesses and the boot loader's count like the guest's own.
#[derive(Debug)]
pub struct WorkingSetTracker {
    memory: Arc<GuestMemory>,
    epoch_length: Duration,
    /// How long the finished epochs lasted, the latest first; at most `limit`.
    lengths: VecDeque<Duration>,
    limit: usize,
    /// Frames last accessed in the latest finished epoch, the one before, ...; as long as
    /// `lengths`, or empty before the first tick.
    ages: Vec<u32>,
    tracked: Duration,
    history: VecDeque<WorkingSetSample>,
}

/// The working sets at the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkingSetSample {
    /// Time since tracking began. Windows longer than this cover this much only.
    pub at_ms: u64,
    /// Frames in use by the guest, by the table.
    pub resident_bytes: u64,
    /// Given to the balloon.
    pub ballooned_bytes: u64,
    /// Accessed in the last second.
    pub working_set_1s_bytes: u64,
    /// Accessed in the last ten seconds.
    pub working_set_10s_bytes: u64,
    /// Accessed in the last minute.
    pub working_set_60s_bytes: u64,
}

impl WorkingSetTracker {
    /// Starts tracking: begins an epoch, and counts no access from before it.
    ///
    /// `epoch_length` is what the caller intends; zero is taken for one millisecond.
    pub fn new(memory: Arc<GuestMemory>, epoch_length: Duration) -> WorkingSetTracker {
        let epoch_length = epoch_length.max(Duration::from_millis(1));
        let epochs = LONGEST_WINDOW.as_nanos().div_ceil(epoch_length.as_nanos());
        memory.advance_epoch();
        WorkingSetTracker {
            memory,
            epoch_length,
            lengths: VecDeque::new(),
            limit: usize::try_from(epochs).map_or(MAX_EPOCHS, |epochs| epochs.min(MAX_EPOCHS)),
            ages: Vec::new(),
            tracked: Duration::ZERO,
            history: VecDeque::new(),
        }
    }

    /// Ends the running epoch, which lasted `elapsed`, and begins the next. One pass over the frame
    /// table; every vCPU refills its translations afterwards.
    ///
    /// A late tick makes its epoch longer, and the windows take that into account.
    pub fn tick(&mut self, elapsed: Duration) -> WorkingSetSample {
        let memory = Arc::clone(&self.memory);
        let seen = memory.end_epoch_after(|| self.look());
        self.note(elapsed, seen)
    }

    /// What the table says just before an epoch ends.
    pub(crate) fn look(&self) -> Vec<u32> {
        self.memory.accesses_by_age((self.lengths.len() + 1).min(self.limit))
    }

    /// The epoch that was looked at has ended, and lasted `elapsed`.
    pub(crate) fn note(&mut self, elapsed: Duration, seen: Vec<u32>) -> WorkingSetSample {
        self.lengths.push_front(elapsed);
        self.lengths.truncate(self.limit);
        self.tracked += elapsed;
        self.ages = seen;
        let sample = self.sample();
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(sample);
        sample
    }

    /// Bytes accessed in the last `window`, as of the last tick; `None` before the first.
    ///
    /// `window` is clamped to what is looked back on: from one epoch to a minute.
    pub fn working_set(&self, window: Duration) -> Option<u64> {
        (!self.lengths.is_empty()).then(|| self.bytes_within(window))
    }

    /// One sample a tick, the oldest first; an hour of seconds at most.
    pub fn history(&self) -> impl ExactSizeIterator<Item = &WorkingSetSample> {
        self.history.iter()
    }

    fn sample(&self) -> WorkingSetSample {
        let counts = self.memory.counts();
        WorkingSetSample {
            at_ms: self.tracked.as_millis().try_into().unwrap_or(u64::MAX),
            resident_bytes: bytes(counts.resident.into()),
            ballooned_bytes: bytes(counts.ballooned.into()),
            working_set_1s_bytes: self.bytes_within(Duration::from_secs(1)),
            working_set_10s_bytes: self.bytes_within(Duration::from_secs(10)),
            working_set_60s_bytes: self.bytes_within(Duration::from_secs(60)),
        }
    }

    fn bytes_within(&self, window: Duration) -> u64 {
        let frames = self.ages.iter().take(self.epochs_within(window)).copied();
        bytes(frames.map(u64::from).sum())
    }

    /// The fewest latest epochs, at least one, that reach `window` to within half an epoch.
    fn epochs_within(&self, window: Duration) -> usize {
        let enough = window.saturating_sub(self.epoch_length / 2);
        let mut reached = Duration::ZERO;
        let mut epochs = 0;
        for length in &self.lengths {
            epochs += 1;
            reached += *length;
            if reached >= enough {
                break;
            }
        }
        epochs
    }
}

fn bytes(frames: u64) -> u64 {
    frames * FRAME_SIZE as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use memory::{Access, Discard, Frame};
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FRAME: u64 = FRAME_SIZE as u64;

    fn memory() -> Arc<GuestMemory> {
        Arc::new(GuestMemory::with_bytes(64 * FRAME).unwrap())
    }

    fn touch(memory: &GuestMemory, frames: impl IntoIterator<Item = u32>) {
        for frame in frames {
            memory.resolve(Frame(frame), Access::Read).unwrap();
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_tick() {
        let tracker = WorkingSetTracker::new(memory(), SECOND);
        assert_eq!(tracker.working_set(SECOND), None);
        assert_eq!(tracker.history().len(), 0);
    }

    #[test]
    fn accesses_from_before_tracking_do_not_count() {
        let memory = memory();
        touch(&memory, 0..50);
        let mut tracker = WorkingSetTracker::new(Arc::clone(&memory), SECOND);
        touch(&memory, 0..3);
        tracker.tick(SECOND);
        assert_eq!(tracker.working_set(60 * SECOND), Some(3 * FRAME));
    }

    #[test]
    fn windows_forget_in_their_own_time() {
        let memory = memory();
        let mut tracker = WorkingSetTracker::new(Arc::clone(&memory), SECOND);
        touch(&memory, 0..30);
        tracker.tick(SECOND);
        for second in 2..=61 {
            touch(&memory, [40]);
            let sample = tracker.tick(SECOND);
            assert_eq!(sample.working_set_1s_bytes, FRAME);
            let with = |window| if second <= window { 31 * FRAME } else { FRAME };
            assert_eq!(sample.working_set_10s_bytes, with(10), "second {second}");
            assert_eq!(sample.working_set_60s_bytes, with(60), "second {second}");
            assert_eq!(sample.at_ms, second * 1000);
        }
        assert_eq!(tracker.history().len(), 61);
    }

    #[test]
    fn jitter_does_not_add_an_epoch_and_a_late_tick_fills_a_window() {
        let memory = memory();
        let mut tracker = WorkingSetTracker::new(Arc::clone(&memory), SECOND);
        touch(&memory, 0..8);
        tracker.tick(SECOND);
        touch(&memory, 8..10);
        let sample = tracker.tick(Duration::from_millis(990));
        assert_eq!(sample.working_set_1s_bytes, 2 * FRAME);
        assert_eq!(sample.working_set_10s_bytes, 10 * FRAME);
        touch(&memory, 20..21);
        let sample = tracker.tick(Duration::from_secs(12));
        assert_eq!(sample.working_set_10s_bytes, FRAME);
        assert_eq!(sample.working_set_60s_bytes, 11 * FRAME);
    }

    #[test]
    fn discarded_frames_leave_the_working_set() {
        let memory = memory();
        let mut tracker = WorkingSetTracker::new(Arc::clone(&memory), SECOND);
        touch(&memory, 0..8);
        memory.discard((0..5).map(Frame), Discard::Balloon).unwrap();
        let sample = tracker.tick(SECOND);
        assert_eq!(sample.working_set_1s_bytes, 3 * FRAME);
        assert_eq!((sample.resident_bytes, sample.ballooned_bytes), (3 * FRAME, 5 * FRAME));
    }

    #[test]
    fn history_and_windows_are_bounded() {
        let mut tracker = WorkingSetTracker::new(memory(), Duration::ZERO);
        for _ in 0..MAX_EPOCHS + 10 {
            tracker.tick(Duration::from_millis(1));
        }
        assert_eq!(tracker.lengths.len(), MAX_EPOCHS);
        assert_eq!(tracker.history().len(), HISTORY);
    }

    proptest! {
        /// Against the definition: the set of frames accessed in the last n epochs.
        #[test]
        fn a_window_is_the_union_of_its_epochs(
            epochs in prop::collection::vec(prop::collection::btree_set(0u32..64, 0..20), 1..20)
        ) {
            let memory = memory();
            let mut tracker = WorkingSetTracker::new(Arc::clone(&memory), SECOND);
            for (done, epoch) in epochs.iter().enumerate() {
                touch(&memory, epoch.iter().copied());
                tracker.tick(SECOND);
                for window in 1..12 {
                    let recent = &epochs[(done + 1).saturating_sub(window)..=done];
                    let union: BTreeSet<u32> = recent.iter().flatten().copied().collect();
                    let measured = tracker.working_set(window as u32 * SECOND);
                    prop_assert_eq!(measured, Some(union.len() as u64 * FRAME));
                }
            }
        }
    }
}
