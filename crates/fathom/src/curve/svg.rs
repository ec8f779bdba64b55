//! A curve as a picture.

use std::fmt::Write as _;

use api::MemoryCurve;

use super::{plot, what};
use crate::text;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const PLOT_WIDTH: f64 = 630.0;
const PLOT_HEIGHT: f64 = 290.0;

/// The whole file.
pub(super) fn drawn(name: &str, curve: &MemoryCurve) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    caption(&mut svg, LEFT, 24.0, "start", &format!("VM {name}. {}", what(curve)));
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{PLOT_WIDTH}\" height=\"{PLOT_HEIGHT}\" fill=\"none\" stroke=\"#888\"/>"
    );
    for quarter in 0..=4 {
        let ratio = f64::from(quarter) / 4.0;
        caption(&mut svg, LEFT - 8.0, y(ratio) + 4.0, "end", &format!("{ratio:.2}"));
    }
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
    let points: Vec<String> = curve
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.bytes), y(point.miss_ratio)))
        .collect();
    let points = points.join(" ");
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"#c33\" stroke-width=\"2\"/>"
    );
}

/// What is no ratio is at the bottom.
fn y(ratio: f64) -> f64 {
    let ratio = if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, 1.0) };
    TOP + (1.0 - ratio) * PLOT_HEIGHT
}

fn caption(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}
