//! Which block each frame holds, as steps go by.

use super::facts::{Extent, Facts};
use super::steps::{FilePage, Slot, Step, What, Why};
use super::{Block, Kind, Owner, Truth};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    owner: Owner,
    block: Option<Block>,
}

/// All frames whose content is known, and what became of them.
pub(super) struct Residents<'a> {
    facts: &'a Facts,
    frames: HashMap<u64, Held>,
    pub(super) events: Vec<Truth>,
    /// Steps that cannot be: into a frame that held something else, or out of one.
    pub(super) contradictions: u64,
    /// Pages of what lies on no disk.
    pub(super) elsewhere: u64,
    /// What a file system keeps outside the page cache.
    pub(super) outside: HashSet<Block>,
}

impl<'a> Residents<'a> {
    pub(super) fn new(facts: &'a Facts) -> Self {
        Self {
            facts,
            frames: HashMap::new(),
            events: Vec::new(),
            contradictions: 0,
            elsewhere: 0,
            outside: HashSet::new(),
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        let tsc = step.tsc;
        match step.what {
            What::Add { frame, page, count } => {
                for at in 0..count {
                    let held = self.file_page(FilePage { page: page.page + at, ..page }, tsc);
                    self.add(tsc, frame + at, held);
                }
            }
            What::Remove { frame, page, count, why } => {
                for at in 0..count {
                    let held = self.file_page(FilePage { page: page.page + at, ..page }, tsc);
                    self.remove(tsc, frame + at, held, why);
                }
            }
            What::SwapAdd { frame, slot } => self.add(tsc, frame, self.slot(slot)),
            What::SwapRemove { frame, slot, why } => {
                self.remove(tsc, frame, self.slot(slot), why);
            }
            What::Move { from, to } => self.go(tsc, from, to),
            What::Outside { device, block, count } => {
                if let Some(&disk) = self.facts.disks.get(&device) {
                    self.outside.extend((block..block + count).map(|block| Block { disk, block }));
                }
            }
        }
    }

    fn add(&mut self, tsc: u64, frame: u64, held: Option<Held>) {
        let Some(held) = held else {
            self.elsewhere += 1;
            return;
        };
        self.contradictions += u64::from(self.frames.insert(frame, held).is_some());
        self.tell(tsc, Kind::Insert, frame, held);
    }

    /// `now` is what the event says, by the extents of its time.
    fn remove(&mut self, tsc: u64, frame: u64, now: Option<Held>, why: Why) {
        let before = self.frames.remove(&frame);
        let Some(now) = now else {
            self.elsewhere += 1;
            self.contradictions += u64::from(before.is_some());
            return;
        };
        // A file may have lost its blocks since then, and another have its number.
        let held = match before {
            Some(before) if before.owner == now.owner => before,
            Some(_) => {
                self.contradictions += 1;
                now
            }
            None => now,
        };
        let kind = match (why, held.owner) {
            // The pages of a disk go that way when nobody has it open.
            (Why::Truncated, Owner::Metadata) => Kind::Evict,
            (Why::Truncated, _) => Kind::Drop,
            (Why::Reclaimed | Why::Invalidated, _) => Kind::Evict,
        };
        self.tell(tsc, kind, frame, held);
    }

    /// Of frames whose content is not known it is not known either whether they are of any file.
    fn go(&mut self, tsc: u64, from: u64, to: u64) {
        if let Some(held) = self.frames.remove(&from) {
            self.contradictions += u64::from(self.frames.insert(to, held).is_some());
            self.tell(tsc, Kind::Move { to }, from, held);
        }
    }

    fn tell(&mut self, tsc: u64, kind: Kind, frame: u64, held: Held) {
        self.events.push(Truth { tsc, kind, frame, owner: held.owner, block: held.block });
    }

    /// None if it is of no disk.
    fn file_page(&self, page: FilePage, tsc: u64) -> Option<Held> {
        // A disk's own pages are a file's whose number is that of the device.
        if let (0, Some(&disk)) = (page.device >> 20, self.facts.disks.get(&page.inode)) {
            let block = Some(Block { disk, block: page.page });
            return Some(Held { owner: Owner::Metadata, block });
        }
        let disk = *self.facts.disks.get(&page.device)?;
        let extents = self.facts.extents.get(&(page.device, page.inode));
        let block = extents.and_then(|extents| block_of(extents, page.page, tsc));
        let owner = Owner::File { disk, inode: page.inode, page: page.page };
        Some(Held { owner, block: block.map(|block| Block { disk, block }) })
    }

    fn slot(&self, slot: Slot) -> Option<Held> {
        let disk = *self.facts.disks.get(self.facts.swaps.get(&slot.area)?)?;
        Some(Held { owner: Owner::Swap, block: Some(Block { disk, block: slot.page }) })
    }
}

/// As it was told next after that time; if it was not told any more, as it was told last.
fn block_of(extents: &[Extent], page: u64, tsc: u64) -> Option<u64> {
    let here = extents.iter().filter(|e| e.first <= page && page - e.first < e.count);
    let best = here.min_by_key(|e| {
        if e.tsc >= tsc { (0, e.tsc, Reverse(0)) } else { (1, 0, Reverse(e.tsc)) }
    })?;
    Some(best.block + (page - best.first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 254 << 20 | 16;
    const FACTS: &str = "disk vdb 266338320\ndisk vdd 266338352\nswap 0 266338352\n\
        extent 266338320 12 50 0 1000 4\nextent 266338320 12 90 0 2000 4\n";

    fn told(steps: &[(u64, What)]) -> (Vec<Truth>, u64, u64) {
        let facts = Facts::parse(FACTS).unwrap();
        let mut residents = Residents::new(&facts);
        for &(tsc, what) in steps {
            residents.step(Step { tsc, what });
        }
        (residents.events, residents.contradictions, residents.elsewhere)
    }

    fn page(inode: u64, page: u64) -> FilePage {
        FilePage { device: DISK, inode, page }
    }

    #[test]
    fn a_file_that_took_anothers_number_has_its_own_blocks() {
        let add = What::Add { frame: 7, page: page(12, 1), count: 1 };
        let remove = What::Remove { frame: 7, page: page(12, 1), count: 1, why: Why::Truncated };
        let (events, contradictions, _) = told(&[(10, add), (55, remove), (60, add), (99, remove)]);
        let seen: Vec<_> = events.iter().map(|e| (e.kind, e.block.unwrap().block)).collect();
        let expected =
            [(Kind::Insert, 1001), (Kind::Drop, 1001), (Kind::Insert, 2001), (Kind::Drop, 2001)];
        assert_eq!((seen.as_slice(), contradictions), (expected.as_slice(), 0));
    }

    #[test]
    fn blocks_are_where_the_extents_of_the_time_say() {
        let extents = Facts::parse(FACTS).unwrap().extents.remove(&(DISK, 12)).unwrap();
        assert_eq!(
            [20, 50, 51, 90, 91].map(|tsc| block_of(&extents, 3, tsc).unwrap()),
            [1003, 1003, 2003, 2003, 2003]
        );
        assert_eq!(block_of(&extents, 4, 20), None);
    }

    #[test]
    fn each_page_of_a_folio_is_told() {
        let remove = What::Remove { frame: 64, page: page(12, 2), count: 2, why: Why::Reclaimed };
        let (events, ..) = told(&[(10, remove)]);
        let seen: Vec<_> =
            events.iter().map(|e| (e.kind, e.frame, e.block.unwrap().block)).collect();
        assert_eq!(seen, [(Kind::Evict, 64, 1002), (Kind::Evict, 65, 1003)]);
    }

    #[test]
    fn a_disks_own_pages_are_blocks_and_are_never_dropped() {
        let own = FilePage { device: 5, inode: DISK, page: 33 };
        let remove = What::Remove { frame: 1, page: own, count: 1, why: Why::Truncated };
        let (events, ..) = told(&[(1, remove)]);
        let block = Some(Block { disk: 1, block: 33 });
        assert_eq!(
            events,
            [Truth { tsc: 1, kind: Kind::Evict, frame: 1, owner: Owner::Metadata, block }]
        );
    }

    #[test]
    fn what_moves_leaves_from_where_it_went() {
        let slot = Slot { area: 0, page: 9 };
        let steps = [
            (1, What::SwapAdd { frame: 4, slot }),
            (2, What::Move { from: 4, to: 5 }),
            (3, What::SwapRemove { frame: 5, slot, why: Why::Reclaimed }),
            (4, What::Move { from: 4, to: 8 }),
        ];
        let (events, contradictions, _) = told(&steps);
        let seen: Vec<_> = events.iter().map(|e| (e.kind, e.frame)).collect();
        assert_eq!(seen, [(Kind::Insert, 4), (Kind::Move { to: 5 }, 4), (Kind::Evict, 5)]);
        assert_eq!((contradictions, events[0].block), (0, Some(Block { disk: 3, block: 9 })));
    }

    #[test]
    fn what_is_outside_the_cache_is_known_by_its_blocks() {
        let facts = Facts::parse(FACTS).unwrap();
        let mut residents = Residents::new(&facts);
        for device in [DISK, 77] {
            residents.step(Step { tsc: 1, what: What::Outside { device, block: 5, count: 2 } });
        }
        let blocks = [5, 6].map(|block| Block { disk: 1, block });
        assert_eq!((residents.outside, residents.events.len()), (blocks.into(), 0));
    }

    #[test]
    fn what_cannot_be_is_counted() {
        let add = |inode| What::Add { frame: 7, page: page(inode, 0), count: 1 };
        let remove = What::Remove { frame: 7, page: page(13, 0), count: 1, why: Why::Reclaimed };
        let other = FilePage { device: 3, inode: 12, page: 0 };
        let elsewhere = What::Add { frame: 9, page: other, count: 1 };
        let (events, contradictions, outside) =
            told(&[(1, add(12)), (2, add(12)), (3, remove), (4, elsewhere)]);
        assert_eq!((events.len(), contradictions, outside), (3, 2, 1));
        assert_eq!(events[2].block, None);
    }
}
