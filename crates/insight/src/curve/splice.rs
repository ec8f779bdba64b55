//! One curve of two: below what the guest has, by its accesses; above, by blocks that were read again.

use super::MissRatioCurve;

/// Sizes of the whole curve, at most.
const STEPS: u64 = 2048;

/// Joins `below`, of references to frames, and `above`, of blocks that came into the cache, at `allocation_pages`. Of
/// all references that `below` counts, `misses_per_reference` is how many blocks came in during the same time.
///
/// Both sides say how many misses there would be in a time t, in their own units: r references to frames, m misses.
///
/// - With more memory than now, of the m misses a part is left: m * above(size - allocation).
/// - Now there are m misses. `below` knows nothing of them but this: they are references to frames that were taken from
///   other contents, which a frame's number does not tell, and those that missed by `below` even now are frames seen for
///   the first time, no misses of this kind. So `below(allocation)` is taken away from it.
/// - With less memory there are r * (below(size) - below(allocation)) that are hits now, and never fewer than m: the
///   frames given to new contents were those unused for longest, so that they are among the farthest of `below` already.
///
/// By the r references of `below` the factor of the upper part is f = m / r:
///
/// ```text
///   ratio(size) = max(below(size) - below(allocation), f)    below the allocation
///               = f * above(size - allocation)               above
/// ```
///
/// It goes on where the other ends, since above(0) = 1, and never rises if neither does.
#[must_use]
pub fn splice(
    below: &MissRatioCurve,
    above: Option<&MissRatioCurve>,
    allocation_pages: u64,
    misses_per_reference: f64,
) -> MissRatioCurve {
    let factor = if misses_per_reference.is_finite() { misses_per_reference } else { 0.0 };
    let factor = factor.clamp(0.0, 1.0);
    let end = allocation_pages + above.map_or(0, MissRatioCurve::last_size);
    // A multiple of it is the allocation, so that the corner there is one.
    let parts = (allocation_pages * STEPS / end.max(1)).max(1);
    let step = allocation_pages.div_ceil(parts).max(1);
    let cold = below.miss_ratio(allocation_pages);
    let ratio = |size: u64| {
        if size >= allocation_pages {
            return factor * above.map_or(1.0, |above| above.miss_ratio(size - allocation_pages));
        }
        (below.miss_ratio(size) - cold).max(factor)
    };
    let ratios = (0..=end.div_ceil(step)).map(|index| ratio(index * step)).collect();
    MissRatioCurve::from_ratios(step, ratios)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::curve::{DistanceHistogram, Stack};

    /// Of what comes after the first `warm`.
    fn curve_of(pages: &[u64], warm: usize, most: u64) -> MissRatioCurve {
        let (mut stack, mut histogram) = (Stack::default(), DistanceHistogram::new(most, 4096));
        for (at, &page) in pages.iter().enumerate() {
            let distance = stack.reference(page);
            if at >= warm {
                histogram.note(distance, 1.0);
            }
        }
        histogram.curve().expect("references")
    }

    /// References to blocks with LRU memory for `frames`: what is seen of them from outside. References to frames by
    /// number, and depths of blocks that come again.
    fn seen(
        blocks: &[u64],
        warm: usize,
        frames: u64,
    ) -> (MissRatioCurve, Option<MissRatioCurve>, f64) {
        let mut memory: Vec<(u64, u64)> = Vec::new();
        let mut of_frames = Vec::new();
        let mut ghosts = Stack::default();
        let (mut depths, mut misses) = (DistanceHistogram::new(4096, 4096), 0.0);
        for (at, &block) in blocks.iter().enumerate() {
            let frame = match memory.iter().position(|&(_, held)| held == block) {
                Some(at) => memory.remove(at).0,
                None => {
                    let frame = if (memory.len() as u64) < frames {
                        memory.len() as u64
                    } else {
                        let (frame, victim) = memory.remove(0);
                        ghosts.reference(victim);
                        frame
                    };
                    let depth = ghosts.remove(block);
                    if at >= warm {
                        depths.note(depth, 1.0);
                        misses += 1.0;
                    }
                    frame
                }
            };
            memory.push((frame, block));
            of_frames.push(frame);
        }
        let references = (blocks.len() - warm) as f64;
        (curve_of(&of_frames, warm, frames), depths.curve(), misses / references)
    }

    /// Blocks of which low numbers are far more popular.
    fn blocks(count: usize, all: f64) -> Vec<u64> {
        let mut state = 7u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..count).map(|_| (random().powi(3) * all) as u64).collect()
    }

    #[test]
    fn two_halves_give_the_curve_of_the_whole() {
        let blocks = blocks(60_000, 3000.0);
        const WARM: usize = 30_000;
        let truth = curve_of(&blocks, WARM, 4096);
        for frames in [300, 800, 1500] {
            let (below, above, factor) = seen(&blocks, WARM, frames);
            let whole = splice(&below, above.as_ref(), frames, factor);
            let off = |pages| (whole.miss_ratio(pages) - truth.miss_ratio(pages)).abs();
            let mean = |sizes: std::ops::Range<u64>| {
                let count = sizes.end - sizes.start;
                sizes.map(off).sum::<f64>() / count as f64
            };
            assert!(mean(0..frames) < 0.02, "{} below {frames}", mean(0..frames));
            assert!(mean(frames..3000) < 0.01, "{} above {frames}", mean(frames..3000));
        }
    }

    proptest! {
        #[test]
        fn it_never_rises_and_meets_at_the_allocation(
            below in prop::collection::vec(0u64..500, 20..500),
            above in prop::collection::vec(0u64..500, 20..500),
            allocation in 1u64..2000,
            factor in 0.0f64..1.0,
        ) {
            let (below, above) = (curve_of(&below, 0, 500), curve_of(&above, 0, 500));
            let whole = splice(&below, Some(&above), allocation, factor);
            let ratios: Vec<f64> = whole.points().map(|(_, ratio)| ratio).collect();
            prop_assert!(ratios.windows(2).all(|two| two[0] >= two[1] - 1e-12));
            prop_assert!(ratios.iter().all(|ratio| (0.0..=1.0).contains(ratio)));
            prop_assert!(ratios.len() as u64 <= STEPS + 2);
        }
    }
}
