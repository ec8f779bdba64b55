//! Events and looks put together.

use std::sync::Arc;

use memory::{
    Epoch, Event, FRAME_SIZE, Frame, FrameFacts, FrameState, GuestMemory, ReadView, Stamped,
};

use super::fingerprints::{Fingerprint, Fingerprints};
use super::free_lists::FreeLists;
use super::marks::{
    MAPPED, Marks, RING, SETTLED, SHARED, TABLE, TEXT, USERS, VACATED, WRITABLE, ZERO,
};
use super::search::Search;
use super::spaces::{ProcessSeen, Spaces};
use super::summary::{ClassSummary, ClassUse};
use super::walker::Walker;
use super::{Evidence, FrameClass};
use crate::CacheTracker;

/// Page tables read by one sweep: about 10 ms.
const TABLES: u32 = 8192;
/// Frames visited by one sweep. Each must be visited within 256 epochs, so 16 GiB take a quarter of that.
const VISITS: u32 = 1 << 18;
/// Frames looked into by one sweep: 8 MiB.
const LOOKS: u32 = 2048;
/// Frames that nothing wrote to for so many epochs are looked into.
const STABLE_EPOCHS: u32 = 2;

/// Says what each frame is for. See the module.
#[derive(Debug)]
pub struct Classifier {
    memory: Arc<GuestMemory>,
    view: ReadView,
    marks: Marks,
    spaces: Spaces,
    walker: Walker,
    prints: Fingerprints,
    /// Where not each root is told.
    search: Option<Search>,
    free: FreeLists,
    /// Roots to be told again.
    told: Vec<Frame>,
    /// Where the next sweep begins to visit.
    visit: u32,
    /// Where it begins to look.
    look: u32,
}

impl Classifier {
    /// Of a guest of which nothing is known yet. Somebody must listen to the events of `memory` and pass them on.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let view = ReadView::new(Arc::clone(&memory));
        Self {
            marks: Marks::new(memory.layout().frames()),
            walker: Walker::new(view.clone()),
            spaces: Spaces::default(),
            prints: Fingerprints::default(),
            search: None,
            free: FreeLists::new(view.clone()),
            told: Vec::new(),
            visit: 0,
            look: 0,
            view,
            memory,
        }
    }

    /// The same, where not every root is told as it is loaded: others are searched for in memory.
    #[must_use]
    pub fn searching(memory: Arc<GuestMemory>) -> Self {
        Self { search: Some(Search::new()), ..Self::new(memory) }
    }

    /// Takes in what happened next, before the [`CacheTracker`] does.
    pub fn tell(&mut self, stamped: &Stamped) {
        match stamped.event {
            Event::AddressSpace { root, .. } => {
                self.spaces.loaded(root, stamped.at);
                if self.told.last() != Some(&root) {
                    self.told.push(root);
                }
            }
            Event::Ring { frame } => self.marks.change(frame, |_| RING),
            // Whatever it was before.
            Event::Read { frame, .. } | Event::Freed { frame } => {
                self.marks.change(frame, |_| 0);
            }
            Event::Written { frame, .. } => self.marks.change(frame, |mark| mark & USERS),
            Event::PageTable { .. }
            | Event::Overwritten { .. }
            | Event::Discarded { .. }
            | Event::Changed { .. }
            | Event::Copied { .. }
            | Event::Mapped { .. } => {}
        }
    }

    /// Whether page tables are known, and all that were at some time have been looked at.
    #[must_use]
    pub fn has_walked(&self) -> bool {
        self.walker.complete().is_some() && self.walker.kernel().is_some()
    }

    /// At the end of each epoch: goes on with what it does a piece at a time.
    pub fn sweep(&mut self, cache: &CacheTracker) {
        let now = self.memory.epoch();
        if let Some(events) = self.memory.events() {
            self.told.drain(..).for_each(|root| events.forget_root(root));
        }
        self.search();
        self.walker.walk(&mut self.spaces, &mut self.marks, now, TABLES);
        self.visit(now);
        self.look(cache, now);
        self.free.ask(self.walker.kernel(), now);
    }

    /// What `frame` is for, and why.
    #[must_use]
    pub fn class(&self, frame: Frame, cache: &CacheTracker) -> (FrameClass, Evidence) {
        match self.memory.facts(frame) {
            Some(facts) => self.class_by(frame, &facts, cache),
            None => (FrameClass::Untouched, Evidence::Host),
        }
    }

    /// The same without the kernel's word.
    #[must_use]
    pub fn inferred(&self, frame: Frame, cache: &CacheTracker) -> (FrameClass, Evidence) {
        match self.memory.facts(frame) {
            Some(facts) => self.inferred_by(frame, &facts, cache),
            None => (FrameClass::Untouched, Evidence::Host),
        }
    }

    fn class_by(
        &self,
        frame: Frame,
        facts: &FrameFacts,
        cache: &CacheTracker,
    ) -> (FrameClass, Evidence) {
        if facts.state == FrameState::Resident && self.free.has(frame, facts) {
            return (FrameClass::Free, Evidence::Listed);
        }
        self.inferred_by(frame, facts, cache)
    }

    fn inferred_by(
        &self,
        frame: Frame,
        facts: &FrameFacts,
        cache: &CacheTracker,
    ) -> (FrameClass, Evidence) {
        if let Some(class) = FrameClass::by_state(facts) {
            let given_back = matches!(class, FrameClass::Ballooned | FrameClass::Free);
            return (class, if given_back { Evidence::Reported } else { Evidence::Host });
        }
        let mark = self.marks.of(frame);
        if Marks::is_ring(mark) {
            return (FrameClass::DmaRing, Evidence::Device);
        }
        if mark & TABLE != 0 {
            return (FrameClass::PageTable, Evidence::Walked);
        }
        match cache.location(frame) {
            Some(block) if cache.is_swap(block) => {
                return (FrameClass::Anonymous, Evidence::Swapped);
            }
            Some(_) => return (FrameClass::FileCache, Evidence::Located),
            None => {}
        }
        if mark & MAPPED != 0 {
            let many = mark & SHARED != 0;
            let evidence = if many { Evidence::MappedByMany } else { Evidence::Mapped };
            return (FrameClass::Anonymous, evidence);
        }
        let now = self.memory.epoch();
        let owners = self.memory.events().map(|events| events.owners(frame)).unwrap_or_default();
        let unused = facts.accessed <= self.marks.date(frame, now) && !owners.kernel_wrote();
        if mark & VACATED != 0 && unused {
            return (FrameClass::Anonymous, Evidence::Vacated);
        }
        if owners.is_users() {
            return (FrameClass::Anonymous, Evidence::Used);
        }
        if Marks::is_text(mark) {
            return (FrameClass::KernelText, Evidence::Executable);
        }
        if Marks::is_zero(mark) && facts.written < self.marks.date(frame, now) {
            return (FrameClass::Zero, Evidence::Contents);
        }
        (
            FrameClass::Kernel,
            if owners.kernel_wrote() { Evidence::KernelWrote } else { Evidence::Rest },
        )
    }

    /// Programs as their address spaces show them, by the number of the root.
    pub fn processes(&self) -> impl Iterator<Item = ProcessSeen> + '_ {
        self.spaces.iter().filter_map(|(root, first, last, frames, tables)| {
            let root = self.memory.gpa_of(root)?.0;
            Some(ProcessSeen { root, first, last, frames, tables })
        })
    }

    /// Contents of frames that nothing has written to for a while: a sample, with the first frame that has each and how
    /// many have it. What is found again in another guest's can be shared between them.
    pub fn fingerprints(&self) -> impl Iterator<Item = (Fingerprint, Frame, u32)> + '_ {
        self.prints.iter()
    }

    /// Frames that could be had again inside the VM by keeping equal ones once, an estimate: so many of a class for each
    /// of the contents that several have. It costs by the fingerprints, not by the frames.
    pub fn shareable<'a>(
        &'a self,
        cache: &'a CacheTracker,
    ) -> impl Iterator<Item = (FrameClass, u64)> + 'a {
        let each = self.prints.each_stands_for();
        let several = self.prints.iter().filter(|&(_, _, count)| count > 1);
        several
            .map(move |(_, frame, count)| (self.class(frame, cache).0, u64::from(count - 1) * each))
    }

    /// All frames, by class. One pass over the frame table.
    #[must_use]
    pub fn summary(&self, cache: &CacheTracker) -> ClassSummary {
        let mut classes: Vec<_> = FrameClass::ALL.into_iter().map(ClassUse::new).collect();
        for frame in (0..self.marks.len()).map(Frame) {
            let Some(facts) = self.memory.facts(frame) else { continue };
            let (class, evidence) = self.class_by(frame, &facts, cache);
            let of_class = &mut classes[class as usize];
            of_class.frames += 1;
            of_class.vacated += u64::from(evidence == Evidence::Vacated);
            of_class.resident += u64::from(facts.state == FrameState::Resident);
        }
        for (class, frames) in self.shareable(cache) {
            classes[class as usize].shareable += frames;
        }
        let (looked_into, zeros) = self.prints.looked();
        let (processes_created, processes_gone) = self.spaces.created_and_gone();
        let processes = self.spaces.iter().count() as u64;
        ClassSummary { classes, looked_into, zeros, processes, processes_created, processes_gone }
    }

    fn search(&mut self) {
        let (Some(search), Some(kernel)) = (&mut self.search, self.walker.kernel()) else { return };
        search.go_on(&self.memory, &self.view, &self.marks, &mut self.spaces, kernel);
    }

    /// Takes back marks that are no longer true, of so many frames.
    fn visit(&mut self, now: Epoch) {
        let Some(complete) = self.walker.complete() else { return };
        let frames = self.marks.len();
        for _ in 0..VISITS.min(frames) {
            let frame = Frame(self.visit);
            self.visit = (self.visit + 1) % frames;
            let mark = self.marks.of(frame);
            if mark == 0 || Marks::is_ring(mark) {
                continue;
            }
            let date = self.marks.date(frame, now);
            let stale = date < complete;
            if mark & (MAPPED | SETTLED) == MAPPED && !stale {
                self.forget_kernel(frame);
            } else if mark & MAPPED != 0 && stale {
                let vacated = self.is_vacated(frame, mark);
                self.marks.set(frame, if vacated { VACATED } else { 0 }, now);
            } else if mark & (TABLE | TEXT) != 0 && !Marks::is_zero(mark) && stale {
                self.marks.set(frame, mark & !(TABLE | TEXT), now);
            } else if mark & VACATED != 0 {
                self.visit_vacated(frame, date, now);
            }
        }
    }

    /// A program's memory that no table leads to any more: whether the program was the last that used it.
    fn is_vacated(&self, frame: Frame, mark: u8) -> bool {
        let owners = self.memory.events().map(|events| events.owners(frame));
        mark & (SETTLED | WRITABLE | SHARED) == SETTLED | WRITABLE
            && owners.is_none_or(|owners| owners.user_wrote() && !owners.kernel_wrote())
    }

    fn visit_vacated(&mut self, frame: Frame, date: Epoch, now: Epoch) {
        let accessed = self.memory.facts(frame).map(|facts| facts.accessed);
        if accessed.is_some_and(|accessed| accessed <= date) {
            // A younger date says the same of a frame that was not accessed, and lasts.
            let yesterday = Epoch(now.0.saturating_sub(1)).max(date);
            self.marks.set(frame, VACATED, yesterday);
        } else {
            self.marks.set(frame, 0, now);
        }
    }

    fn forget_kernel(&self, frame: Frame) {
        if let Some(events) = self.memory.events() {
            events.forget_kernel_writes(frame);
        }
    }

    /// Looks into frames that are stable.
    fn look(&mut self, cache: &CacheTracker, now: Epoch) {
        let frames = self.marks.len();
        let mut looks = LOOKS;
        for _ in 0..VISITS.min(frames) {
            let frame = Frame(self.look);
            self.look = (self.look + 1) % frames;
            if self.look == 0 {
                self.prints.end_round();
            }
            let Some(facts) = self.memory.facts(frame) else { continue };
            let stable = facts.written.0.saturating_add(STABLE_EPOCHS) <= now.0;
            if facts.state != FrameState::Resident || !stable {
                continue;
            }
            self.look_into(frame, cache, now);
            looks -= 1;
            if looks == 0 {
                break;
            }
        }
    }

    fn look_into(&mut self, frame: Frame, cache: &CacheTracker, now: Epoch) {
        let mut bytes = [0; FRAME_SIZE];
        let read = self.memory.gpa_of(frame).map(|gpa| self.view.read(gpa, &mut bytes));
        if !matches!(read, Some(Ok(()))) {
            return;
        }
        let zeros = bytes == [0; FRAME_SIZE];
        if zeros {
            self.prints.add_zeros();
        } else {
            self.prints.add(frame, Fingerprint::of(&bytes));
        }
        let mark = self.marks.of(frame);
        let nobodys =
            mark & (USERS | TABLE | VACATED | TEXT) == 0 && cache.location(frame).is_none();
        if nobodys && (zeros || Marks::is_zero(mark)) {
            self.marks.set(frame, if zeros { ZERO } else { 0 }, now);
        }
    }
}
