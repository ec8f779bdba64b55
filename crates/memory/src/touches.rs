//! Accesses to frames told one by one, in their order: to who follows a sample of frames, or all, for a while.
//!
//! ```text
//!   arm(frames) --> the next access to each by a vCPU or a device --> the tracer's queue
//!       ^                                                                    |
//!       +---- revoke_traced, or an epoch's end, so that it is seen <---------+
//! ```
//!
//! An access is told once for each time that its frame was armed. The engine sees accesses where it walks page tables;
//! so that it does, the translations are taken back: for frames that [`GuestMemory::trace`] names, those of these
//! frames alone ([`Revocation::Traced`]), which costs by their number and not by what the guest uses; for others, all,
//! as an epoch's end does.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::address::Frame;
use crate::guest_memory::GuestMemory;
use crate::revoke::Revocation;

/// Who asks for accesses. Each has a queue of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// Follows a sample of frames in short intervals.
    Sample,
    /// Wants the order of first accesses.
    Order,
    /// Writes down everything, for experiments.
    Log,
}

/// Bits of a frame, beside those of what is watched: for each tracer, tell its next access.
const SAMPLE: u8 = 1 << 3;
const ORDER: u8 = 1 << 4;
const LOG: u8 = 1 << 5;
/// Any of these.
pub(crate) const ARMED: u8 = SAMPLE | ORDER | LOG;
/// Translations to the frame are remembered, so that they can be taken back alone.
pub(crate) const TRACED: u8 = 1 << 6;

impl Tracer {
    const ALL: [Self; 3] = [Self::Sample, Self::Order, Self::Log];

    fn bit(self) -> u8 {
        match self {
            Self::Sample => SAMPLE,
            Self::Order => ORDER,
            Self::Log => LOG,
        }
    }
}

/// The queues.
#[derive(Debug, Default)]
pub(crate) struct Touches {
    queues: [OnceLock<ArrayQueue<Frame>>; 3],
    lost: [AtomicU64; 3],
}

impl Touches {
    /// The frame was accessed and is armed for somebody.
    #[cold]
    pub(crate) fn tell(&self, frame: Frame, watched: &AtomicU8) {
        let armed = watched.fetch_and(!ARMED, Ordering::Relaxed);
        for tracer in Tracer::ALL {
            let Some(queue) = self.queues[tracer as usize].get() else { continue };
            if armed & tracer.bit() != 0 && queue.push(frame).is_err() {
                self.lost[tracer as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl GuestMemory {
    /// Makes the queue of `tracer`, for at most `capacity` accesses that were not taken. The capacity of the first call
    /// counts; nothing where nobody listens.
    pub fn open_trace(&self, tracer: Tracer, capacity: usize) {
        if let Some(events) = self.events() {
            events.touches.queues[tracer as usize].get_or_init(|| ArrayQueue::new(capacity.max(1)));
        }
    }

    /// From now on translations to these frames can be taken back alone.
    pub fn trace(&self, frames: impl IntoIterator<Item = Frame>) {
        self.change_watched(frames, |watched| watched.fetch_or(TRACED, Ordering::Relaxed));
    }

    /// No longer, and `tracer` is told nothing more of them.
    pub fn untrace(&self, tracer: Tracer, frames: impl IntoIterator<Item = Frame>) {
        let bits = TRACED | tracer.bit();
        self.change_watched(frames, |watched| watched.fetch_and(!bits, Ordering::Relaxed));
    }

    /// Tells `tracer` the next access to each of these frames that is by a new translation.
    pub fn arm(&self, tracer: Tracer, frames: impl IntoIterator<Item = Frame>) {
        self.change_watched(frames, |watched| watched.fetch_or(tracer.bit(), Ordering::Relaxed));
    }

    /// [`GuestMemory::arm`] for all of RAM.
    pub fn arm_all(&self, tracer: Tracer) {
        self.arm(tracer, (0..self.layout.frames()).map(Frame));
    }

    /// Takes the translations to traced frames back, at each vCPU's next safe point.
    pub fn revoke_traced(&self) {
        self.revoke(Revocation::Traced);
    }

    /// Takes all translations back at each vCPU's next safe point, as an epoch's end does, in the same epoch.
    pub fn forget_translations(&self) {
        self.revoke(Revocation::Epoch(self.epoch()));
    }

    /// The oldest access that `tracer` has not taken.
    pub fn take_touch(&self, tracer: Tracer) -> Option<Frame> {
        self.events()?.touches.queues[tracer as usize].get()?.pop()
    }

    /// Accesses that found the queue full, from the beginning on.
    pub fn touches_lost(&self, tracer: Tracer) -> u64 {
        let events = self.events();
        events.map_or(0, |events| events.touches.lost[tracer as usize].load(Ordering::Relaxed))
    }

    fn change_watched(
        &self,
        frames: impl IntoIterator<Item = Frame>,
        change: impl Fn(&AtomicU8) -> u8,
    ) {
        let Some(events) = self.events() else { return };
        for frame in frames {
            if let Some(watched) = events.watched.get(frame.index()) {
                change(watched);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Access;
    use crate::events::Event;
    use crate::inbox::Inbox;

    fn taken(memory: &GuestMemory, tracer: Tracer) -> Vec<u32> {
        std::iter::from_fn(|| memory.take_touch(tracer)).map(|frame| frame.0).collect()
    }

    fn memory() -> GuestMemory {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        memory.listen(16);
        memory
    }

    fn access(memory: &GuestMemory, frame: u32) -> bool {
        let events = memory.events().expect("somebody listens");
        events.note_access(Frame(frame), Access::Read, false, false)
    }

    #[test]
    fn each_tracer_is_told_once_for_each_time_that_it_armed_a_frame() {
        let memory = memory();
        memory.open_trace(Tracer::Sample, 8);
        memory.open_trace(Tracer::Order, 8);
        memory.arm(Tracer::Sample, [Frame(3), Frame(u32::MAX)]);
        memory.arm(Tracer::Order, [Frame(3), Frame(4)]);
        for frame in [4, 3, 3, 9, 4] {
            access(&memory, frame);
        }
        assert_eq!(taken(&memory, Tracer::Sample), [3]);
        assert_eq!(taken(&memory, Tracer::Order), [4, 3]);
        assert_eq!(taken(&memory, Tracer::Log), [] as [u32; 0]);
        memory.arm(Tracer::Sample, [Frame(3)]);
        memory.events().expect("somebody listens").note_table(Frame(3));
        assert_eq!(taken(&memory, Tracer::Sample), [3]);
    }

    #[test]
    fn what_does_not_fit_is_lost_and_counted() {
        let memory = memory();
        memory.open_trace(Tracer::Log, 2);
        memory.arm_all(Tracer::Log);
        for frame in 0..5 {
            access(&memory, frame);
        }
        assert_eq!(
            (memory.touches_lost(Tracer::Log), taken(&memory, Tracer::Log)),
            (3, vec![0, 1])
        );
    }

    #[test]
    fn tracing_and_watching_a_frame_do_not_disturb_each_other() {
        let memory = memory();
        memory.open_trace(Tracer::Sample, 8);
        memory.trace([Frame(5)]);
        memory.arm(Tracer::Sample, [Frame(5)]);
        memory.watch([Frame(5)]);
        assert!(access(&memory, 5) && !access(&memory, 6));
        assert_eq!(taken(&memory, Tracer::Sample), [5]);
        let events = memory.events().expect("somebody listens");
        assert!(events.note_access(Frame(5), Access::Write, false, true));
        let told = Inbox::default().take(events).map(|stamped| stamped.event);
        assert_eq!(told, Some(Event::Changed { frame: Frame(5), user: false }));
        memory.untrace(Tracer::Sample, [Frame(5)]);
        assert!(!access(&memory, 5));
    }
}
