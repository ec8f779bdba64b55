//! Which frames have the same contents: a sample of all fingerprints, in fixed memory.
//!
//! A frame is looked at when nothing has written to it for some epochs. A fingerprint is kept if its value is below a
//! bound, which halves whenever there are too many: so whatever is kept stands for as many as were not, as in SHARDS,
//! and two guests that are sampled by the same bound are sampled at the same contents.

use std::collections::HashMap;

use memory::{FRAME_SIZE, Frame};

/// Fingerprints kept.
const KEPT: usize = 1 << 15;

/// What a frame's contents come to: equal for equal contents. A guest can make unequal ones that are equal here, so who
/// shares compares the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Of a frame's contents.
    #[must_use]
    pub fn of(bytes: &[u8; FRAME_SIZE]) -> Self {
        const SEEDS: [u64; 4] = [
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7344,
            0xa409_3822_299f_31d0,
            0x082e_fa98_ec4e_6c89,
        ];
        // Four sums that do not wait for each other.
        let mut sums = SEEDS;
        for words in bytes.as_chunks::<32>().0 {
            for (sum, word) in sums.iter_mut().zip(words.as_chunks().0) {
                *sum = (*sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                *sum ^= *sum >> 29;
            }
        }
        let [a, b, c, d] = sums;
        let mix = |sum: u64, other: u64| {
            (sum ^ other.rotate_left(23)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        let sum = mix(mix(mix(a, b), c), d);
        Self(sum ^ sum >> 32)
    }
}

/// The copies of one fingerprint.
#[derive(Clone, Copy, Debug)]
struct Copies {
    first: Frame,
    count: u32,
}

/// A look at all frames.
#[derive(Debug, Default)]
struct Round {
    kept: HashMap<Fingerprint, Copies>,
    /// Fingerprints below `u64::MAX >> halved` are kept.
    halved: u32,
    looked: u64,
    zeros: u64,
}

impl Round {
    fn add(&mut self, frame: Frame, fingerprint: Fingerprint) {
        self.looked += 1;
        if fingerprint.0 > u64::MAX >> self.halved {
            return;
        }
        self.kept.entry(fingerprint).or_insert(Copies { first: frame, count: 0 }).count += 1;
        while self.kept.len() > KEPT && self.halved < 63 {
            self.halved += 1;
            let bound = u64::MAX >> self.halved;
            self.kept.retain(|fingerprint, _| fingerprint.0 <= bound);
        }
    }
}

/// The round that goes on, and the one before, which is complete.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    last: Round,
    next: Round,
}

impl Fingerprints {
    pub(super) fn add(&mut self, frame: Frame, fingerprint: Fingerprint) {
        self.next.add(frame, fingerprint);
    }

    pub(super) fn add_zeros(&mut self) {
        self.next.looked += 1;
        self.next.zeros += 1;
    }

    /// All frames were looked at.
    pub(super) fn end_round(&mut self) {
        self.last = std::mem::take(&mut self.next);
    }

    /// Of the last complete round: each fingerprint, the first frame that has it, how many have it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Fingerprint, Frame, u32)> + '_ {
        self.last
            .kept
            .iter()
            .map(|(&fingerprint, copies)| (fingerprint, copies.first, copies.count))
    }

    /// So many fingerprints there are for each that was kept.
    pub(super) fn each_stands_for(&self) -> u64 {
        1 << self.last.halved
    }

    /// Frames that the last complete round looked at, and those of zeros.
    pub(super) fn looked(&self) -> (u64, u64) {
        (self.last.looked, self.last.zeros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> [u8; FRAME_SIZE] {
        let mut bytes = [7; FRAME_SIZE];
        bytes[4088..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    #[test]
    fn equal_contents_have_equal_fingerprints_and_others_do_not() {
        let all: std::collections::HashSet<_> =
            (0..100_000).map(|number| Fingerprint::of(&page(number))).collect();
        assert_eq!(all.len(), 100_000);
        let mut turned = page(1);
        turned.swap(0, 4088);
        assert_ne!(Fingerprint::of(&turned), Fingerprint::of(&page(1)));
    }

    #[test]
    fn what_is_kept_stands_for_all_in_fixed_memory() {
        let mut prints = Fingerprints::default();
        // Each contents twice.
        for frame in 0..400_000_u32 {
            prints.add(Frame(frame), Fingerprint::of(&page(u64::from(frame / 2))));
        }
        prints.add_zeros();
        prints.end_round();
        let kept: Vec<_> = prints.iter().collect();
        assert!(kept.len() <= KEPT && kept.iter().all(|&(_, _, count)| count == 2));
        let estimate = kept.len() as u64 * prints.each_stands_for();
        assert!(estimate.abs_diff(200_000) < 10_000, "{estimate}");
        assert_eq!(prints.looked(), (400_001, 1));
    }
}
