//! What happens to a guest's frames, told as it happens to whoever infers facts from it.
//!
//! ```text
//!   vCPUs: first write, first access by a user's mapping, use as a page table,
//!          copy to another frame                                        (of watched frames)
//!   disks: block read into a frame, written from it, discarded                   \
//!   balloon: frames given back                                                    > queue > one listener
//!   devices: frames with rings; vCPUs: roots of page tables, once each           /
//! ```
//!
//! Most of what vCPUs tell are the kernel's first writes, and most of these nobody needs at once: the kernel clears a frame
//! before a disk reads into it. So such a write is a mark of its frame, which goes with what is told of the frame next, or
//! is found by [`crate::Inbox`] when it has taken all else. And what a disk transfers by one request is told as one.
//!
//! Accesses as such are told beside that, to who traces them: [`crate::Tracer`].
//!
//! Nobody who tells ever waits: what the queue has no room for is lost and counted. Before somebody listens, an event
//! costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use crate::address::{Access, FRAME_SIZE, Frame};
use crate::guest_memory::GuestMemory;
use crate::inbox::Regions;
use crate::owners::{OwnerTable, Owners};
use crate::revoke::Revocation;
use crate::touches::{self, Touches};

/// A place on one of a VM's disks: which disk, and which 4 KiB of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskBlock {
    /// The disk, in the order in which the VM has them.
    pub disk: u8,
    /// The block: byte offset divided by 4096. Below 2^55.
    pub block: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A disk's block was read into the frame: they have the same contents.
    Read {
        /// All of it.
        frame: Frame,
        /// All of it.
        from: DiskBlock,
        /// The kernel has written to the frame before that, and it was not told yet.
        changed: bool,
    },
    /// The frame was written to a disk's block.
    Written {
        /// All of it.
        frame: Frame,
        /// All of it.
        to: DiskBlock,
        /// Its first bytes.
        starts: [u8; 4],
    },
    /// A device has changed the frame, or part of it, and it is no block's contents.
    Overwritten {
        /// Changed.
        frame: Frame,
    },
    /// The guest no longer wants these blocks' contents.
    Discarded {
        /// The first.
        first: DiskBlock,
        /// How many.
        count: u64,
    },
    /// A watched frame was about to be written by a vCPU.
    Changed {
        /// The frame.
        frame: Frame,
        /// By code of the guest's users.
        user: bool,
    },
    /// A watched frame was accessed through a translation for users.
    Mapped {
        /// The frame.
        frame: Frame,
        /// The translation allows writes.
        writable: bool,
    },
    /// The guest's kernel has copied the whole of a frame to another one. If the first was watched, both are from now on; or
    /// the other one was, which has new contents by that.
    Copied {
        /// The frame.
        from: Frame,
        /// Where its contents are now, too.
        to: Frame,
    },
    /// A watched frame was used as a page table.
    PageTable {
        /// The frame.
        frame: Frame,
    },
    /// The guest has given the frame back.
    Freed {
        /// The frame.
        frame: Frame,
    },
    /// A vCPU goes by page tables of which this is the root. Told once, until [`EventStream::forget_root`].
    AddressSpace {
        /// Their root.
        root: Frame,
        /// Which vCPU.
        vcpu: u32,
    },
    /// A part of a ring by which the guest and a device speak is in the frame.
    Ring {
        /// The frame.
        frame: Frame,
    },
}

/// An event and when it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Since somebody began to listen.
    pub at: Duration,
    /// What happened.
    pub event: Event,
}

/// The queue, and which frames are watched.
#[derive(Debug)]
pub struct EventStream {
    zero: Instant,
    pub(crate) queue: ArrayQueue<Told>,
    /// Events of batches in the queue.
    pub(crate) batched: AtomicUsize,
    lost: AtomicU64,
    pub(crate) watched: Box<[AtomicU8]>,
    pub(crate) owners: OwnerTable,
    /// Where frames may be with a change that was not told yet.
    pub(crate) regions: Regions,
    pub(crate) touches: Touches,
}

/// What was told at once.
#[derive(Debug)]
pub(crate) enum Told {
    One(Stamped),
    Batch(Box<[Stamped]>),
}

/// What a disk transferred by one request, told when it is dropped.
#[derive(Debug)]
pub struct Transfer<'a> {
    events: &'a EventStream,
    at: Duration,
    told: Vec<Stamped>,
}

/// What is told of a watched frame, once each.
mod watch {
    pub(super) const WRITE: u8 = 1;
    pub(super) const USER: u8 = 2;
    pub(super) const TABLE: u8 = 4;
    /// Above the bits of tracers.
    pub(super) const COPY: u8 = 1 << 7;
    pub(super) const ALL: u8 = WRITE | USER | TABLE | COPY;
}

impl EventStream {
    fn new(frames: u32, capacity: usize) -> Self {
        Self {
            zero: Instant::now(),
            queue: ArrayQueue::new(capacity.max(1)),
            batched: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            watched: (0..frames).map(|_| AtomicU8::new(0)).collect(),
            owners: OwnerTable::new(frames),
            regions: Regions::new(frames),
            touches: Touches::default(),
        }
    }

    /// Tells an event. A frame that a disk had to do with is watched from now on, but for accesses through
    /// translations that a vCPU has already.
    pub fn tell(&self, event: Event) {
        let at = self.now();
        self.with_changes(event, |event| self.push(Stamped { at, event }));
    }

    /// Begins to tell of a request: all of it is of this moment.
    pub fn transfer(&self) -> Transfer<'_> {
        Transfer { events: self, at: self.now(), told: Vec::new() }
    }

    fn push(&self, stamped: Stamped) {
        if self.queue.push(Told::One(stamped)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands `event` to `tell`, behind the kernel's changes of its frames that were not told yet.
    fn with_changes(&self, event: Event, mut tell: impl FnMut(Event)) {
        match event {
            Event::Read { frame, from, changed } => {
                let changed = self.watch_again(frame) || changed;
                return tell(Event::Read { frame, from, changed });
            }
            Event::Written { frame, .. } => {
                if self.watch_again(frame) {
                    tell(Event::Changed { frame, user: false });
                }
            }
            Event::Overwritten { frame }
            | Event::Changed { frame, .. }
            | Event::Mapped { frame, .. }
            | Event::PageTable { frame }
            | Event::Freed { frame } => self.tell_change(frame, &mut tell),
            Event::Copied { from, to } => {
                [from, to].into_iter().for_each(|frame| self.tell_change(frame, &mut tell));
            }
            Event::Discarded { .. } | Event::AddressSpace { .. } | Event::Ring { .. } => {}
        }
        tell(event);
    }

    fn tell_change(&self, frame: Frame, tell: &mut impl FnMut(Event)) {
        if self.owners.take_change(frame) {
            tell(Event::Changed { frame, user: false });
        }
    }

    /// Whether there was a change that was not told.
    fn watch_again(&self, frame: Frame) -> bool {
        let Some(watched) = self.watched.get(frame.index()) else { return false };
        watch_all(watched);
        self.owners.take_change(frame)
    }

    /// Events that found the queue full, from the beginning on.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The time that events have as their own.
    pub fn now(&self) -> Duration {
        self.zero.elapsed()
    }

    /// A vCPU has walked its page tables for an access to `frame`, `user` by a translation for users that is
    /// `writable`. True: the translation is one of those that [`Revocation::Traced`] takes back.
    #[inline]
    pub fn note_access(&self, frame: Frame, access: Access, user: bool, writable: bool) -> bool {
        let Some(watched) = self.watched.get(frame.index()) else { return false };
        let asked = watched.load(Ordering::Relaxed);
        if asked == 0 {
            return false;
        }
        if access == Access::Write && self.take_watch(watched, watch::WRITE) {
            if user {
                self.tell(Event::Changed { frame, user });
            } else if self.owners.set_change(frame) {
                self.regions.mark(frame);
            }
        }
        if user && self.take_watch(watched, watch::USER) {
            self.tell(Event::Mapped { frame, writable });
        }
        if asked & touches::ARMED != 0 {
            self.touches.tell(frame, watched);
        }
        asked & touches::TRACED != 0
    }

    /// A device has accessed `frame`.
    #[inline]
    pub(crate) fn note_device(&self, frame: Frame) {
        if let Some(watched) = self.watched.get(frame.index())
            && watched.load(Ordering::Relaxed) & touches::ARMED != 0
        {
            self.touches.tell(frame, watched);
        }
    }

    /// A vCPU has walked through `frame`.
    #[inline]
    pub fn note_table(&self, frame: Frame) {
        let Some(watched) = self.watched.get(frame.index()) else { return };
        if watched.load(Ordering::Relaxed) & touches::ARMED != 0 {
            self.touches.tell(frame, watched);
        }
        if self.take_watch(watched, watch::TABLE) {
            self.tell(Event::PageTable { frame });
        }
    }

    /// The guest's kernel has copied all of `from` to `to`.
    pub fn note_copy(&self, from: Frame, to: Frame) {
        let [Some(watched), Some(copy)] = [from, to].map(|frame| self.watched.get(frame.index()))
        else {
            return;
        };
        if self.take_watch(watched, watch::COPY) {
            watch_all(copy);
            self.tell(Event::Copied { from, to });
        } else if self.take_watch(copy, watch::COPY) {
            self.tell(Event::Copied { from, to });
        }
    }

    /// A vCPU has walked its page tables to `frame`, by a translation for users or one of the kernel's alone.
    #[inline]
    pub fn note_owner(&self, frame: Frame, access: Access, fetch: bool, for_users: bool) {
        self.owners.note(frame, access, fetch, for_users);
    }

    /// A vCPU begins to go by the page tables at `root`.
    #[inline]
    pub fn note_root(&self, root: Frame, vcpu: u32) {
        if self.owners.is_new_root(root) {
            self.tell(Event::AddressSpace { root, vcpu });
        }
    }

    /// Tells of `root` again when it is used next.
    pub fn forget_root(&self, root: Frame) {
        self.owners.forget_root(root);
    }

    /// See [`Owners`].
    pub fn owners(&self, frame: Frame) -> Owners {
        self.owners.of(frame)
    }

    /// What the kernel writes from now on through translations of its own is told by [`Owners::kernel_wrote`].
    pub fn forget_kernel_writes(&self, frame: Frame) {
        self.owners.forget_kernel(frame);
    }

    /// Whether the next access to `frame` should be told, if it is a write or, with `user`, one by a translation for
    /// users: for [`Revocation::Watched`].
    #[inline]
    pub fn is_watched(&self, frame: Frame, user: bool) -> bool {
        let what = if user { watch::USER } else { watch::WRITE };
        self.watched.get(frame.index()).is_some_and(|w| w.load(Ordering::Relaxed) & what != 0)
    }

    fn take_watch(&self, watched: &AtomicU8, what: u8) -> bool {
        watched.load(Ordering::Relaxed) & what != 0
            && watched.fetch_and(!what, Ordering::Relaxed) & what != 0
    }
}

impl Transfer<'_> {
    /// Part of it.
    pub fn tell(&mut self, event: Event) {
        let Self { events, at, told } = self;
        events.with_changes(event, |event| told.push(Stamped { at: *at, event }));
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        let told = std::mem::take(&mut self.told);
        if let [one] = told[..] {
            return self.events.push(one);
        }
        let (events, count) = (self.events, told.len());
        if count == 0 {
            return;
        }
        // As many as fit into the queue one by one. Another disk's may come between: then it is a batch more.
        let room = events.batched.fetch_add(count, Ordering::Relaxed) < events.queue.capacity();
        if !room || events.queue.push(Told::Batch(told.into())).is_err() {
            events.batched.fetch_sub(count, Ordering::Relaxed);
            events.lost.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}

/// Most often it is already, and others look at its neighbours.
fn watch_all(watched: &AtomicU8) {
    if watched.load(Ordering::Relaxed) & watch::ALL != watch::ALL {
        watched.fetch_or(watch::ALL, Ordering::Relaxed);
    }
}

impl GuestMemory {
    /// Begins to tell events, at most `capacity` that nobody has taken; for ever. The capacity of the first call
    /// counts.
    pub fn listen(&self, capacity: usize) -> &EventStream {
        self.events.get_or_init(|| EventStream::new(self.layout.frames(), capacity))
    }

    /// Where to tell events, if anybody listens.
    #[inline]
    pub fn events(&self) -> Option<&EventStream> {
        self.events.get()
    }

    /// Tells of each of these frames when it is next written by a vCPU, accessed by a user's translation, walked
    /// through, or copied; once each. What happens before each vCPU's next safe point is perhaps not told. Nothing where nobody
    /// listens.
    pub fn watch(&self, frames: impl IntoIterator<Item = Frame>) {
        let Some(events) = self.events() else { return };
        let mut any = false;
        for frame in frames {
            if let Some(watched) = events.watched.get(frame.index()) {
                watch_all(watched);
                any = true;
            }
        }
        if any {
            self.revoke(Revocation::Watched);
        }
    }
}

/// The frames' part of [`GuestMemory`].
pub(crate) type Events = OnceLock<EventStream>;

/// Blocks of a disk have the size of frames.
const _: () = assert!(FRAME_SIZE == 4096);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Inbox;

    const BLOCK: DiskBlock = DiskBlock { disk: 1, block: 7 };

    fn taken(events: &EventStream) -> Vec<Event> {
        let mut inbox = Inbox::default();
        std::iter::from_fn(|| inbox.take(events)).map(|stamped| stamped.event).collect()
    }

    fn read(frame: u32, changed: bool) -> Event {
        Event::Read { frame: Frame(frame), from: BLOCK, changed }
    }

    #[test]
    fn nothing_is_told_before_somebody_listens() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        assert!(memory.events().is_none());
        memory.watch([Frame(1)]);
        assert!(memory.events().is_none());
    }

    #[test]
    fn what_does_not_fit_is_lost_and_counted() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        let events = memory.listen(2);
        for frame in 0..5 {
            events.tell(read(frame, false));
        }
        assert_eq!((events.lost(), taken(events).len()), (3, 2));
        events.tell(Event::Freed { frame: Frame(9) });
        assert_eq!(taken(events), [Event::Freed { frame: Frame(9) }]);
    }

    #[test]
    fn a_copy_of_a_watched_frame_is_watched() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        let events = memory.listen(16);
        let (from, to) = (Frame(3), Frame(4));
        events.note_copy(from, to);
        assert_eq!(taken(events), []);
        memory.watch([from]);
        for to in [Frame(u32::MAX), to, Frame(5)] {
            events.note_copy(from, to);
            events.note_copy(to, from);
        }
        events.note_table(to);
        // The copy is watched, too, and was copied back.
        let expected = [
            Event::Copied { from, to },
            Event::Copied { from: to, to: from },
            Event::Copied { from, to: Frame(5) },
            Event::Copied { from: Frame(5), to: from },
            Event::PageTable { frame: to },
        ];
        assert_eq!(taken(events), expected);
    }

    #[test]
    fn a_copy_to_a_watched_frame_is_told() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        let events = memory.listen(16);
        let (from, to) = (Frame(3), Frame(4));
        memory.watch([to]);
        (0..3).for_each(|_| events.note_copy(from, to));
        assert_eq!(taken(events), [Event::Copied { from, to }]);
    }

    #[test]
    fn a_watched_frame_tells_each_once() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        let events = memory.listen(16);
        let frame = Frame(3);
        events.note_access(frame, Access::Write, true, true);
        assert_eq!(taken(events), []);
        memory.watch([frame, Frame(u32::MAX)]);
        for _ in 0..2 {
            events.note_access(frame, Access::Read, false, true);
            events.note_access(frame, Access::Write, false, true);
            events.note_access(frame, Access::Read, true, false);
            events.note_table(frame);
        }
        let expected = [
            Event::Changed { frame, user: false },
            Event::Mapped { frame, writable: false },
            Event::PageTable { frame },
        ];
        assert_eq!(taken(events), expected);
        memory.watch([frame]);
        events.note_table(Frame(4));
        events.note_table(frame);
        assert_eq!(taken(events), [Event::PageTable { frame }]);
    }
}
