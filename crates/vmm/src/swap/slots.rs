//! Places in a store: who has which bytes of its file.
//!
//! ```text
//!   file:  | segment of class 3 | empty (a hole) | segment of class 8 | ...
//!            42 slots of 1536 B                     16 slots of 4096 B
//! ```
//! A segment has slots of one size, a multiple of [`UNIT`]; one that is empty can be of any other, and its bytes go back to
//! the file system. So a slot that is freed is used again, and what is lost to sizes is bounded: half a unit a slot, and a
//! segment a class that is not full.

use std::ops::Range;

/// Sizes of slots are multiples of it: bytes.
pub(super) const UNIT: usize = 512;
/// Classes of slots: 1 to 8 units, the last for a whole frame.
const CLASSES: usize = 8;
/// Bytes of a segment.
pub(super) const SEGMENT: u64 = 64 << 10;
const SEGMENT_UNITS: u32 = (SEGMENT / UNIT as u64) as u32;

/// Bytes of the file that are somebody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    segment: u32,
    index: u8,
    class: u8,
}

impl Slot {
    /// Where it begins.
    pub(super) fn offset(self) -> u64 {
        let inside = usize::from(self.index) * (usize::from(self.class) + 1) * UNIT;
        u64::from(self.segment) * SEGMENT + inside as u64
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    class: u8,
    /// A bit for each slot that is free; of an empty segment its class's are.
    free: u128,
    used: u8,
}

/// All of a file.
#[derive(Debug)]
pub(super) struct Slots {
    segments: Vec<Segment>,
    /// Segments without any slot in use.
    empty: Vec<u32>,
    /// By class: segments that have some in use, and some not.
    partial: [Vec<u32>; CLASSES],
    used: u64,
}

/// Slots of a segment, at most 128.
fn slots_of(class: u8) -> u32 {
    SEGMENT_UNITS / (u32::from(class) + 1)
}

fn all_free(class: u8) -> u128 {
    u128::MAX >> (128 - slots_of(class))
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { segments: Vec::new(), empty: Vec::new(), partial: Default::default(), used: 0 }
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of the segments in use.
    pub(super) fn bytes(&self) -> u64 {
        (self.segments.len() - self.empty.len()) as u64 * SEGMENT
    }

    /// A slot for so many bytes, 1 to 4096, where the segments in use have no more than `limit`. `None`: it is full.
    pub(super) fn take(&mut self, bytes: usize, limit: u64) -> Option<Slot> {
        let class = (bytes.div_ceil(UNIT).clamp(1, CLASSES) - 1) as u8;
        let place = usize::from(class);
        let segment = match self.partial[place].last() {
            Some(&segment) => segment,
            None => {
                let segment = self.begin(class, limit)?;
                self.partial[place].push(segment);
                segment
            }
        };
        let of = &mut self.segments[segment as usize];
        let index = of.free.trailing_zeros() as u8;
        of.free &= of.free - 1;
        of.used += 1;
        if of.free == 0 {
            self.partial[place].pop();
        }
        self.used += 1;
        Some(Slot { segment, index, class })
    }

    /// An empty segment, for slots of `class`.
    fn begin(&mut self, class: u8, limit: u64) -> Option<u32> {
        if self.bytes() + SEGMENT > limit {
            return None;
        }
        let new = Segment { class, free: all_free(class), used: 0 };
        if let Some(segment) = self.empty.pop() {
            self.segments[segment as usize] = new;
            return Some(segment);
        }
        let segment = u32::try_from(self.segments.len()).ok()?;
        self.segments.push(new);
        Some(segment)
    }

    /// Ends the use of a slot. The bytes of a segment that is empty now, which the file need not keep.
    pub(super) fn free(&mut self, slot: Slot) -> Option<Range<u64>> {
        let place = usize::from(slot.class);
        let of = &mut self.segments[slot.segment as usize];
        debug_assert!(of.class == slot.class && of.free >> slot.index & 1 == 0, "{slot:?} twice");
        if of.free == 0 {
            self.partial[place].push(slot.segment);
        }
        of.free |= 1 << slot.index;
        of.used -= 1;
        self.used -= 1;
        if of.used > 0 {
            return None;
        }
        self.partial[place].retain(|segment| *segment != slot.segment);
        self.empty.push(slot.segment);
        let begin = u64::from(slot.segment) * SEGMENT;
        Some(begin..begin + SEGMENT)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is taken and freed in whichever order: no byte is two slots', and none is beyond the limit.
        #[test]
        fn slots_do_not_overlap(steps in prop::collection::vec((1usize..=4096, any::<u8>()), 1..600)) {
            let limit = 6 * SEGMENT;
            let mut slots = Slots::new();
            let mut taken: BTreeMap<u64, (u64, Slot)> = BTreeMap::new();
            for (bytes, what) in steps {
                if what % 3 == 0 && !taken.is_empty() {
                    let which = usize::from(what) % taken.len();
                    let begin = *taken.keys().nth(which).expect("a slot");
                    let (_, slot) = taken.remove(&begin).expect("a slot");
                    if let Some(gone) = slots.free(slot) {
                        prop_assert!(taken.range(gone.clone()).next().is_none());
                        prop_assert!(gone.contains(&begin));
                    }
                } else if let Some(slot) = slots.take(bytes, limit) {
                    let (begin, end) = (slot.offset(), slot.offset() + bytes as u64);
                    let before = taken.range(..end).next_back();
                    prop_assert!(before.is_none_or(|(_, (end, _))| *end <= begin));
                    prop_assert!(end <= limit);
                    taken.insert(begin, (end, slot));
                }
                prop_assert_eq!(slots.used(), taken.len() as u64);
                prop_assert!(slots.bytes() <= limit);
            }
            let all: Vec<Slot> = taken.into_values().map(|(_, slot)| slot).collect();
            for slot in all {
                slots.free(slot);
            }
            prop_assert_eq!((slots.used(), slots.bytes()), (0, 0));
        }
    }

    #[test]
    fn a_store_is_full_at_its_limit_and_not_when_something_is_freed() {
        let mut slots = Slots::new();
        let taken: Vec<Slot> = std::iter::from_fn(|| slots.take(4096, SEGMENT)).collect();
        assert_eq!((taken.len(), slots.bytes()), (16, SEGMENT));
        assert!(slots.take(1, SEGMENT).is_none());
        assert_eq!(slots.free(taken[3]), None);
        assert_eq!(slots.take(3600, SEGMENT), Some(taken[3]));
        assert!(slots.take(1, SEGMENT - 1).is_none() && slots.take(1, 2 * SEGMENT).is_some());
    }
}
