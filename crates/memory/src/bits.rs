//! A set of frames, one bit each.

use crate::address::{Frame, FrameRange};

/// Frames of one memory.
#[derive(Clone, Debug)]
pub(crate) struct Bits(Box<[u64]>);

impl Bits {
    /// None of `frames`.
    pub(crate) fn new(frames: u32) -> Self {
        Self(vec![0; frames.div_ceil(u64::BITS) as usize].into())
    }

    #[inline]
    pub(crate) fn get(&self, frame: Frame) -> bool {
        let (word, bit) = (frame.0 / u64::BITS, frame.0 % u64::BITS);
        self.0[word as usize] >> bit & 1 != 0
    }

    pub(crate) fn insert(&mut self, run: FrameRange) {
        for frame in run.frames() {
            self.0[(frame.0 / u64::BITS) as usize] |= 1 << (frame.0 % u64::BITS);
        }
    }

    /// Without those that are in `others`, which is of the same memory.
    pub(crate) fn remove_all(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(word, others)| *word &= !others);
    }

    /// Runs of those of `frames` that are not in it.
    pub(crate) fn gaps(&self, frames: u32) -> impl Iterator<Item = FrameRange> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..frames).find(|frame| !self.get(Frame(*frame)))?;
            let end = (first..frames).find(|frame| self.get(Frame(*frame))).unwrap_or(frames);
            next = end;
            Some(FrameRange { first: Frame(first), count: end - first })
        })
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inserted_is_there_and_nothing_else() {
        let mut bits = Bits::new(130);
        bits.insert(FrameRange { first: Frame(62), count: 67 });
        assert_eq!(bits.count(), 67);
        let there = |frame| bits.get(Frame(frame));
        assert!(there(62) && there(63) && there(64) && there(128));
        assert!(!there(0) && !there(61) && !there(129));
        let gaps: Vec<_> = bits.gaps(130).map(|gap| (gap.first.0, gap.count)).collect();
        assert_eq!(gaps, [(0, 62), (129, 1)]);
        let mut others = Bits::new(130);
        others.insert(FrameRange { first: Frame(64), count: 66 });
        bits.remove_all(&others);
        assert_eq!((bits.count(), bits.get(Frame(63)), bits.get(Frame(64))), (2, true, false));
    }
}
