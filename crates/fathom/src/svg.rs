//! What the pictures have in common: a frame, in which a ratio is drawn over something.

use std::fmt::Write as _;

pub(crate) const WIDTH: f64 = 720.0;
pub(crate) const HEIGHT: f64 = 400.0;
pub(crate) const LEFT: f64 = 60.0;
pub(crate) const TOP: f64 = 50.0;
pub(crate) const PLOT_WIDTH: f64 = 630.0;
pub(crate) const PLOT_HEIGHT: f64 = 290.0;

/// The beginning of the file: a title, a frame, and a scale of ratios. `</svg>` ends it.
pub(crate) fn begin(title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    caption(&mut svg, LEFT, 24.0, "start", title);
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{PLOT_WIDTH}\" height=\"{PLOT_HEIGHT}\" fill=\"none\" stroke=\"#888\"/>"
    );
    for quarter in 0..=4 {
        let ratio = f64::from(quarter) / 4.0;
        caption(&mut svg, LEFT - 8.0, y(ratio) + 4.0, "end", &format!("{ratio:.2}"));
    }
    svg
}

/// Where a ratio is. What is none is at the bottom.
pub(crate) fn y(ratio: f64) -> f64 {
    let ratio = if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, 1.0) };
    TOP + (1.0 - ratio) * PLOT_HEIGHT
}

/// Words at a place.
pub(crate) fn caption(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

/// A line through points.
pub(crate) fn polyline(svg: &mut String, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let points = points.join(" ");
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
    );
}
