//! A curve in characters.

use api::{CurvePoint, MemoryCurve};

use crate::text;

/// Left of the plot: a ratio and the axis.
const MARGIN: usize = 6;

/// The curve in at most `height` lines of at most `width` characters; none where there is no room or no curve.
pub(crate) fn lines(curve: &MemoryCurve, width: usize, height: usize) -> Vec<String> {
    let (Some(columns), Some(rows)) = (width.checked_sub(MARGIN), height.checked_sub(2)) else {
        return Vec::new();
    };
    let Some(span) = span(curve).filter(|_| columns >= 2 && rows >= 2) else {
        return Vec::new();
    };
    let row_of = |ratio: f64| ((1.0 - ratio.clamp(0.0, 1.0)) * (rows - 1) as f64).round() as usize;
    let ratios = (0..columns).map(|column| ratio_at(&curve.points, span.bytes(column, columns)));
    let stars: Vec<Option<usize>> = ratios.map(|ratio| ratio.map(row_of)).collect();
    let now = span.column(curve.allocation_bytes, columns);
    let character = |row: usize, column: usize| match () {
        () if stars[column] == Some(row) => '*',
        () if now == Some(column) => '|',
        () => ' ',
    };
    let label = |row: usize| match row {
        _ if row == 0 => "1.00".to_owned(),
        _ if row == rows - 1 => "0.00".to_owned(),
        _ if row == rows / 2 => format!("{:.2}", 1.0 - row as f64 / (rows - 1) as f64),
        _ => String::new(),
    };
    let mut lines: Vec<String> = Vec::with_capacity(height);
    for row in 0..rows {
        let line: String = (0..columns).map(|column| character(row, column)).collect();
        lines.push(format!("{:>4} |{line}", label(row)).trim_end().to_owned());
    }
    let mut axis = vec!['-'; columns];
    let recommended = curve.recommendation.as_ref();
    if let Some(column) =
        recommended.and_then(|recommended| span.column(recommended.bytes, columns))
    {
        axis[column] = '^';
    }
    lines.push(format!("     +{}", axis.into_iter().collect::<String>()));
    let (first, last) = (text::bytes(span.first), text::bytes(span.last));
    lines.push(format!("      {first}{last:>rest$}", rest = columns.saturating_sub(first.len())));
    lines
}

/// Sizes that are shown.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// From the least size to the largest, of points, allocation and recommendation; `None`: there is no curve.
pub(super) fn span(curve: &MemoryCurve) -> Option<Span> {
    let (first, last) = (curve.points.first()?.bytes, curve.points.last()?.bytes);
    let recommended = curve.recommendation.as_ref().map_or(last, |recommended| recommended.bytes);
    let sizes = [first, last, curve.allocation_bytes, recommended];
    let (first, last) = (*sizes.iter().min()?, *sizes.iter().max()?);
    (first < last).then_some(Span { first, last })
}

impl Span {
    /// How far along `bytes` is, from 0 to 1.
    pub(super) fn part(self, bytes: u64) -> f64 {
        (bytes as f64 - self.first as f64) / (self.last as f64 - self.first as f64)
    }

    fn column(self, bytes: u64, columns: usize) -> Option<usize> {
        let part = self.part(bytes);
        (0.0..=1.0).contains(&part).then(|| (part * (columns - 1) as f64).round() as usize)
    }

    fn bytes(self, column: usize, columns: usize) -> u64 {
        let part = column as f64 / (columns - 1) as f64;
        self.first.saturating_add((part * (self.last - self.first) as f64) as u64)
    }
}

/// Between points in a straight line; `None` outside.
fn ratio_at(points: &[CurvePoint], bytes: u64) -> Option<f64> {
    let next = points.partition_point(|point| point.bytes < bytes);
    let after = points.get(next)?;
    if after.bytes == bytes {
        return Some(after.miss_ratio);
    }
    let before = points.get(next.checked_sub(1)?)?;
    let width = after.bytes.saturating_sub(before.bytes).max(1);
    let part = bytes.saturating_sub(before.bytes) as f64 / width as f64;
    Some(before.miss_ratio + part * (after.miss_ratio - before.miss_ratio))
}

#[cfg(test)]
mod tests {
    use api::Recommendation;

    use super::*;

    fn point(mib: u64, miss_ratio: f64) -> CurvePoint {
        CurvePoint { bytes: mib << 20, miss_ratio }
    }

    #[test]
    fn a_curve_falls_from_left_to_right() {
        let curve = MemoryCurve {
            allocation_bytes: 100 << 20,
            points: vec![point(100, 1.0), point(150, 0.5), point(200, 0.0)],
            recommendation: Some(Recommendation { bytes: 150 << 20, ..Recommendation::default() }),
            ..MemoryCurve::default()
        };
        let lines = lines(&curve, 17, 7);
        assert_eq!(
            lines,
            [
                "1.00 |**",
                "     || **",
                "0.50 ||   ***",
                "     ||      **",
                "0.00 ||        **",
                "     +-----^-----",
                "      100M   200M",
            ]
        );
    }

    #[test]
    fn any_size_and_any_curve_can_be_drawn() {
        let strange = MemoryCurve {
            points: vec![point(1, f64::NAN), point(1, 7.0), point(3, -1.0)],
            allocation_bytes: u64::MAX,
            ..MemoryCurve::default()
        };
        for curve in [&strange, &MemoryCurve::default()] {
            for (width, height) in [(0, 0), (6, 2), (7, 3), (8, 4), (300, 100)] {
                assert!(lines(curve, width, height).len() <= height);
            }
        }
    }
}
