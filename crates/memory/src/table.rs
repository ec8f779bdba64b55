//! The frame table: one 16-byte entry a frame, and the transitions between states.
//!
//! Nothing here touches guest bytes or maps memory; [`crate::GuestMemory`] does both between the
//! two halves of a transition.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::address::{Access, Epoch, Frame};
use crate::bits::Bits;
use crate::source::SourceId;
use crate::word::{Tag, Word};

/// What the table knows of one frame.
#[repr(C, align(16))]
struct Entry {
    word: AtomicU64,
    /// Epoch of the last access; `accessed >= written` unless the frame was discarded since.
    accessed: AtomicU32,
    /// Epoch of the last change of its contents.
    written: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 16);

/// The state of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameState {
    /// Never touched, or reported free since: reads as zeros, has no host page.
    Untouched,
    /// In use; its host page holds its contents.
    Resident,
    /// Given to the balloon: the guest promised not to use it. Has no host page.
    Ballooned,
    /// Its contents are at the source and come on the first access. Has no host page but, where the source is
    /// [`SourceId::BASE`], one that others have, too.
    Absent(SourceId),
}

/// Everything the table says of one frame, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFacts {
    /// Its state. A frame on its way between two states shows the one it leaves.
    pub state: FrameState,
    /// Whether an engine holds code decoded from it.
    pub code: bool,
    /// How many device accesses hold it in place now.
    pub pins: u32,
    /// Epoch of its last access, [`Epoch::NEVER`] if none since it was last discarded.
    pub accessed: Epoch,
    /// Epoch in which its contents last changed: by a write, or by a discard.
    pub written: Epoch,
}

/// How many frames are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames without contents.
    pub untouched: u32,
    /// Frames with a host page.
    pub resident: u32,
    /// Frames in the balloon.
    pub ballooned: u32,
    /// Frames whose contents are at a source.
    pub absent: u32,
}

/// What [`FrameTable::enter`] asks of its caller.
#[must_use]
pub(crate) enum Entered {
    /// The frame is resident, `waited`: after another thread was done with it.
    Resident { waited: bool },
    /// This thread alone must fetch the frame and call [`FrameTable::filled`].
    Fill(SourceId),
}

/// What [`FrameTable::hold`] found.
#[must_use]
pub(crate) enum Held {
    /// The frame is pinned: [`FrameTable::unpin`] it.
    Page,
    /// It has no contents, or is losing them.
    Zeros,
    /// Its contents are elsewhere, or on their way.
    Absent,
}

/// What [`FrameTable::begin_discard`] did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It had no page: it is in the target state already.
    Done,
    /// It is leaving: revoke it, then [`FrameTable::begin_punch`].
    Leaving,
    /// It is pinned or arriving: it stays.
    Kept,
}

/// Waiters are rare (a busy frame lasts for one system call or one fetch), so few locks do.
const STRIPES: usize = 16;

#[derive(Default)]
struct Stripe {
    lock: Mutex<()>,
    settled: Condvar,
}

pub(crate) struct FrameTable {
    entries: Box<[Entry]>,
    /// Frames that the image below has contents of. Their words are stored with [`Word::BASE`] as zero, so that a
    /// table of a clone takes no memory for what the clone does not use.
    based: Option<Bits>,
    /// Current epoch, `>= 1`.
    epoch: AtomicU32,
    /// Frames by settled state, by [`slot`].
    counts: [AtomicU32; 4],
    stripes: [Stripe; STRIPES],
}

/// The counter of the state that `tag` shows.
fn slot(tag: Tag) -> usize {
    match tag {
        Tag::Untouched => 0,
        Tag::Resident | Tag::Discarding | Tag::Punching => 1,
        Tag::Ballooned => 2,
        Tag::Absent | Tag::Filling => 3,
    }
}

impl FrameTable {
    pub(crate) fn new(frames: u32) -> FrameTable {
        // SAFETY: an Entry is three atomic integers, for which all zeros is a value.
        let entries = unsafe { Box::<[Entry]>::new_zeroed_slice(frames as usize).assume_init() };
        let table = FrameTable {
            entries,
            based: None,
            epoch: AtomicU32::new(Epoch::FIRST.0),
            counts: Default::default(),
            stripes: Default::default(),
        };
        table.counts[slot(Tag::Untouched)].store(frames, Ordering::Relaxed);
        table
    }

    /// Of memory over an image that has contents of these frames: they are absent, with [`SourceId::BASE`].
    pub(crate) fn over(frames: u32, based: Bits) -> FrameTable {
        let table = FrameTable { based: Some(based), ..FrameTable::new(frames) };
        let absent = table.based.as_ref().map_or(0, Bits::count);
        table.counts[slot(Tag::Untouched)].store(frames - absent, Ordering::Relaxed);
        table.counts[slot(Tag::Absent)].store(absent, Ordering::Relaxed);
        table
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// What a word of `frame` differs by from what is stored.
    #[inline]
    fn key(&self, frame: Frame) -> u64 {
        match &self.based {
            Some(based) if based.get(frame) => Word::BASE.0,
            _ => 0,
        }
    }

    /// Acquire, so that whoever sees a frame resident sees the contents that a fetch put there.
    #[inline]
    pub(crate) fn word(&self, frame: Frame) -> Word {
        Word(self.entry(frame).word.load(Ordering::Acquire) ^ self.key(frame))
    }

    fn entry(&self, frame: Frame) -> &Entry {
        &self.entries[frame.index()]
    }

    /// Whether `frame` is resident and settled; `None` if there is no such frame.
    #[inline]
    pub(crate) fn is_resident(&self, frame: Frame) -> Option<bool> {
        (frame.0 < self.len()).then(|| self.word(frame).is_resident())
    }

    /// The words of all frames, in order.
    pub(crate) fn words(&self) -> impl Iterator<Item = Word> {
        (0..self.len()).map(|frame| self.word(Frame(frame)))
    }

    // ---- Arriving ----

    /// Whether the contents of `frame` are at a source, or on their way.
    pub(crate) fn is_elsewhere(&self, frame: Frame) -> bool {
        let word = self.word(frame);
        matches!(word.tag(), Tag::Absent | Tag::Filling) && !word.has_page()
    }

    /// Whether somebody waits for `frame`.
    #[cfg(test)]
    pub(crate) fn is_waited_for(&self, frame: Frame) -> bool {
        Word(self.entry(frame).word.load(Ordering::Relaxed)).is_waited()
    }

    /// Takes `frame` towards resident, and pins it there if `pin`.
    ///
    /// Waits while another thread fills or punches it. Takes it back from a discard that has not
    /// punched it yet.
    pub(crate) fn enter(&self, frame: Frame, pin: bool) -> Entered {
        let mut waited = false;
        loop {
            let word = self.word(frame);
            let (next, entered) = match word.tag() {
                Tag::Resident | Tag::Discarding | Tag::Untouched | Tag::Ballooned => {
                    let resident = word.with_tag(Tag::Resident);
                    (if pin { resident.pinned() } else { resident }, Entered::Resident { waited })
                }
                Tag::Absent if word.source() == SourceId::BASE => {
                    let resident = word.with_tag(Tag::Resident).with_source(SourceId(0));
                    (if pin { resident.pinned() } else { resident }, Entered::Resident { waited })
                }
                Tag::Absent => (word.with_tag(Tag::Filling), Entered::Fill(word.source())),
                Tag::Punching | Tag::Filling => {
                    self.wait(frame);
                    waited = true;
                    continue;
                }
            };
            if self.exchange(frame, word, next) {
                return entered;
            }
        }
    }

    /// Untouched or ballooned to resident, without waiting. False where the frame is neither that nor
    /// resident.
    pub(crate) fn settle_resident(&self, frame: Frame) -> bool {
        loop {
            let word = self.word(frame);
            match word.tag() {
                Tag::Resident => return true,
                Tag::Untouched | Tag::Ballooned => {
                    if self.exchange(frame, word, word.with_tag(Tag::Resident)) {
                        return true;
                    }
                }
                Tag::Absent if word.source() == SourceId::BASE => {
                    let resident = word.with_tag(Tag::Resident).with_source(SourceId(0));
                    if self.exchange(frame, word, resident) {
                        return true;
                    }
                }
                Tag::Absent | Tag::Filling | Tag::Discarding | Tag::Punching => return false,
            }
        }
    }

    /// Ends the fetch that [`Entered::Fill`] asked for: resident (and pinned if `pin`) or, if it
    /// failed, absent as before.
    pub(crate) fn filled(&self, frame: Frame, ok: bool, pin: bool) {
        self.settle(frame, |word| match (ok, pin) {
            (false, _) => word.with_tag(Tag::Absent),
            (true, false) => word.with_tag(Tag::Resident).with_source(SourceId(0)),
            (true, true) => word.with_tag(Tag::Resident).with_source(SourceId(0)).pinned(),
        });
    }

    /// Absent at `source` to filling, without waiting: this thread alone must settle the frame by
    /// [`FrameTable::filled`]. False if the frame is anything else.
    pub(crate) fn claim(&self, frame: Frame, source: SourceId) -> bool {
        loop {
            let word = self.word(frame);
            if word.tag() != Tag::Absent || word.source() != source {
                return false;
            }
            if self.exchange(frame, word, word.with_tag(Tag::Filling)) {
                return true;
            }
        }
    }

    /// Pins `frame` if it has contents, and changes nothing else; one that is being evicted stays. Waits only while
    /// the contents of a frame go to a source.
    pub(crate) fn hold(&self, frame: Frame) -> Held {
        loop {
            let word = self.word(frame);
            match word.tag() {
                Tag::Resident | Tag::Absent if word.has_page() => {
                    if self.exchange(frame, word, word.pinned()) {
                        return Held::Page;
                    }
                }
                Tag::Discarding if word.is_keeping() => {
                    if self.exchange(frame, word, word.with_tag(Tag::Resident).pinned()) {
                        return Held::Page;
                    }
                }
                Tag::Punching if word.is_keeping() => self.wait(frame),
                Tag::Untouched | Tag::Ballooned | Tag::Discarding | Tag::Punching => {
                    return Held::Zeros;
                }
                Tag::Resident | Tag::Absent | Tag::Filling => return Held::Absent,
            }
        }
    }

    pub(crate) fn unpin(&self, frame: Frame) {
        let entry = self.entry(frame);
        // Release: the device's writes come before a punch that the count of zero allows.
        let _ = entry.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
            Some(Word(word).unpinned().0)
        });
    }

    /// Whether a device holds any frame.
    pub(crate) fn any_pinned(&self) -> bool {
        // Acquire: what a device wrote before it unpinned is seen by who finds the frame unpinned.
        self.entries.iter().any(|entry| Word(entry.word.load(Ordering::Acquire)).pins() != 0)
    }

    /// Untouched or ballooned to absent; false if the frame is in any other state.
    pub(crate) fn make_absent(&self, frame: Frame, source: SourceId) -> bool {
        loop {
            let word = self.word(frame);
            if !matches!(word.tag(), Tag::Untouched | Tag::Ballooned) {
                return false;
            }
            if self.exchange(frame, word, word.with_tag(Tag::Absent).with_source(source)) {
                return true;
            }
        }
    }

    /// Ballooned to untouched; false if the frame is in any other state.
    pub(crate) fn leave_balloon(&self, frame: Frame) -> bool {
        loop {
            let word = self.word(frame);
            if word.tag() != Tag::Ballooned {
                return false;
            }
            if self.exchange(frame, word, word.with_tag(Tag::Untouched)) {
                return true;
            }
        }
    }

    // ---- Leaving ----

    /// Starts to discard `frame` towards `target`. One discard at a time may be under way in the
    /// table: a frame that an access took back and a second discard took again would pass for the
    /// first one's, whose revocation came too early. So a frame found discarding is left over
    /// from a discard that died, and is taken.
    ///
    /// `unseen`: guests reach frames without [`FrameTable::enter`], so one without a page by the
    /// table may have one.
    pub(crate) fn begin_discard(&self, frame: Frame, target: Tag, unseen: bool) -> Begun {
        loop {
            let word = self.word(frame);
            let (next, begun) = match word.tag() {
                Tag::Resident | Tag::Discarding | Tag::Absent
                    if word.has_page() && word.pins() == 0 =>
                {
                    (word.with_tag(Tag::Discarding).with_source(SourceId(0)), Begun::Leaving)
                }
                Tag::Absent if word.has_page() => return Begun::Kept,
                Tag::Resident | Tag::Discarding | Tag::Punching | Tag::Filling => {
                    return Begun::Kept;
                }
                Tag::Untouched | Tag::Ballooned if unseen => {
                    (word.with_tag(Tag::Discarding), Begun::Leaving)
                }
                // A ballooned frame leaves the balloon by deflation only.
                Tag::Ballooned => return Begun::Done,
                Tag::Untouched => (word.with_tag(target), Begun::Done),
                Tag::Absent => (word.with_tag(target).with_source(SourceId(0)), Begun::Done),
            };
            if self.exchange(frame, word, next) {
                if word.tag() == Tag::Absent && begun == Begun::Done {
                    self.note_change(frame);
                }
                return begun;
            }
        }
    }

    /// Starts to evict `frame`: as [`FrameTable::begin_discard`], but only one that has a page of its own, and its
    /// contents are kept. False: it stays what it is.
    pub(crate) fn begin_evict(&self, frame: Frame) -> bool {
        loop {
            let word = self.word(frame);
            let is_settled = matches!(word.tag(), Tag::Resident | Tag::Discarding);
            if !is_settled || word.pins() != 0 {
                return false;
            }
            if self.exchange(frame, word, word.with_tag(Tag::Discarding).keeping()) {
                return true;
            }
        }
    }

    /// Ends what [`FrameTable::begin_punch`] began of an eviction: absent at `source`, or resident as before.
    pub(crate) fn evicted(&self, frame: Frame, source: Option<SourceId>) {
        self.settle(frame, |word| match source {
            Some(source) => word.with_tag(Tag::Absent).with_source(source),
            None => word.with_tag(Tag::Resident),
        });
    }

    /// After the revocation: true if `frame` may now be punched, false if an access took it back.
    pub(crate) fn begin_punch(&self, frame: Frame) -> bool {
        loop {
            let word = self.word(frame);
            if word.tag() != Tag::Discarding {
                return false;
            }
            let next = word.with_tag(Tag::Punching).without(Word::CODE);
            let next = if word.is_keeping() { next.keeping() } else { next };
            if self.exchange(frame, word, next) {
                return true;
            }
        }
    }

    /// Ends a punch: in the target state, or resident again if the host refused.
    pub(crate) fn punched(&self, frame: Frame, target: Option<Tag>) {
        if target.is_some() {
            self.entry(frame).accessed.store(Epoch::NEVER.0, Ordering::Relaxed);
            self.note_change(frame);
        }
        self.settle(frame, |word| word.with_tag(target.unwrap_or(Tag::Resident)));
    }

    /// Gives up a discard that did not come to the punch.
    pub(crate) fn cancel_discard(&self, frame: Frame) {
        let word = self.word(frame);
        // A lost race means that an access has just done the same.
        if word.tag() == Tag::Discarding {
            self.exchange(frame, word, word.with_tag(Tag::Resident));
        }
    }

    // ---- Facts ----

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    /// Begins the next epoch. The last one, after 2^32 - 1, never ends.
    pub(crate) fn advance_epoch(&self) -> Epoch {
        let step = |epoch: u32| epoch.checked_add(1);
        match self.epoch.fetch_update(Ordering::SeqCst, Ordering::Relaxed, step) {
            Ok(before) => Epoch(before + 1),
            Err(last) => Epoch(last),
        }
    }

    /// Records an access in the current epoch.
    #[inline]
    pub(crate) fn note_access(&self, frame: Frame, access: Access) {
        let entry = self.entry(frame);
        let now = self.epoch.load(Ordering::Relaxed);
        raise(&entry.accessed, now);
        if access == Access::Write {
            raise(&entry.written, now);
        }
    }

    /// Records that the contents changed, without an access of the guest.
    fn note_change(&self, frame: Frame) {
        raise(&self.entry(frame).written, self.epoch.load(Ordering::Relaxed));
    }

    pub(crate) fn accessed(&self, frame: Frame) -> Epoch {
        Epoch(self.entry(frame).accessed.load(Ordering::Relaxed))
    }

    pub(crate) fn written(&self, frame: Frame) -> Epoch {
        Epoch(self.entry(frame).written.load(Ordering::Relaxed))
    }

    /// Sets the code flag; false if it was set. Sequentially consistent, to pair with
    /// [`FrameTable::is_code`].
    pub(crate) fn mark_code(&self, frame: Frame) -> bool {
        let before = self.entry(frame).word.fetch_or(Word::CODE, Ordering::SeqCst);
        !Word(before).is_code()
    }

    pub(crate) fn clear_code(&self, frame: Frame) {
        self.entry(frame).word.fetch_and(!Word::CODE, Ordering::SeqCst);
    }

    pub(crate) fn is_code(&self, frame: Frame) -> bool {
        Word(self.entry(frame).word.load(Ordering::SeqCst)).is_code()
    }

    pub(crate) fn facts(&self, frame: Frame) -> Option<FrameFacts> {
        if frame.0 >= self.len() {
            return None;
        }
        let word = self.word(frame);
        Some(FrameFacts {
            state: match word.tag() {
                Tag::Untouched => FrameState::Untouched,
                Tag::Resident | Tag::Discarding | Tag::Punching => FrameState::Resident,
                Tag::Ballooned => FrameState::Ballooned,
                Tag::Absent | Tag::Filling => FrameState::Absent(word.source()),
            },
            code: word.is_code(),
            pins: word.pins() as u32,
            accessed: self.accessed(frame),
            written: self.written(frame),
        })
    }

    pub(crate) fn counts(&self) -> FrameCounts {
        let count = |tag| self.counts[slot(tag)].load(Ordering::Relaxed);
        FrameCounts {
            untouched: count(Tag::Untouched),
            resident: count(Tag::Resident),
            ballooned: count(Tag::Ballooned),
            absent: count(Tag::Absent),
        }
    }

    // ---- Words ----

    /// Moves an entry from `old` to `new` unless it changed, and keeps the counts.
    fn exchange(&self, frame: Frame, old: Word, new: Word) -> bool {
        let (word, key) = (&self.entry(frame).word, self.key(frame));
        let done = word
            .compare_exchange(old.0 ^ key, new.0 ^ key, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if done {
            self.recount(old.tag(), new.tag());
        }
        done
    }

    fn recount(&self, old: Tag, new: Tag) {
        let (old, new) = (slot(old), slot(new));
        if old != new {
            self.counts[old].fetch_sub(1, Ordering::Relaxed);
            self.counts[new].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends a busy state and wakes those who wait for it.
    fn settle(&self, frame: Frame, change: impl Fn(Word) -> Word) {
        loop {
            let word = self.word(frame);
            debug_assert!(word.is_busy(), "frame {frame} settles from {:?}", word.tag());
            if self.exchange(frame, word, change(word).without(Word::WAITED)) {
                if word.is_waited() {
                    let stripe = self.stripe(frame);
                    drop(stripe.lock.lock().unwrap_or_else(PoisonError::into_inner));
                    stripe.settled.notify_all();
                }
                return;
            }
        }
    }

    /// Returns when `frame` is no longer busy with what it was busy with.
    ///
    /// The flag is set under the lock and cleared before the lock is taken to notify, so the
    /// notification cannot fall between the flag and the wait.
    fn wait(&self, frame: Frame) {
        let stripe = self.stripe(frame);
        let mut held = stripe.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let word = self.word(frame);
            if !word.is_busy() {
                return;
            }
            if self.exchange(frame, word, Word(word.0 | Word::WAITED)) {
                held = stripe.settled.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn stripe(&self, frame: Frame) -> &Stripe {
        &self.stripes[frame.index() % STRIPES]
    }
}

/// Raises `fact` to `now`. A plain load in all but the first access of an epoch; never lowers it,
/// even when a slow thread comes with the epoch before.
#[inline]
fn raise(fact: &AtomicU32, now: u32) {
    if fact.load(Ordering::Relaxed) < now {
        fact.fetch_max(now, Ordering::Relaxed);
    }
}

/// Iteration over facts, in frame order.
impl FrameTable {
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> + use<> {
        (0..self.len()).map(Frame)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
