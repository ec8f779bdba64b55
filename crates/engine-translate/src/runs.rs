//! How often code has run that is not kept.
//!
//! Most code runs a few times only. It is decoded each time, which costs little more than keeping and finding it, and
//! takes no memory but its count.

use std::sync::atomic::{AtomicU32, Ordering};

use translator::{Mode, Width};

/// Counts by physical address and mode, of a VM. Approximate: what has not been met for long is forgotten, and cores
/// that count at the same time may lose a run.
pub(crate) struct Runs {
    sets: Box<[Set]>,
    /// Changes with each place that is forgotten.
    chance: AtomicU32,
}

/// Counts of places near each other, and of others that share it by chance: a place's tag, and its count in the low
/// byte. 0: free.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Set([AtomicU32; 4]);

/// A power of two: for what runs between one boot and a large program's end.
const SETS: usize = 1 << 16;

/// Instead of a count: it was kept when it was last met.
pub(crate) const KEPT: u32 = 0xff;

/// The highest count.
pub(crate) const MOST: u32 = KEPT - 1;

/// Bits of an address that differ within a set.
const GRAIN: u32 = 3;

/// Where a place is counted.
#[derive(Clone, Copy)]
struct Place {
    set: usize,
    /// The low byte is 0, and it is not.
    tag: u32,
}

impl Place {
    #[inline(always)]
    fn of(gpa: u64, width: Width) -> Self {
        let page = gpa >> 12 << 7 | width as u64;
        let hash = page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // A page's places lie together, so that what runs together does.
        let set = (hash >> 40) as usize + (gpa as usize >> GRAIN & 0x1ff);
        let tag = (hash >> 16) as u32 & 0x001f_ffff | 1 << 20;
        Self { set: set & (SETS - 1), tag: (tag << GRAIN | gpa as u32 & 7) << 8 }
    }
}

impl Runs {
    pub(crate) fn new() -> Self {
        // As it comes from the host: a VM that stands, as clones do at first, has no page of it.
        // SAFETY: a Set is four atomic integers, for which all zeros is a value.
        let sets = unsafe { Box::<[Set]>::new_zeroed_slice(SETS).assume_init() };
        Self { sets, chance: AtomicU32::new(1) }
    }

    /// Counts a run of the code at `gpa`. Returns how many there were with it, or [`KEPT`].
    #[inline(always)]
    pub(crate) fn add(&self, gpa: u64, mode: Mode) -> u32 {
        let place = Place::of(gpa, mode.width);
        let Set(entries) = &self.sets[place.set];
        for entry in entries {
            let old = entry.load(Ordering::Relaxed);
            if old & !0xff == place.tag {
                let count = old & 0xff;
                if count >= MOST {
                    return count;
                }
                entry.store(old + 1, Ordering::Relaxed);
                return count + 1;
            }
        }
        self.replace(entries, place.tag | 1);
        1
    }

    /// How often the code at `gpa` has run, or [`KEPT`].
    #[inline]
    pub(crate) fn of(&self, gpa: u64, mode: Mode) -> u32 {
        let place = Place::of(gpa, mode.width);
        let Set(entries) = &self.sets[place.set];
        let known = entries.iter().map(|entry| entry.load(Ordering::Relaxed));
        known.into_iter().find(|old| old & !0xff == place.tag).map_or(0, |old| old & 0xff)
    }

    /// Notes `count`, which may be [`KEPT`], for the code at `gpa`.
    pub(crate) fn set(&self, gpa: u64, mode: Mode, count: u32) {
        let place = Place::of(gpa, mode.width);
        let Set(entries) = &self.sets[place.set];
        let known = |entry: &&AtomicU32| entry.load(Ordering::Relaxed) & !0xff == place.tag;
        match entries.iter().find(known) {
            Some(entry) => entry.store(place.tag | count, Ordering::Relaxed),
            None => self.replace(entries, place.tag | count),
        }
    }

    /// Puts `new` in place of one of two that chance chooses: of the one that ran less often. By counts alone two that
    /// run by turns could drive each other out for ever.
    #[inline(never)]
    fn replace(&self, entries: &[AtomicU32; 4], new: u32) {
        let chance = self.chance.load(Ordering::Relaxed).wrapping_mul(0x9e37_79b9).wrapping_add(1);
        self.chance.store(chance, Ordering::Relaxed);
        let chosen = [chance >> 30, chance >> 28 & 3].map(|index| &entries[index as usize]);
        let count = |entry: &AtomicU32| entry.load(Ordering::Relaxed) & 0xff;
        let free = entries.iter().find(|entry| count(entry) == 0);
        let [one, other] = chosen;
        let least = if count(one) <= count(other) { one } else { other };
        free.unwrap_or(least).store(new, Ordering::Relaxed);
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Mode = Mode { width: Width::Bits64 };
    const LEGACY: Mode = Mode { width: Width::Bits32 };

    #[test]
    fn runs_are_counted_by_place_and_mode() {
        let runs = Runs::new();
        assert_eq!((runs.add(0x1000, LONG), runs.add(0x1000, LONG)), (1, 2));
        assert_eq!(
            (runs.add(0x1001, LONG), runs.add(0x1000, LEGACY), runs.add(0, LONG)),
            (1, 1, 1)
        );
        assert_eq!((runs.of(0x1000, LONG), runs.of(0x2000, LONG)), (2, 0));
        runs.set(0x1000, LONG, KEPT);
        runs.set(0x2000, LONG, 5);
        assert_eq!((runs.add(0x1000, LONG), runs.add(0x2000, LONG)), (KEPT, 6));
        (0..1000).for_each(|_| {
            runs.add(0x3000, LONG);
        });
        assert_eq!(runs.of(0x3000, LONG), MOST);
    }

    #[test]
    fn places_of_a_set_do_not_drive_each_other_out() {
        let runs = Runs::new();
        (0..3).for_each(|place| runs.set(place, LONG, KEPT));
        let hot = |runs: &Runs| (3..5).all(|place| runs.of(place, LONG) > 8);
        let tries = (0..1000).take_while(|_| {
            (3..5).for_each(|place| {
                runs.add(place, LONG);
            });
            !hot(&runs)
        });
        assert!(tries.count() < 100);
    }

    #[test]
    fn few_places_are_taken_for_others() {
        let runs = Runs::new();
        let wrong = (0..1 << 16).filter(|n| runs.add(n * 0x35, LONG) != 1).count();
        assert!(wrong < 4, "{wrong}");
    }
}
