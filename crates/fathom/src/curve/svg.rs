//! A curve as a picture.

use std::fmt::Write as _;

use api::MemoryCurve;

use super::{plot, what};
use crate::svg::{HEIGHT, LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, WIDTH, begin, caption, polyline, y};
use crate::text;

/// The whole file.
pub(super) fn drawn(name: &str, curve: &MemoryCurve) -> String {
    let mut svg = begin(&format!("VM {name}. {}", what(curve)));
    match plot::span(curve) {
        Some(span) => line(&mut svg, curve, span),
        None => caption(&mut svg, WIDTH / 2.0, HEIGHT / 2.0, "middle", "nothing is known yet"),
    }
    svg + "</svg>\n"
}

fn line(svg: &mut String, curve: &MemoryCurve, span: plot::Span) {
    let x = |bytes: u64| LEFT + span.part(bytes) * PLOT_WIDTH;
    let mut marks = vec![(curve.allocation_bytes, "#555", "now")];
    let recommended = curve.recommendation.as_ref();
    marks.extend(recommended.map(|recommended| (recommended.bytes, "#2a2", "recommended")));
    for (row, (bytes, colour, name)) in marks.into_iter().enumerate() {
        let (x, bottom) = (x(bytes), TOP + PLOT_HEIGHT);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{colour}\" stroke-dasharray=\"4 3\"/>"
        );
        // One below the other: they may be close.
        let at = TOP + PLOT_HEIGHT + 36.0 + 16.0 * row as f64;
        let anchor = if span.part(bytes) > 0.5 { "end" } else { "start" };
        caption(svg, x, at, anchor, &format!("{name}: {}", text::bytes(bytes)));
    }
    caption(svg, LEFT, TOP + PLOT_HEIGHT + 18.0, "start", &text::bytes(span.first));
    caption(svg, LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT + 18.0, "end", &text::bytes(span.last));
    let points = curve.points.iter().map(|point| (x(point.bytes), y(point.miss_ratio)));
    polyline(svg, points, "#c33");
}
