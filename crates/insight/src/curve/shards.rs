//! Distances of a sample of pages, in memory that does not grow (Waldspurger, Park, Garthwaite and Ahmad: Efficient MRC
//! construction with SHARDS, FAST 2015).

use std::collections::BinaryHeap;

use super::{DistanceHistogram, MissRatioCurve, Stack};
use crate::mix::mix;

/// Values that a page's hash may have.
const MODULUS: u64 = 1 << 24;

/// Follows pages whose hash is below a threshold, at most so many: when there are more, the threshold falls. A distance
/// among a part of all pages is that part of the true one.
#[derive(Clone, Debug)]
pub struct Shards {
    threshold: u64,
    most: usize,
    stack: Stack<u64>,
    /// The sample by hash, the largest first.
    by_hash: BinaryHeap<(u64, u64)>,
    histogram: DistanceHistogram,
    /// All references, and those of the sample by weight.
    references: u64,
    sampled: f64,
    pages_of_curve: u64,
    /// No distance is this or more.
    below: u64,
}

impl Shards {
    /// Follows at most `most` pages, from all of them on. The curve goes to `pages`, in at most `steps` steps.
    #[must_use]
    pub fn new(most: usize, pages: u64, steps: usize) -> Self {
        Self::with_rate(1.0, most, pages, steps)
    }

    /// The same from `rate`, a part of all pages, on.
    #[must_use]
    pub fn with_rate(rate: f64, most: usize, pages: u64, steps: usize) -> Self {
        Self {
            threshold: ((rate.clamp(0.0, 1.0) * MODULUS as f64) as u64).max(1),
            most: most.max(1),
            stack: Stack::default(),
            by_hash: BinaryHeap::new(),
            histogram: DistanceHistogram::new(pages, steps),
            references: 0,
            sampled: 0.0,
            pages_of_curve: pages,
            below: u64::MAX,
        }
    }

    /// There are no more pages at all than the curve goes to, so that a distance which the sample makes longer is cut.
    #[must_use]
    pub fn of_no_more_pages(mut self) -> Self {
        self.below = self.pages_of_curve.max(1);
        self
    }

    /// Whether `page` is in the sample now: others need not be told of but by [`Shards::skip`].
    #[must_use]
    pub fn samples(&self, page: u64) -> bool {
        hash(page) < self.threshold
    }

    /// Notes references to pages that are not in the sample.
    pub fn skip(&mut self, references: u64) {
        self.references += references;
    }

    /// Notes a reference.
    pub fn reference(&mut self, page: u64) {
        let rate = self.rate();
        match self.follow(page) {
            None => self.skip(1),
            Some(among) => self.note(among.map(|among| (among as f64 / rate) as u64), 1.0 / rate),
        }
    }

    /// Makes `page` the one referenced last, and answers its distance among the sample; `None` where it is not in it.
    /// Where it is, [`Shards::note`] is to follow, sooner or later.
    pub fn follow(&mut self, page: u64) -> Option<Option<u64>> {
        let hash = hash(page);
        if hash >= self.threshold {
            return None;
        }
        let among = self.stack.reference(page);
        if among.is_none() {
            self.by_hash.push((hash, page));
            self.shrink();
        }
        Some(among)
    }

    /// Notes a reference of the sample, which stands for `weight` of them, at `distance` among all pages.
    pub fn note(&mut self, distance: Option<u64>, weight: f64) {
        self.references += 1;
        self.sampled += weight;
        self.histogram.note(distance.map(|distance| distance.min(self.below - 1)), weight);
    }

    /// The pages of the sample that were referenced.
    pub fn followed(&self) -> impl Iterator<Item = u64> + '_ {
        self.stack.pages()
    }

    /// Pages that are followed.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.stack.len()
    }

    /// Which part of all pages is.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.threshold as f64 / MODULUS as f64
    }

    /// References in the sample, each for as many as it stands for.
    #[must_use]
    pub fn sampled(&self) -> f64 {
        self.sampled
    }

    /// The curve of all references up to now.
    #[must_use]
    pub fn curve(&self) -> Option<MissRatioCurve> {
        let mut corrected = self.histogram.clone();
        corrected.correct(self.references as f64 - self.sampled);
        corrected.curve()
    }

    /// The curve of the sample's references, each by its weight: others need not be told of then.
    #[must_use]
    pub fn curve_by_weight(&self) -> Option<MissRatioCurve> {
        self.histogram.curve()
    }

    /// What was noted up to now counts less, by `factor`; distances are still known.
    pub fn decay(&mut self, factor: f64) {
        self.histogram.scale(factor);
        self.sampled *= factor;
        self.references = (self.references as f64 * factor) as u64;
    }

    /// Follows only the part `rate` of all pages from now on, unless it is less already.
    pub fn lower_rate(&mut self, rate: f64) {
        let threshold = ((rate.clamp(0.0, 1.0) * MODULUS as f64) as u64).max(1);
        self.threshold = self.threshold.min(threshold);
        self.drop_unsampled();
    }

    fn shrink(&mut self) {
        while self.stack.len() > self.most {
            let Some(&(largest, _)) = self.by_hash.peek() else { return };
            self.threshold = largest;
            self.drop_unsampled();
        }
    }

    fn drop_unsampled(&mut self) {
        while let Some(&(hash, page)) = self.by_hash.peek()
            && hash >= self.threshold
        {
            self.by_hash.pop();
            self.stack.remove(page);
        }
    }
}

/// Below `MODULUS`.
pub(super) fn hash(page: u64) -> u64 {
    mix(page) % MODULUS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// References to pages of which some are far more popular than others, and a loop now and then.
    fn references() -> impl Iterator<Item = u64> {
        let mut state = 1u64;
        (0..400_000u64).map(move |n| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 11) as f64 / (1u64 << 53) as f64;
            if n / 50_000 % 2 == 0 { (uniform.powi(3) * 20_000.0) as u64 } else { n % 9_000 }
        })
    }

    fn exact() -> MissRatioCurve {
        let mut stack = Stack::default();
        let mut histogram = DistanceHistogram::new(20_000, 1000);
        references().for_each(|page| histogram.note(stack.reference(page), 1.0));
        histogram.curve().expect("references")
    }

    #[test]
    fn a_sample_tells_the_curve() {
        let exact = exact();
        for (most, error) in [(4000, 0.015), (500, 0.04)] {
            let mut shards = Shards::new(most, 20_000, 1000);
            references().for_each(|page| shards.reference(page));
            assert!(shards.pages() <= most && shards.rate() < 0.5);
            let found = shards.curve().expect("references").mean_difference(&exact, 20_000);
            assert!(found < error, "{found} with {most} pages");
        }
    }

    #[test]
    fn what_is_skipped_counts() {
        let mut told = Shards::with_rate(0.1, 10_000, 20_000, 1000);
        references().for_each(|page| told.reference(page));
        let mut skipping = Shards::with_rate(0.1, 10_000, 20_000, 1000);
        for page in references() {
            if skipping.samples(page) { skipping.reference(page) } else { skipping.skip(1) }
        }
        assert_eq!(told.curve(), skipping.curve());
    }

    #[test]
    fn all_of_a_few_pages_is_exact() {
        let mut shards = Shards::new(100_000, 20_000, 1000);
        references().for_each(|page| shards.reference(page));
        assert_eq!(shards.rate(), 1.0);
        assert!(shards.curve().expect("references").mean_difference(&exact(), 20_000) < 1e-9);
    }
}
