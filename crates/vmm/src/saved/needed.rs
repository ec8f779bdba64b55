//! What the guest will need first when it is restored, as far as that can be seen while it is saved.
//!
//! ```text
//!   older epochs      | 1/2 of the watch | 1/4 | 1/8 | ...| stands |  trace: first touches, in their order
//!   (if watched by    |      scan: which epoch each frame |        |  (only where the guest goes on)
//!    somebody)        |      was used in last             |        |
//! ```
//! The order in which they go into the working set: what was touched after the guest went on, then what was used
//! in the last moment before, then the rest by blocks of 2 MiB, those first of which most was used; where that was
//! much, the block is taken whole. The first is what a twin of the guest does, too, so nothing tells more (memory tracing: Zhang and others, VEE 2011). A guest that uses a heap at
//! random has been seen at a part of it only when the watch is over, and needs all of it soon: Linux keeps what is of
//! one kind together by blocks of 2 MiB (pageblock_order, mm/page_alloc.c).

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use memory::{Epoch, Frame, FrameState, GuestMemory};

use crate::first_touches::{FirstTouches, pauses};

/// The last two epochs of the watch, and all there are in a short one. Ending one costs each vCPU its translations.
const SHORTEST: Duration = Duration::from_millis(25);
/// Frames of a block of memory whose use is taken together: 2 MiB.
const BLOCK: usize = 512;
/// Such a share of its frames must have been used for the rest of a block to be.
const DENSE: f64 = 0.125;
/// Of epochs that somebody else has ended before, so many still tell of the working set: they last a second or longer.
const OLDER: u32 = 10;

/// Which estimators found how many frames, each frame counted for the first that did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkingSetSources {
    /// Touched after the guest went on.
    pub traced: u32,
    /// Used before it stood.
    pub scanned: u32,
    /// Near many of these.
    pub dense: u32,
}

/// The epochs before the guest stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Scan {
    /// What was accessed in this one or later belongs to it.
    since: Epoch,
}

impl Scan {
    /// Watches the guest for so long. If `watched`, somebody ended epochs before.
    pub(crate) fn run(memory: &GuestMemory, watch: Duration, watched: bool) -> Self {
        let begun = memory.advance_epoch();
        let mut left = watch;
        while left >= 2 * SHORTEST {
            thread::sleep(left / 2);
            left -= left / 2;
            memory.advance_epoch();
        }
        thread::sleep(left);
        let older = if watched { OLDER } else { 0 };
        // The first lasted since the guest began, until somebody watched.
        Self { since: Epoch(begun.0.saturating_sub(older).max(Epoch::FIRST.0 + 1)) }
    }

    /// What was used last, and then by blocks, those of which most was used first: neighbours come together, which is
    /// twice as fast to put in.
    fn found(self, memory: &GuestMemory) -> Vec<Found> {
        memory.catch_up();
        let frames = memory.layout().frames();
        let uses: Vec<Use> = (0..frames).map(|number| self.used(memory, Frame(number))).collect();
        let hot = Epoch(memory.epoch().0.saturating_sub(1)).max(self.since);
        let is_hot = |is: &Use| matches!(is, Use::Used(last) if *last >= hot);
        let all = uses.iter().zip(0..).filter(|(is, _)| is_hot(is));
        let mut found: Vec<Found> = all.map(|(_, number)| Found::used(number)).collect();
        let mut blocks: Vec<(f64, usize)> = Vec::new();
        for (number, block) in uses.chunks(BLOCK).enumerate() {
            let used = block.iter().filter(|is| matches!(is, Use::Used(_))).count();
            let there = block.iter().filter(|is| **is != Use::Empty).count();
            blocks.push((used as f64 / there.max(1) as f64, number));
        }
        blocks.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        for (share, number) in blocks {
            let is_dense = share >= DENSE;
            let block = uses.iter().zip(0..).skip(number * BLOCK).take(BLOCK);
            found.extend(block.filter_map(|(is, number)| match is {
                Use::Used(last) if *last < hot => Some(Found::used(number)),
                Use::Idle if is_dense => Some(Found { is_used: false, ..Found::used(number) }),
                _ => None,
            }));
        }
        found
    }

    fn used(self, memory: &GuestMemory, frame: Frame) -> Use {
        match memory.facts(frame) {
            Some(facts) if !matches!(facts.state, FrameState::Resident | FrameState::Absent(_)) => {
                Use::Empty
            }
            Some(facts) if facts.accessed >= self.since => Use::Used(facts.accessed),
            Some(_) => Use::Idle,
            None => Use::Empty,
        }
    }
}

/// What is known of a frame's use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// It has no contents.
    Empty,
    Idle,
    /// In this epoch for the last time.
    Used(Epoch),
}

/// A frame that will be needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Found {
    frame: Frame,
    /// Itself, and not only others near it.
    is_used: bool,
}

impl Found {
    const fn used(number: u32) -> Self {
        Self { frame: Frame(number), is_used: true }
    }
}

/// What a guest touches for so long from now on, in which order; `wait` sleeps, and answers false when there is no more
/// to see.
pub(crate) fn trace(
    memory: &GuestMemory,
    window: Duration,
    mut wait: impl FnMut(Duration) -> bool,
) -> Vec<Frame> {
    let since = memory.advance_epoch();
    let in_use = |frame: &Frame| {
        let state = memory.facts(*frame).map(|facts| facts.state);
        matches!(state, Some(FrameState::Resident | FrameState::Absent(_)))
    };
    let frames = (0..memory.layout().frames()).map(Frame).filter(in_use);
    let mut touches = FirstTouches::of(memory, frames, since);
    let mut left = window;
    for pause in pauses() {
        let pause = pause.min(left);
        let goes_on = wait(pause);
        touches.look();
        left -= pause;
        if left.is_zero() || !goes_on {
            break;
        }
    }
    touches.seen()
}

/// All that is known before the guest stands.
#[derive(Debug, Default)]
pub(crate) struct Needed(Vec<Found>);

impl Needed {
    /// After a scan.
    pub(crate) fn of(memory: &GuestMemory, scan: Option<Scan>) -> Self {
        Self(scan.map(|scan| scan.found(memory)).unwrap_or_default())
    }

    /// In the order of the working set, each frame where it is first.
    pub(crate) fn after(&self, traced: Vec<Frame>) -> (Vec<Frame>, WorkingSetSources) {
        let mut sources = WorkingSetSources { traced: traced.len() as u32, ..Default::default() };
        let known: HashSet<Frame> = traced.iter().copied().collect();
        let mut needed = traced;
        for found in self.0.iter().filter(|found| !known.contains(&found.frame)) {
            needed.push(found.frame);
            *(if found.is_used { &mut sources.scanned } else { &mut sources.dense }) += 1;
        }
        (needed, sources)
    }
}

#[cfg(test)]
mod tests {
    use memory::{Access, FRAME_SIZE};

    use super::*;

    fn memory(frames: u64) -> GuestMemory {
        GuestMemory::with_bytes(frames * FRAME_SIZE as u64).expect("memory")
    }

    fn touch(memory: &GuestMemory, frames: impl IntoIterator<Item = u32>) {
        for frame in frames {
            memory.resolve(Frame(frame), Access::Read).expect("a page");
        }
    }

    #[test]
    fn what_was_used_last_comes_first_and_then_the_densest_block() {
        let memory = memory(4 * BLOCK as u64);
        // All of the first two blocks has something in it; little of the third.
        touch(&memory, (0..1024).chain([1100, 1101]));
        let scan = Scan::run(&memory, Duration::ZERO, false);
        touch(&memory, (0..64).chain([1100]));
        memory.advance_epoch();
        memory.advance_epoch();
        touch(&memory, [70, 600, 3]);
        let (frames, sources) = Needed::of(&memory, Some(scan)).after(vec![Frame(70)]);
        let frames: Vec<u32> = frames.iter().map(|frame| frame.0).collect();
        // Half of what is in the third block was used, an eighth of the first, and next to nothing of the second.
        assert_eq!(frames[..9], [70, 3, 600, 1100, 1101, 0, 1, 2, 4]);
        let expected = WorkingSetSources { traced: 1, scanned: 66, dense: 1 + 512 - 65 };
        assert_eq!((sources, frames.len()), (expected, 1 + 66 + 448));
        assert!(frames[5..].is_sorted(), "neighbours come together");
    }

    #[test]
    fn epochs_of_others_count_if_they_were_seen() {
        let memory = memory(2 * BLOCK as u64);
        touch(&memory, 0..2 * BLOCK as u32);
        memory.advance_epoch();
        touch(&memory, 0..BLOCK as u32);
        memory.advance_epoch();
        touch(&memory, 0..2);
        let used = |watched| {
            let scan = Scan::run(&memory, Duration::ZERO, watched);
            touch(&memory, [7]);
            scan.found(&memory).iter().filter(|found| found.is_used).count()
        };
        assert_eq!(used(false), 1);
        assert_eq!(used(true), BLOCK, "within ten epochs");
        for _ in 0..OLDER {
            memory.advance_epoch();
        }
        assert_eq!(used(true), 1);
    }

    #[test]
    fn a_trace_ends_with_its_window_or_with_its_guest() {
        let memory = memory(64);
        touch(&memory, 0..10);
        let mut waits = Vec::new();
        let traced = trace(&memory, Duration::from_millis(18), |pause| {
            touch(&memory, [9 - waits.len() as u32, 9, 20]);
            waits.push(pause.as_millis());
            true
        });
        assert_eq!((traced, waits), ([9, 8, 7].map(Frame).to_vec(), vec![5, 10, 3]));
        let traced = trace(&memory, Duration::MAX, |_| {
            touch(&memory, [5]);
            false
        });
        assert_eq!(traced, [Frame(5)]);
        assert!(Needed::default().after(Vec::new()).0.is_empty());
    }
}
