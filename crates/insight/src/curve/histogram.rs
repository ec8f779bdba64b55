//! From distances to a curve.

use serde::Serialize;

/// How many references there were at each stack distance, in steps of some pages, and how many to pages that had never
/// been referenced. Counts need not be whole: of a sample each stands for many.
#[derive(Clone, Debug)]
pub struct DistanceHistogram {
    step: u64,
    /// By distance divided by `step`.
    counts: Vec<f64>,
    /// Farther than all of these.
    beyond: f64,
    first: f64,
}

impl DistanceHistogram {
    /// For distances below `pages`, in at most `steps` steps.
    #[must_use]
    pub fn new(pages: u64, steps: usize) -> Self {
        let step = pages.div_ceil(steps.max(1) as u64).max(1);
        let counts = vec![0.0; pages.div_ceil(step) as usize];
        Self { step, counts, beyond: 0.0, first: 0.0 }
    }

    /// Notes `weight` references at `distance`; `None`: the first to their page.
    pub fn note(&mut self, distance: Option<u64>, weight: f64) {
        let Some(distance) = distance else {
            self.first += weight;
            return;
        };
        match self.counts.get_mut((distance / self.step) as usize) {
            Some(count) => *count += weight,
            None => self.beyond += weight,
        }
    }

    /// All references.
    #[must_use]
    pub fn references(&self) -> f64 {
        self.counts.iter().sum::<f64>() + self.beyond + self.first
    }

    /// Adds `weight` to the shortest distances: what a sample has too few or too many of (Waldspurger, Park,
    /// Garthwaite and Ahmad, FAST 2015, section 3.2: most references are to pages referenced just before).
    pub(super) fn correct(&mut self, weight: f64) {
        if let Some(count) = self.counts.first_mut() {
            *count += weight;
        }
    }

    /// Multiplies all counts.
    pub(super) fn scale(&mut self, factor: f64) {
        self.counts.iter_mut().for_each(|count| *count *= factor);
        self.beyond *= factor;
        self.first *= factor;
    }

    /// The curve. `None` where there were no references.
    #[must_use]
    pub fn curve(&self) -> Option<MissRatioCurve> {
        let all = self.references();
        if all <= 0.0 {
            return None;
        }
        let mut misses = all;
        let mut ratios = vec![1.0];
        for count in &self.counts {
            misses -= count;
            ratios.push((misses / all).clamp(0.0, 1.0));
        }
        Some(MissRatioCurve { step: self.step, ratios })
    }
}

/// Miss ratios by size of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissRatioCurve {
    /// Pages from one size to the next.
    step: u64,
    /// At no memory, at `step` pages, at twice as many...; each at most the one before but for a sample's correction.
    ratios: Vec<f64>,
}

impl MissRatioCurve {
    /// `ratios` at no memory, at `step` pages, and so on. At least one; none of them is no misses at all.
    #[must_use]
    pub fn from_ratios(step: u64, mut ratios: Vec<f64>) -> Self {
        if ratios.is_empty() {
            ratios.push(0.0);
        }
        Self { step: step.max(1), ratios }
    }

    /// The largest size of which something is known, in pages.
    #[must_use]
    pub fn last_size(&self) -> u64 {
        (self.ratios.len() as u64 - 1) * self.step
    }

    /// What misses with all memory that it knows of.
    #[must_use]
    pub fn floor(&self) -> f64 {
        self.ratios.iter().copied().fold(1.0, f64::min)
    }

    /// Which part of references misses with `pages` of memory, between 0 and 1. Beyond the last size it stays what it
    /// is there.
    #[must_use]
    pub fn miss_ratio(&self, pages: u64) -> f64 {
        let (index, rest) = ((pages / self.step) as usize, pages % self.step);
        let at = |index: usize| self.ratios[index.min(self.ratios.len() - 1)];
        let (here, next) = (at(index), at(index + 1));
        here + (next - here) * rest as f64 / self.step as f64
    }

    /// The least memory, in pages, in which at most `ratio` of all references miss.
    #[must_use]
    pub fn pages_for(&self, ratio: f64) -> Option<u64> {
        let index = self.ratios.iter().position(|&found| found <= ratio)?;
        Some(index as u64 * self.step)
    }

    /// Sizes and ratios.
    pub fn points(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        self.ratios.iter().enumerate().map(|(index, &ratio)| (index as u64 * self.step, ratio))
    }

    /// The mean distance from `other` over sizes up to `pages`, in as many steps as there are.
    #[must_use]
    pub fn mean_difference(&self, other: &Self, pages: u64) -> f64 {
        let step = self.step.min(other.step);
        let sizes: Vec<u64> = (0..=pages / step).map(|index| index * step).collect();
        let sum: f64 =
            sizes.iter().map(|&size| (self.miss_ratio(size) - other.miss_ratio(size)).abs()).sum();
        sum / sizes.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_falls_where_distances_are() {
        let mut histogram = DistanceHistogram::new(100, 10);
        assert_eq!(histogram.curve(), None);
        histogram.note(None, 1.0);
        histogram.note(Some(0), 1.0);
        histogram.note(Some(19), 1.0);
        histogram.note(Some(5000), 1.0);
        let curve = histogram.curve().expect("references");
        assert_eq!(curve.miss_ratio(0), 1.0);
        assert_eq!(curve.miss_ratio(10), 0.75);
        assert_eq!(curve.miss_ratio(15), 0.625);
        assert_eq!(curve.miss_ratio(20), 0.5);
        assert_eq!(curve.miss_ratio(1 << 40), 0.5);
        assert_eq!(curve.pages_for(0.6), Some(20));
        assert_eq!(curve.pages_for(0.4), None);
        assert_eq!(curve.points().count(), 11);
    }

    #[test]
    fn curves_are_compared_over_sizes() {
        let with = |distance| {
            let mut histogram = DistanceHistogram::new(100, 100);
            histogram.note(Some(distance), 1.0);
            histogram.curve().expect("a reference")
        };
        assert_eq!(with(9).mean_difference(&with(9), 100), 0.0);
        // From 10 pages on one hits, from 60 on both.
        let difference = with(9).mean_difference(&with(59), 99);
        assert!((difference - 0.5).abs() < 1e-9, "{difference}");
    }
}
