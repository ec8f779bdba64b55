//! Which code takes the most time, by samples: where each vCPU was when its alarm rang.
//!
//! Generated code counts nothing. An alarm rings each millisecond that a vCPU runs, wherever that is: in a path, which
//! is counted here by its host addresses, or elsewhere (the interpreter, handlers, what is common to all paths, the
//! host). So a path's share is of time, its own and not that of what it calls, and one that ran for less than some
//! milliseconds may be missed.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use translator::native::Emitted;
use translator::paths::{Path, Source};

/// Times a second that an alarm rings at least.
pub(crate) const RATE_HZ: u64 = 1000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Hot {
    /// So many paths are shown.
    count: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Code that is there now, by the host address that it starts at.
    places: BTreeMap<usize, Place>,
    /// Samples by listing, which is made at the first one: code may be gone at the end.
    samples: HashMap<String, u64>,
    elsewhere: u64,
}

#[derive(Debug)]
struct Place {
    end: usize,
    made: Emitted,
    page: u64,
    /// The path's bytes, with where each run of them is from the page's start; the last may go on into the next page.
    parts: Vec<(u32, Vec<u8>)>,
    /// Once there was a sample.
    listing: Option<String>,
}

impl Hot {
    /// Shows `count` paths at the end.
    pub(crate) fn new(count: usize) -> Self {
        Self { count, inner: Mutex::default() }
    }

    /// `made` is the code of `path`, which lies in `source` of physical page `page`.
    pub(crate) fn add(&self, path: &Path, page: u64, source: Source<'_>, made: &Emitted) {
        let Range { start, end } = made.addresses();
        let parts = path.fragments.iter().map(|fragment| {
            let (first, end) = (u32::from(fragment.offset), fragment.end());
            (first, source.part(first, end).to_vec())
        });
        let parts = parts.collect();
        let place = Place { end, made: made.clone(), page, parts, listing: None };
        self.lock().places.insert(start, place);
    }

    /// All code is about to go.
    pub(crate) fn forget_places(&self) {
        self.lock().places.clear();
    }

    /// A vCPU was at this host address.
    pub(crate) fn sample(&self, at: usize) {
        let Inner { places, samples, elsewhere } = &mut *self.lock();
        let place = places.range_mut(..=at).next_back().map(|(_, place)| place);
        match place.filter(|place| at < place.end) {
            None => *elsewhere += 1,
            Some(place) => match samples.get_mut(place.listing()) {
                Some(count) => *count += 1,
                None => {
                    samples.insert(place.listing().to_owned(), 1);
                }
            },
        }
    }

    /// What was found, as text.
    pub(crate) fn text(&self) -> String {
        let inner = self.lock();
        let mut order: Vec<_> = inner.samples.iter().collect();
        order.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let all = inner.elsewhere + order.iter().map(|&(_, count)| count).sum::<u64>();
        let share = |count: u64| count as f64 * 100.0 / all.max(1) as f64;
        let mut text = String::new();
        let shown = order.len().min(self.count);
        let _ = writeln!(
            text,
            "fathom: {all} samples, {:.1} % elsewhere than in code; {shown} of {} pieces of code:",
            share(inner.elsewhere),
            order.len()
        );
        for &(listing, &count) in &order[..shown] {
            let _ = write!(text, "{count} samples, {:.1} %: {listing}", share(count));
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic leaves at worst a sample that is not counted.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn listing(&mut self) -> &str {
        let Self { made, page, parts, listing, .. } = self;
        listing.get_or_insert_with(|| {
            let end = parts.iter().map(|(first, part)| *first as usize + part.len()).max();
            let mut bytes = vec![0; end.unwrap_or(0)];
            for (first, part) in parts {
                bytes[*first as usize..][..part.len()].copy_from_slice(part);
            }
            made.listing(*page << 12, Source { bytes: &bytes, first: 0 })
        })
    }
}

#[cfg(test)]
mod tests {
    use translator::native::{CodeCache, Made, Options};
    use translator::paths::Policy;

    use super::*;
    use crate::system::System;

    #[test]
    fn an_instruction_in_two_pages_is_listed() {
        let cache = CodeCache::new(1 << 20, Options::default(), Policy::FATHOM).expect("memory");
        let hot = Hot::new(1);
        // inc rax
        let source = Source { bytes: &[0x48, 0xff, 0xc0], first: 0xfff };
        let path = Path::run(0xfff, 3);
        let made: Made<System> = cache.translate(&path, source, 5, 1).expect("code");
        hot.add(&path, 5, source, &made.emitted);
        hot.sample(made.emitted.addresses().start);
        let text = hot.text();
        assert!(
            text.contains("guest 0x5fff, 1 instructions:\n") && text.contains("inc rax"),
            "{text}"
        );
    }

    #[test]
    fn samples_are_counted_by_path_and_outlive_it() {
        let cache = CodeCache::new(1 << 20, Options::default(), Policy::FATHOM).expect("memory");
        let hot = Hot::new(1);
        let emitted = [0x10, 0x20].map(|first| {
            // inc rax; ret
            let source = Source { bytes: &[0x48, 0xff, 0xc0, 0xc3], first };
            let path = Path::run(first, 4);
            let made: Made<System> = cache.translate(&path, source, 5, 1).expect("code");
            hot.add(&path, 5, source, &made.emitted);
            made.emitted.addresses()
        });
        hot.sample(emitted[0].start);
        (0..2).for_each(|at| hot.sample(emitted[1].start + at));
        hot.sample(emitted[0].start - 1);
        hot.forget_places();
        hot.sample(emitted[0].start);
        let text = hot.text();
        let head = "fathom: 5 samples, 40.0 % elsewhere than in code; 1 of 2 pieces of code:\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.contains("2 samples, 40.0 %: guest 0x5020, 2 instructions:\n"), "{text}");
        assert!(text.contains("inc rax") && !text.contains("0x5010"), "{text}");
    }
}
