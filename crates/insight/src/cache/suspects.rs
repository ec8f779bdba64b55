//! Cached frames that the kernel has changed: a file that is written to, or memory that the kernel took for itself.
//!
//! Nothing tells which, until the file goes to its disk, up to half a minute later; what the kernel took never does.
//! But what it keeps in memory of its own is full of pointers into its half of the address space, and files are not. So
//! a frame is looked at soon after its first change, and again when there has been time to fill it.

use std::collections::VecDeque;
use std::time::Duration;

use memory::Frame;

use super::ext4::Bytes;

/// When to look, after the change.
const DELAYS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(400)];
/// Frames that wait for one look, at most; and looks for nothing each time, so that a fast writer costs no more.
const MOST: usize = 4096;
const LOOKS: usize = 64;

/// Frames to be looked at, by how often they have been.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    waiting: [VecDeque<(Duration, Frame)>; DELAYS.len()],
}

impl Suspects {
    /// The kernel has changed `frame`.
    pub(super) fn add(&mut self, at: Duration, frame: Frame) {
        self.put(0, at, frame);
    }

    fn put(&mut self, round: usize, at: Duration, frame: Frame) {
        let Some(waiting) = self.waiting.get_mut(round) else { return };
        if waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back((at.saturating_add(DELAYS[round]), frame));
    }

    /// Asks about those whose time has come; answers those that are the kernel's.
    pub(super) fn found(&mut self, now: Duration, look: impl Fn(Frame) -> Look) -> Vec<Frame> {
        let mut found = Vec::new();
        for round in 0..DELAYS.len() {
            let mut left = LOOKS;
            while left > 0 {
                let due = self.waiting[round].front().is_some_and(|&(due, _)| due <= now);
                let Some((_, frame)) = due.then(|| self.waiting[round].pop_front()).flatten()
                else {
                    break;
                };
                let taken = match look(frame) {
                    Look::Elsewhere => continue,
                    Look::Told { taken } => taken,
                    Look::Contents(bytes) => {
                        let taken = is_kernels(&bytes);
                        left -= usize::from(!taken);
                        taken
                    }
                };
                if taken {
                    found.push(frame);
                } else {
                    self.put(round + 1, now, frame);
                }
            }
        }
        found
    }
}

/// What can be seen of a suspect.
pub(super) enum Look {
    /// It is no longer in question.
    Elsewhere,
    /// The kernel itself says whether somebody else has it.
    Told { taken: bool },
    /// What it holds.
    Contents(Box<Bytes>),
}

/// Whether it has some different pointers into one part of the kernel's half, at places for pointers. Numbers below zero
/// lie at the half's end, where Linux has no memory of its own but its image (Documentation/arch/x86/x86_64/mm.rst); words of
/// a bitmap have little in common.
fn is_kernels(bytes: &Bytes) -> bool {
    const LEAST: u8 = 4;
    /// 64 GiB, of which all are one part.
    const PART: u32 = 36;
    let mut parts = [(0, 0, 0u8); 4];
    for word in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| word[at]));
        let part = word >> PART;
        if word >> 47 != 0x1_ffff || part & 0xfff == 0xfff || word % 8 != 0 {
            continue;
        }
        // The first that is this part's, or nobody's yet.
        let of = parts.iter_mut().find(|(known, _, count)| *known == part || *count == 0);
        let Some((known, last, count)) = of else { continue };
        if *count == 0 || *last != word {
            (*known, *last, *count) = (part, word, *count + 1);
        }
        if *count == LEAST {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn pointers(values: &[u64]) -> Bytes {
        let mut bytes = [0x61; 4096];
        for (value, to) in values.iter().zip(bytes[512..].chunks_mut(8)) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    const OWN: [u64; 4] = [
        0xffff_8881_0234_5678,
        0xffff_8881_0234_5670,
        0xffff_8881_5000_0000,
        0xffff_8881_0000_0008,
    ];

    #[test]
    fn pointers_are_the_kernels() {
        assert!(is_kernels(&pointers(&OWN)));
        assert!(!is_kernels(&pointers(&OWN[..3])));
        assert!(!is_kernels(&pointers(&[OWN[0]; 400])));
        assert!(!is_kernels(&[0xff; 4096]));
        // A bitmap's words.
        let bitmap: Vec<u64> = (0..64).flat_map(|n| [u64::MAX << n, !(1 << n)]).collect();
        assert!(!is_kernels(&pointers(&bitmap)));
        let small: Vec<u64> = (1..100i64).map(|n| (-n).cast_unsigned()).collect();
        assert!(!is_kernels(&pointers(&small)));
    }

    #[test]
    fn frames_are_looked_at_when_it_is_time() {
        let ms = Duration::from_millis;
        let mut suspects = Suspects::default();
        suspects.add(ms(0), Frame(1));
        suspects.add(ms(0), Frame(2));
        let empty = |_| Look::Contents([0; 4096].into());
        let full = |frame| match frame {
            Frame(1) => Look::Contents(pointers(&OWN).into()),
            _ => Look::Elsewhere,
        };
        assert!(suspects.found(ms(9), full).is_empty());
        assert!(suspects.found(ms(10), empty).is_empty());
        assert!(suspects.found(ms(40), full).is_empty());
        // The other is no longer in question.
        assert_eq!(suspects.found(ms(60), full), [Frame(1)]);
        assert!(suspects.found(ms(9999), full).is_empty());
    }

    #[test]
    fn the_kernels_word_is_enough() {
        let mut suspects = Suspects::default();
        suspects.add(Duration::ZERO, Frame(1));
        suspects.add(Duration::ZERO, Frame(2));
        let found = suspects.found(DELAYS[0], |frame| Look::Told { taken: frame == Frame(2) });
        assert_eq!(found, [Frame(2)]);
    }

    #[test]
    fn there_are_not_too_many() {
        let mut suspects = Suspects::default();
        (0..100_000).for_each(|frame| suspects.add(Duration::ZERO, Frame(frame)));
        assert_eq!(suspects.waiting[0].len(), MOST);
        let looks = Cell::new(0);
        let found = suspects.found(Duration::from_secs(1), |_| {
            looks.set(looks.get() + 1);
            Look::Contents([0; 4096].into())
        });
        assert_eq!((found.len(), looks.get()), (0, LOOKS));
        // What is found is no look for nothing.
        let found =
            suspects.found(Duration::from_secs(1), |_| Look::Contents(pointers(&OWN).into()));
        assert_eq!(found.len(), MOST - LOOKS);
    }
}
