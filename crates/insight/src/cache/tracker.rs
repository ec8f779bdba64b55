//! The rules.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use memory::{DiskBlock, Event, FRAME_SIZE, Frame, ReadView, Stamped};
use serde::Serialize;

use super::blocks::Blocks;
use super::copies::{Copies, Copy};
use super::journal::{JBD2, Journals};
use super::leaving::Leaving;
use super::released::Released;
use super::suspects::{Look, Suspects};
use super::volume::{self, Volumes};
use crate::kernel::PageUser;

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheChange {
    /// It is in memory now.
    Insert,
    /// It no longer is, and may be wanted again.
    Evict,
    /// It no longer is, and nobody wants it: the guest discarded it.
    Drop,
    /// It is in another frame now, which is the one told.
    Move,
}

/// A block that came into the guest's memory, left it, or is somewhere else in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheEvent {
    /// When it showed.
    pub at: Duration,
    /// Which way.
    pub change: CacheChange,
    /// Where.
    pub frame: Frame,
    /// What.
    pub block: DiskBlock,
}

/// How often, from the beginning on, and how many blocks are there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// Blocks that came.
    pub inserted: u64,
    /// Blocks that left and may be wanted again.
    pub evicted: u64,
    /// Blocks that left for good.
    pub dropped: u64,
    /// Blocks whose frame still has them, as far as can be seen.
    pub cached: u32,
}

/// What has happened to a frame since it was last like its block.
mod since {
    /// The kernel has changed it.
    pub(super) const CHANGED: u8 = 1;
    /// A user has changed it in its mapping of a file.
    pub(super) const SHARED: u8 = 2;
    /// It was a program's memory when a disk last had to do with it.
    pub(super) const PAST_CACHE: u8 = 4;
    /// It is one of the frames that a disk last had to do with.
    pub(super) const RECENT: u8 = 8;
    /// It has been one of those since it had another block.
    pub(super) const BUFFER: u8 = 16;
    /// It has been seen in a list of free frames.
    pub(super) const FREE: u8 = 32;
    /// What becomes of the block depends on these.
    pub(super) const USED: u8 = CHANGED | SHARED | PAST_CACHE;
    /// What lasts when a frame is like its block again.
    pub(super) const LASTING: u8 = RECENT | BUFFER;
}

/// So many transfers are recent, at most, and such a part of all frames. No cache gives up what has come as lately,
/// unless it is told to.
const RECENT: usize = 512;
const RECENT_PART: usize = 64;

/// What a guest frees at once costs so many looks for each frame, at most.
const LOOKS_PER_FRAME: u64 = 4;

/// What frames hold, for looking only.
pub trait Contents: Debug + Send {
    /// What `frame` holds now, if that can be told.
    fn of(&self, frame: Frame) -> Option<[u8; FRAME_SIZE]>;

    /// Part of that, from byte `at` on; false if it cannot be told.
    fn part(&self, frame: Frame, at: usize, into: &mut [u8]) -> bool {
        let all = self.of(frame);
        let part = all.as_ref().and_then(|all| all.get(at..at.checked_add(into.len())?));
        part.map(|part| into.copy_from_slice(part)).is_some()
    }
}

impl Contents for ReadView {
    fn of(&self, frame: Frame) -> Option<[u8; FRAME_SIZE]> {
        let mut bytes = [0; FRAME_SIZE];
        self.read(self.layout().gpa_of(frame)?, &mut bytes).ok()?;
        Some(bytes)
    }

    fn part(&self, frame: Frame, at: usize, into: &mut [u8]) -> bool {
        let inside = at.checked_add(into.len()).is_some_and(|end| end <= FRAME_SIZE);
        let gpa = self.layout().gpa_of(frame).filter(|_| inside);
        gpa.is_some_and(|gpa| self.read(memory::Gpa(gpa.0 + at as u64), into).is_ok())
    }
}

/// Follows the guest's page cache. See the module.
#[derive(Debug)]
pub struct CacheTracker {
    contents: Box<dyn Contents>,
    blocks: Blocks,
    copies: Copies,
    journals: Journals,
    volumes: Volumes,
    /// By frame: of [`since`].
    since: Box<[u8]>,
    /// By frame: who had it when it was like its block, by the kernel's word; 0 where that is not known.
    users: Box<[u16]>,
    /// Frames of the latest transfers.
    recent: VecDeque<Frame>,
    suspects: Suspects,
    released: Released,
    leaving: Leaving,
    /// Of the latest event.
    now: Duration,
    counts: CacheCounts,
    events: Vec<CacheEvent>,
    /// Frames of which more should be told.
    watch: Vec<Frame>,
}

impl CacheTracker {
    /// Of a guest with so many frames, about whose cache nothing is known yet.
    #[must_use]
    pub fn new(frames: u32, contents: Box<dyn Contents>) -> Self {
        Self {
            contents,
            volumes: Volumes::default(),
            blocks: Blocks::new(frames),
            copies: Copies::new(frames as usize),
            journals: Journals::default(),
            since: vec![0; frames as usize].into(),
            users: vec![0; frames as usize].into(),
            recent: VecDeque::new(),
            suspects: Suspects::default(),
            released: Released::default(),
            leaving: Leaving::default(),
            now: Duration::ZERO,
            counts: CacheCounts::default(),
            events: Vec::new(),
            watch: Vec::new(),
        }
    }

    /// Before anything happens: what a disk has in `block` ([`super::beginnings`]). What the guest writes there is learnt later.
    pub fn look(&mut self, block: DiskBlock, bytes: &[u8; FRAME_SIZE]) {
        self.volumes.look(block, bytes);
    }

    /// Takes in what happened next. Frames that there are not are nobody's.
    pub fn tell(&mut self, Stamped { at, event }: Stamped) {
        self.now = self.now.max(at);
        match event {
            Event::Read { frame, from, changed } => {
                if changed {
                    self.change(frame, false);
                }
                self.read(at, frame, from);
            }
            Event::Written { frame, to, starts } => self.written(at, frame, to, starts),
            Event::Overwritten { frame } | Event::PageTable { frame } | Event::Freed { frame } => {
                self.take(at, frame);
                self.go(at, frame, CacheChange::Evict);
            }
            Event::Copied { from, to } => self.duplicated(at, from, to),
            Event::Discarded { first, count } => self.discarded(at, first, count),
            Event::Changed { frame, user } => self.changed(at, frame, user),
            Event::Mapped { frame, writable: true } => self.mapped(at, frame),
            Event::Mapped { .. } | Event::AddressSpace { .. } | Event::Ring { .. } => {}
        }
    }

    fn changed(&mut self, at: Duration, frame: Frame, user: bool) {
        let original = self.copies.original(frame);
        if user && original.is_some_and(|original| self.is_swapped(original)) {
            self.take(at, frame);
        }
        if user && self.is_swapped(frame) {
            // The copy in the swap area is of no use any more.
            self.go(at, frame, CacheChange::Drop);
        }
        if !user && (original.is_some() || self.blocks.location(frame).is_some()) {
            self.suspects.add(at, frame);
        }
        self.change(frame, user);
    }

    fn change(&mut self, frame: Frame, user: bool) {
        if let Some(since) = self.since.get_mut(frame.index()) {
            *since = match user {
                true => *since | since::SHARED,
                false => *since & !since::PAST_CACHE | since::CHANGED,
            };
        }
    }

    /// The kernel has copied all of `from` to `to`.
    fn duplicated(&mut self, at: Duration, from: Frame, to: Frame) {
        if from == to || from.index().max(to.index()) >= self.since.len() {
            return;
        }
        // Nobody copies what is not in use.
        self.take(at, from);
        self.copies.forget(to);
        self.go(at, to, CacheChange::Evict);
        self.since[to.index()] &= since::LASTING;
        if self.blocks.location(from).is_some() {
            self.copies.add(from, to, self.since[from.index()] & since::USED);
            self.watch.extend([from, to]);
        }
    }

    /// The page that was in `from` is in its copy.
    fn relocate(&mut self, at: Duration, from: Frame) {
        let Some(Copy { frame: to, like }) = self.copies.copy(from) else { return };
        self.copies.forget(to);
        let Some(block) = self.blocks.remove(from) else { return };
        self.blocks.put(to, block);
        self.since[to.index()] |= like;
        self.note(at, CacheChange::Move, to, block);
        self.watch.push(to);
    }

    /// If `frame` is a copy, it was the page: somebody uses it, or did so until now, who is no program with a copy of
    /// its own.
    fn take(&mut self, at: Duration, frame: Frame) {
        if let Some(original) = self.copies.original(frame) {
            self.relocate(at, original);
        }
    }

    /// `frame` is written with the block that it has: whoever has a copy is not the page. So it is with what the journal
    /// copies to write it, while the block is changed.
    fn stays(&mut self, frame: Frame) {
        if let Some(copy) = self.copies.copy(frame) {
            self.copies.forget(copy.frame);
        }
    }

    fn is_swapped(&self, frame: Frame) -> bool {
        self.blocks.location(frame).is_some_and(|block| self.volumes.is_swap(block))
    }

    /// A user has it, and may write.
    fn mapped(&mut self, at: Duration, frame: Frame) {
        if let Some(original) = self.copies.original(frame) {
            // What all may change is not copied for one. Where the kernel has been since, it is new memory.
            let shared =
                self.copies.copy(original).is_some_and(|copy| copy.like & since::SHARED != 0);
            let reused = self.since[frame.index()] & since::CHANGED != 0;
            if reused {
                self.take(at, frame);
            } else if !shared && !self.is_swapped(original) {
                self.copies.forget(frame);
            }
        }
        let Some(block) = self.blocks.location(frame) else { return };
        match self.since[frame.index()] & since::USED {
            // Cleared or copied by the kernel, and then a user's own. Who writes to a file's mapping does it the other
            // way round.
            since::CHANGED => self.go(at, frame, CacheChange::Evict),
            // A file's page may be written after a first write only.
            0 if !self.volumes.is_swap(block) => {
                self.go(at, frame, CacheChange::Drop);
                self.since[frame.index()] |= since::PAST_CACHE;
            }
            _ => {}
        }
    }

    /// These are free, by the kernel's own lists, or it is `at` by now and nothing more is known. Whoever asks the lists often
    /// sees evictions before their frames are used again.
    pub fn tell_free(&mut self, at: Duration, frames: impl IntoIterator<Item = Range<u32>>) {
        self.now = self.now.max(at);
        let mut new = Vec::new();
        for frame in frames.into_iter().flatten().map(Frame) {
            let Some(block) = self.blocks.location(frame) else { continue };
            let since = &mut self.since[frame.index()];
            if self.volumes.frees_late(block) {
                // That is waited for anyway.
                self.take(at, frame);
                self.go(at, frame, CacheChange::Evict);
            } else if *since & since::FREE == 0 {
                *since |= since::FREE;
                new.push((frame, block));
            }
        }
        self.released.add(at, new);
    }

    /// Who has each frame with a block, by the kernel's word, from which that can be had from now on.
    pub fn tell_users(&mut self, user: impl Fn(Frame) -> Option<PageUser>) {
        let like = |frame: &Frame| {
            self.since[frame.index()] & since::USED == 0 && self.blocks.location(*frame).is_some()
        };
        let frames: Vec<_> = (0..self.since.len() as u32).map(Frame).filter(like).collect();
        self.learn(&frames, user);
    }

    fn learn(&mut self, frames: &[Frame], user: impl Fn(Frame) -> Option<PageUser>) {
        for frame in frames {
            let Some(known) = self.users.get_mut(frame.index()) else { continue };
            *known = match user(*frame) {
                Some(PageUser::Other(user)) => user,
                Some(PageUser::Kernel) | None => 0,
            };
        }
    }

    /// Blocks that came, left and moved since this was last asked. To be asked some hundred times a second: what the guest's
    /// kernel took for its own is looked for here, by what it holds, or by the kernel's own word: the `user` of a frame.
    pub fn take_events(&mut self, user: impl Fn(Frame) -> Option<PageUser>) -> Vec<CacheEvent> {
        let Self { blocks, copies, contents, since, users, volumes, suspects, .. } = self;
        let look = |frame: Frame| {
            // What a disk has had since is a file's.
            let changed = since.get(frame.index()).is_some_and(|of| of & since::CHANGED != 0);
            let of = copies.original(frame).unwrap_or(frame);
            let Some(block) = blocks.location(of).filter(|_| changed) else {
                return Look::Elsewhere;
            };
            match user(frame) {
                Some(PageUser::Kernel) => return Look::Told { taken: true },
                Some(PageUser::Other(now)) => {
                    let before = users[frame.index()];
                    return Look::Told { taken: before != 0 && before != now };
                }
                None => {}
            }
            let file = volumes.in_journal(block) != Some(true);
            let bytes = file.then(|| contents.of(frame)).flatten();
            bytes.map_or(Look::Elsewhere, |bytes| Look::Contents(bytes.into()))
        };
        let found = suspects.found(self.now, look);
        for frame in found {
            self.take(self.now, frame);
            self.go(self.now, frame, CacheChange::Evict);
        }
        for (frame, block) in self.released.take(self.now) {
            let free = self.since[frame.index()] & since::FREE != 0;
            if free && self.blocks.location(frame) == Some(block) {
                self.take(self.now, frame);
                self.go(self.now, frame, CacheChange::Evict);
            }
        }
        for (frame, block) in self.leaving.take(self.now) {
            self.part(self.now, frame, block);
        }
        std::mem::take(&mut self.events)
    }

    /// Frames to be watched: what becomes of them cannot be told otherwise ([`memory::GuestMemory::watch`]). `user`: of each,
    /// by the kernel's word.
    pub fn take_watch(&mut self, user: impl Fn(Frame) -> Option<PageUser>) -> Vec<Frame> {
        let watch = std::mem::take(&mut self.watch);
        self.learn(&watch, user);
        watch
    }

    /// The block that `frame` has.
    #[must_use]
    pub fn location(&self, frame: Frame) -> Option<DiskBlock> {
        self.blocks.location(frame)
    }

    /// Whether the block is in a swap area.
    #[must_use]
    pub fn is_swap(&self, block: DiskBlock) -> bool {
        self.volumes.is_swap(block)
    }

    /// Whether a disk, or a part of one, is a swap area.
    #[must_use]
    pub fn has_swap(&self) -> bool {
        self.volumes.has_swap()
    }

    /// See [`CacheCounts`].
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    fn read(&mut self, at: Duration, frame: Frame, from: DiskBlock) {
        if !self.is_buffer(frame, from) {
            self.take(at, frame);
            return self.come(at, frame, from);
        }
        // It is read as it is on the disk, and what is in the cache stays there.
        self.go(at, frame, CacheChange::Drop);
    }

    fn written(&mut self, at: Duration, frame: Frame, to: DiskBlock, starts: [u8; 4]) {
        let in_journal = self.volumes.in_journal(to);
        if starts == JBD2 && in_journal != Some(false) {
            return self.journal_written(at, frame, to);
        }
        if in_journal.unwrap_or_else(|| self.journals.contains(to)) {
            self.freed_by_log(at, to);
            if let Some(home) = self.journals.copy(frame, to) {
                self.copied(at, frame, home);
            }
            return;
        }
        if let Some(original) = self.copies.original(frame)
            && self.blocks.location(original) == Some(to)
        {
            self.relocate(at, original);
        }
        if self.blocks.location(frame) == Some(to) {
            self.stays(frame);
            self.settle(frame);
        } else if self.is_buffer(frame, to) {
            self.go(at, frame, CacheChange::Drop);
            // The kernel takes it out of its cache, if it is there.
            if let Some(other) = self.blocks.frame(to) {
                self.lose(at, other);
            }
        } else {
            if self.volumes.is_swap(to) {
                self.swapped_out(at, frame, to);
            }
            if self.volumes.frees_late(to) {
                self.replaced(at, to);
            }
            self.volumes.forget(to);
            self.come(at, frame, to);
        }
    }

    /// `block` is written from another frame than had it. Who wanted it again would have read it first; it was given up, and
    /// is another file's now.
    fn replaced(&mut self, at: Duration, block: DiskBlock) {
        if let Some(other) = self.blocks.frame(block) {
            self.go(at, other, CacheChange::Drop);
        }
        if let Some(other) = self.leaving.remove(block) {
            self.note(at, CacheChange::Drop, other, block);
        }
    }

    /// A place in a swap area is another page's only when whose it was is done with it; and a page gets another place
    /// when it has given up its own. Both give up copies that nobody wants.
    fn swapped_out(&mut self, at: Duration, frame: Frame, to: DiskBlock) {
        if let Some(other) = self.blocks.frame(to) {
            self.go(at, other, CacheChange::Drop);
        }
        if self.is_swapped(frame) {
            self.go(at, frame, CacheChange::Drop);
        }
    }

    /// Whether a frame that takes part in a transfer of `block` is a buffer of a program's, past the cache: a frame
    /// that had another block a few transfers ago. Frames of deleted files are also used again soon.
    fn is_buffer(&mut self, frame: Frame, block: DiskBlock) -> bool {
        let Some(&since) = self.since.get(frame.index()) else { return false };
        if since & since::RECENT != 0 {
            let before = self.blocks.location(frame);
            let other = before.is_some_and(|before| before != block && self.is_live(before));
            if other && !self.volumes.is_swap(block) {
                self.since[frame.index()] |= since::BUFFER;
            }
            return self.since[frame.index()] & since::BUFFER != 0;
        }
        let most = RECENT.min(self.since.len() / RECENT_PART);
        if most == 0 {
            return false;
        }
        if self.recent.len() >= most
            && let Some(old) = self.recent.pop_front()
        {
            self.since[old.index()] &= !since::LASTING;
        }
        self.recent.push_back(frame);
        self.since[frame.index()] |= since::RECENT;
        false
    }

    /// `to`, in a log, is written. What became free before that is not given to others until then.
    fn freed_by_log(&mut self, at: Duration, to: DiskBlock) {
        let freed = self.volumes.freed_by_log(at, to, reader(&self.blocks, &*self.contents));
        let frames = self.since.len() as u64;
        let mut left = LOOKS_PER_FRAME * frames;
        for (first, count) in freed {
            // One that is longer takes a look at each frame.
            let cost = count.min(frames);
            if let Some(rest) = left.checked_sub(cost) {
                left = rest;
                self.discarded(at, first, count);
            }
        }
    }

    /// A block of the journal's own.
    fn journal_written(&mut self, at: Duration, frame: Frame, to: DiskBlock) {
        self.journals.learn(to);
        if self.blocks.location(frame) == Some(to) {
            self.settle(frame);
        } else {
            self.come(at, frame, to);
        }
        let Some(bytes) = self.contents.of(frame) else { return };
        let read = reader(&self.blocks, &*self.contents);
        let tags = self.volumes.tags(to, &bytes, read);
        for (frame, home) in self.journals.expect(&tags) {
            self.copied(at, frame, home);
        }
    }

    /// `frame` was written to a journal, on its way to `home`.
    fn copied(&mut self, at: Duration, frame: Frame, home: DiskBlock) {
        if self.blocks.location(frame) == Some(home) {
            self.stays(frame);
        } else {
            if self.blocks.frame(home).is_none() {
                self.come(at, frame, home);
            } else {
                // A copy of the journal's own, for the block is being changed.
                self.go(at, frame, CacheChange::Evict);
            }
        }
        let freed = self.volumes.freed(home, reader(&self.blocks, &*self.contents));
        for block in freed {
            if let Some(frame) = self.blocks.frame(block) {
                self.go(at, frame, CacheChange::Drop);
            }
        }
    }

    /// `frame` has the contents of `block` from now on.
    fn come(&mut self, at: Duration, frame: Frame, block: DiskBlock) {
        self.copies.forget(frame);
        self.go(at, frame, CacheChange::Evict);
        if !self.blocks.can_have(frame, block) {
            return;
        }
        if self.since[frame.index()] & since::PAST_CACHE != 0 {
            return;
        }
        if let Some(other) = self.blocks.frame(block) {
            self.lose(at, other);
        }
        if let Some(before) = self.leaving.remove(block) {
            self.part(at, before, block);
        }
        self.blocks.put(frame, block);
        self.counts.cached += 1;
        self.note(at, CacheChange::Insert, frame, block);
        self.settle(frame);
        if self.volumes.wants(block) {
            let mut starts = [0; 4];
            if self.contents.part(frame, 0, &mut starts) {
                self.volumes.learn(block, starts);
            }
        }
        // What was read there may be gone from the frame by now; what is known changes by writing only.
        if self.volumes.begins_at(block)
            && !self.volumes.knows(block)
            && let Some(first) = self.contents.of(frame)
        {
            self.volumes.look(block, &first);
        }
    }

    /// Whether the guest may want the block again.
    fn is_live(&self, block: DiskBlock) -> bool {
        let read = reader(&self.blocks, &*self.contents);
        self.volumes.is_used(block, read).unwrap_or(true)
    }

    /// Frame and block are alike.
    fn settle(&mut self, frame: Frame) {
        if let Some(since) = self.since.get_mut(frame.index()) {
            *since &= since::LASTING;
            self.watch.push(frame);
        }
    }

    /// `frame` no longer has its block, if it had one. Its copy has, if nobody has given the block up.
    fn go(&mut self, at: Duration, frame: Frame, why: CacheChange) {
        match self.copies.copy(frame) {
            Some(_) if why == CacheChange::Evict => self.relocate(at, frame),
            copy => {
                copy.into_iter().for_each(|copy| self.copies.forget(copy.frame));
                self.leave(at, frame, why);
            }
        }
    }

    /// The block of `frame` was evicted, from there or from a copy: whoever has one still has moved there.
    fn lose(&mut self, at: Duration, frame: Frame) {
        let last = self.copies.copy(frame).map_or(frame, |copy| copy.frame);
        self.relocate(at, frame);
        self.leave(at, last, CacheChange::Evict);
    }

    fn leave(&mut self, at: Duration, frame: Frame, why: CacheChange) {
        let Some(block) = self.blocks.remove(frame) else { return };
        self.counts.cached -= 1;
        match why {
            CacheChange::Evict if self.volumes.frees_late(block) => {
                self.leaving.add(self.now, frame, block);
            }
            CacheChange::Evict => self.part(at, frame, block),
            _ => self.note(at, why, frame, block),
        }
    }

    /// `block` has left, and the guest may want it again if it is in use.
    fn part(&mut self, at: Duration, frame: Frame, block: DiskBlock) {
        let live = self.is_live(block);
        self.note(at, if live { CacheChange::Evict } else { CacheChange::Drop }, frame, block);
    }

    fn discarded(&mut self, at: Duration, first: DiskBlock, count: u64) {
        for block in self.leaving.inside(first, count) {
            if let Some(frame) = self.leaving.remove(block) {
                self.note(at, CacheChange::Drop, frame, block);
            }
        }
        let frames = self.since.len() as u64;
        if count <= frames {
            for block in first.block..first.block.saturating_add(count) {
                if let Some(frame) = self.blocks.frame(DiskBlock { block, ..first }) {
                    self.go(at, frame, CacheChange::Drop);
                }
            }
            return;
        }
        // More blocks than frames.
        for frame in (0..frames as u32).map(Frame) {
            let inside = |block: DiskBlock| {
                block.disk == first.disk && block.block.wrapping_sub(first.block) < count
            };
            if self.blocks.location(frame).is_some_and(inside) {
                self.go(at, frame, CacheChange::Drop);
            }
        }
    }

    fn note(&mut self, at: Duration, change: CacheChange, frame: Frame, block: DiskBlock) {
        match change {
            CacheChange::Insert => self.counts.inserted += 1,
            CacheChange::Evict => self.counts.evicted += 1,
            CacheChange::Drop => self.counts.dropped += 1,
            CacheChange::Move => {}
        }
        self.events.push(CacheEvent { at, change, frame, block });
    }
}

/// Reads what is cached of a disk.
fn reader(blocks: &Blocks, contents: &dyn Contents) -> impl volume::Read {
    |block, at, into: &mut [u8]| {
        blocks.frame(block).is_some_and(|frame| contents.part(frame, at, into))
    }
}
