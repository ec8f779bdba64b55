//! Miss-ratio curves, as far as they decide who gets a page.

use serde::{Deserialize, Serialize};

/// How many misses a second a VM has with how much memory: points by rising size; straight between them, constant outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve {
    points: Vec<(u64, f64)>,
}

/// What is no curve.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CurveError {
    /// Nothing is known then.
    #[error("a curve without points")]
    Empty,
    /// More than anybody needs.
    #[error("a curve of {0} points: at most {POINTS_MAX}")]
    Points(usize),
    /// Which of them.
    #[error("point {0} of the curve: sizes must rise, misses must be numbers of at least 0")]
    Point(usize),
}

const POINTS_MAX: usize = 4096;

impl Curve {
    /// Of (bytes, misses a second).
    ///
    /// # Errors
    /// No points, too many, sizes that do not rise, misses that are no numbers.
    pub fn new(points: Vec<(u64, f64)>) -> Result<Self, CurveError> {
        let curve = Self { points };
        curve.check()?;
        Ok(curve)
    }

    pub(crate) fn check(&self) -> Result<(), CurveError> {
        match self.points.len() {
            0 => return Err(CurveError::Empty),
            1..=POINTS_MAX => {}
            many => return Err(CurveError::Points(many)),
        }
        let mut before = None;
        for (index, (bytes, misses)) in self.points.iter().enumerate() {
            if before >= Some(*bytes) || !misses.is_finite() || *misses < 0.0 {
                return Err(CurveError::Point(index));
            }
            before = Some(*bytes);
        }
        Ok(())
    }

    /// Misses a second with `bytes`.
    #[must_use]
    pub fn misses(&self, bytes: u64) -> f64 {
        let behind = self.points.partition_point(|(size, _)| *size <= bytes);
        match (
            behind.checked_sub(1).map(|before| self.points[before]),
            self.points.get(behind).copied(),
        ) {
            (None, None) => 0.0,
            (None, Some((_, misses))) | (Some((_, misses)), None) => misses,
            (Some((from, high)), Some((to, low))) => {
                high + (low - high) * ((bytes - from) as f64 / (to - from) as f64)
            }
        }
    }

    /// The pieces of its lower convex hull between two sizes: bytes, and the misses a second that each byte saves, which
    /// falls from piece to piece. So whoever takes the best pieces first takes them in order, and a cliff behind a plateau
    /// counts from where the plateau begins.
    pub(crate) fn pieces(&self, from: u64, to: u64) -> Vec<Piece> {
        let inner =
            self.points.iter().map(|(size, _)| *size).filter(|size| (from + 1..to).contains(size));
        let sizes = std::iter::once(from).chain(inner).chain((to > from).then_some(to));
        let mut hull: Vec<(u64, f64)> = Vec::new();
        let mut least = f64::INFINITY;
        for size in sizes {
            // More memory does not hurt: where measurement says so it is noise.
            least = least.min(self.misses(size));
            let point = (size, least);
            while let [.., before, last] = hull[..]
                && saved(before, last) <= saved(last, point)
            {
                hull.pop();
            }
            hull.push(point);
        }
        let pieces = hull
            .windows(2)
            .map(|ends| Piece { bytes: ends[1].0 - ends[0].0, saved: saved(ends[0], ends[1]) });
        pieces.collect()
    }
}

/// A part of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) bytes: u64,
    /// Misses a second a byte.
    pub(crate) saved: f64,
}

fn saved(from: (u64, f64), to: (u64, f64)) -> f64 {
    (from.1 - to.1) / (to.0 - from.0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(u64, f64)]) -> Curve {
        Curve::new(points.to_vec()).expect("a curve")
    }

    #[test]
    fn misses_between_and_outside_of_points() {
        let curve = curve(&[(100, 10.0), (200, 4.0)]);
        let misses = [0, 100, 150, 200, 999].map(|bytes| curve.misses(bytes));
        assert_eq!(misses, [10.0, 10.0, 7.0, 4.0, 4.0]);
    }

    #[test]
    fn a_cliff_behind_a_plateau_counts_from_the_plateau() {
        let curve = curve(&[(0, 100.0), (10, 50.0), (90, 50.0), (100, 0.0)]);
        let pieces = curve.pieces(0, 100);
        assert_eq!(pieces.len(), 2, "{pieces:?}");
        assert_eq!((pieces[0].bytes, pieces[1].bytes), (10, 90));
        assert!((pieces[1].saved - 50.0 / 90.0).abs() < 1e-12);
        // Noise upwards saves nothing.
        let noisy = Curve::new(vec![(0, 5.0), (10, 6.0)]).expect("a curve");
        assert_eq!(noisy.pieces(0, 10), [Piece { bytes: 10, saved: 0.0 }]);
        assert_eq!(noisy.pieces(10, 10), []);
    }

    #[test]
    fn what_is_no_curve() {
        assert_eq!(Curve::new(vec![]), Err(CurveError::Empty));
        assert_eq!(Curve::new(vec![(1, 1.0), (1, 0.0)]), Err(CurveError::Point(1)));
        assert_eq!(Curve::new(vec![(1, f64::NAN)]), Err(CurveError::Point(0)));
        let many = (0..=POINTS_MAX as u64).map(|size| (size, 0.0)).collect();
        assert_eq!(Curve::new(many), Err(CurveError::Points(POINTS_MAX + 1)));
    }
}
