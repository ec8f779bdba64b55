//! Events as their one listener takes them: from the queue, and with them what the kernel has written to since.
//!
//! A change that goes with no event is found where its frame is: when the queue is empty, the inbox has looked before.
//! So each round begins with a look, and what that finds is told between the events of before the look and those of after it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::vec;

use crate::address::Frame;
use crate::events::{Event, EventStream, Stamped, Told};

/// The listener's end. One for each stream.
#[derive(Debug, Default)]
pub struct Inbox {
    /// What is left of a batch, and what was taken too early.
    batch: vec::IntoIter<Stamped>,
    held: Option<Stamped>,
    /// Since it was looked for changes, and what was found.
    looked: Option<Duration>,
    changed: vec::IntoIter<Frame>,
}

impl Inbox {
    /// The oldest event that was not taken yet; `None` once there is nothing more.
    pub fn take(&mut self, events: &EventStream) -> Option<Stamped> {
        let looked = *self.looked.get_or_insert_with(|| {
            let at = events.now();
            self.changed = events.take_changes().into_iter();
            at
        });
        let next = self.held.take().or_else(|| self.queued(events));
        if next.is_none_or(|next| next.at > looked)
            && let Some(frame) = self.changed.next()
        {
            self.held = next;
            return Some(Stamped { at: looked, event: Event::Changed { frame, user: false } });
        }
        if next.is_none() {
            self.looked = None;
        }
        next
    }

    fn queued(&mut self, events: &EventStream) -> Option<Stamped> {
        if let Some(next) = self.batch.next() {
            return Some(next);
        }
        match events.queue.pop()? {
            Told::One(stamped) => Some(stamped),
            Told::Batch(batch) => {
                events.batched.fetch_sub(batch.len(), Ordering::Relaxed);
                self.batch = Vec::from(batch).into_iter();
                self.batch.next()
            }
        }
    }
}

impl EventStream {
    /// Frames that the kernel has written to, as far as that was not told.
    fn take_changes(&self) -> Vec<Frame> {
        let mut changed = Vec::new();
        self.regions.take(|first| {
            let frames = (first..first.saturating_add(REGION)).map(Frame);
            changed.extend(frames.filter(|frame| self.owners.take_change(*frame)));
        });
        changed
    }
}

/// Frames of a region.
const REGION: u32 = 64;

/// In which regions frames may be that were changed: one bit each.
#[derive(Debug)]
pub(crate) struct Regions(Box<[AtomicU64]>);

impl Regions {
    pub(crate) fn new(frames: u32) -> Self {
        Self((0..frames.div_ceil(REGION * u64::BITS)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Behind the change, and in the same order for all: who takes a region's bit first has not looked at the frame.
    #[inline]
    pub(crate) fn mark(&self, frame: Frame) {
        let region = frame.0 / REGION;
        let bit = 1 << (region % u64::BITS);
        if let Some(word) = self.0.get((region / u64::BITS) as usize)
            && word.load(Ordering::SeqCst) & bit == 0
        {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// The first frames of those that were marked since.
    fn take(&self, mut region: impl FnMut(u32)) {
        for (number, word) in (0..).zip(&self.0) {
            let mut bits = match word.load(Ordering::SeqCst) {
                0 => continue,
                _ => word.swap(0, Ordering::SeqCst),
            };
            while bits != 0 {
                region((number * u64::BITS + bits.trailing_zeros()) * REGION);
                bits &= bits - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Access;
    use crate::events::DiskBlock;
    use crate::guest_memory::GuestMemory;

    const BLOCK: DiskBlock = DiskBlock { disk: 1, block: 7 };

    fn memory(frames: u64) -> GuestMemory {
        let memory = GuestMemory::with_bytes(frames << 12).expect("memory");
        memory.listen(16);
        memory
    }

    fn of_kernel(frame: u32) -> Event {
        Event::Changed { frame: Frame(frame), user: false }
    }

    fn read(frame: u32, changed: bool) -> Event {
        Event::Read { frame: Frame(frame), from: BLOCK, changed }
    }

    fn taken(inbox: &mut Inbox, events: &EventStream) -> Vec<Event> {
        std::iter::from_fn(|| inbox.take(events)).map(|stamped| stamped.event).collect()
    }

    fn write(events: &EventStream, frame: u32) {
        events.note_access(Frame(frame), Access::Write, false, true);
    }

    #[test]
    fn changes_are_found_wherever_they_are() {
        let memory = memory(20_000);
        let events = memory.events().expect("listened to");
        let frames = [0, 63, 64, 4095, 4096, 19_999];
        memory.watch(frames.map(Frame));
        (0..20_000).rev().for_each(|frame| write(events, frame));
        let mut inbox = Inbox::default();
        assert_eq!(taken(&mut inbox, events), frames.map(of_kernel));
        frames.iter().for_each(|frame| write(events, *frame));
        assert_eq!(taken(&mut inbox, events), []);
    }

    #[test]
    fn a_change_goes_with_what_is_told_of_its_frame_next() {
        let memory = memory(256);
        let events = memory.events().expect("listened to");
        let frame = Frame(3);
        let by_user = Event::Changed { frame, user: true };
        let mapped = Event::Mapped { frame, writable: true };
        let written = Event::Written { frame, to: BLOCK, starts: [0; 4] };
        let copied = Event::Copied { from: Frame(4), to: frame };
        let mut inbox = Inbox::default();
        for event in [by_user, mapped, written, copied] {
            memory.watch([frame]);
            write(events, 3);
            events.tell(event);
            assert_eq!(taken(&mut inbox, events), [of_kernel(3), event]);
        }
        memory.watch([frame]);
        write(events, 3);
        events.tell(read(3, false));
        events.tell(read(3, false));
        assert_eq!(taken(&mut inbox, events), [read(3, true), read(3, false)]);
    }

    #[test]
    fn a_change_stands_between_what_was_told_before_and_after_it_was_found() {
        let memory = memory(256);
        let events = memory.events().expect("listened to");
        memory.watch([Frame(3)]);
        write(events, 3);
        events.tell(read(9, false));
        let mut inbox = Inbox::default();
        assert_eq!(inbox.take(events).map(|stamped| stamped.event), Some(read(9, false)));
        let looked = events.now();
        while events.now() == looked {}
        events.tell(read(3, false));
        assert_eq!(taken(&mut inbox, events), [of_kernel(3), read(3, false)]);
    }

    #[test]
    fn a_request_is_told_as_one_and_lost_as_one() {
        let memory = memory(256);
        let events = memory.events().expect("listened to");
        let told = |frames: std::ops::Range<u32>| {
            let mut transfer = events.transfer();
            frames.for_each(|frame| transfer.tell(read(frame, false)));
        };
        let mut inbox = Inbox::default();
        told(0..0);
        told(0..1);
        told(1..12);
        told(12..24);
        // There is no room any more until something is taken.
        told(24..30);
        assert_eq!(events.lost(), 6);
        let frames = |frames: std::ops::Range<u32>| -> Vec<_> {
            frames.map(|frame| read(frame, false)).collect()
        };
        assert_eq!(taken(&mut inbox, events), frames(0..24));
        told(30..41);
        assert_eq!((taken(&mut inbox, events), events.lost()), (frames(30..41), 6));
        let mut at = inbox.take(events);
        assert_eq!(at.take(), None);
    }
}
