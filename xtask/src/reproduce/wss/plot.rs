//! Pictures of a load: working sets over time, and miss-ratio curves.

use super::run::Recording;
use crate::picture::{FONT, GRID, TEXT, legend};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (1000, 420);
const COLOURS: [RGBColor; 6] = [
    RGBColor(150, 150, 150),
    RGBColor(196, 52, 32),
    RGBColor(38, 84, 138),
    RGBColor(120, 140, 60),
    RGBColor(200, 140, 30),
    RGBColor(120, 70, 140),
];

/// A line with its name.
pub(in super::super) type Series = (&'static str, Vec<(f64, f64)>);

pub(super) fn draw(load: &str, recording: &Recording, folder: &Path) -> Result<()> {
    let [over_time, by_size] =
        ["time", "curve"].map(|what| folder.join(format!("wss-{load}-{what}.svg")));
    let axes = ["seconds", "MiB"];
    lines(&over_time, &format!("Working set of `{load}`"), axes, &working_sets(recording))
        .map_err(|error| anyhow!("draw {}: {error}", over_time.display()))?;
    let axes = ["memory, MiB", "part of references (frames used in 20 ms) that miss"];
    lines(&by_size, &format!("Miss ratio of `{load}`"), axes, &curves(recording))
        .map_err(|error| anyhow!("draw {}: {error}", by_size.display()))
}

fn working_sets(recording: &Recording) -> Vec<Series> {
    let zero = recording.lines.first().map_or(0, |line| line.unix_ns);
    let seconds = |at: u64| at.saturating_sub(zero) as f64 / 1e9;
    let mut series: Vec<Series> = Vec::new();
    if let Some(truth) = &recording.truth {
        let epochs = recording.lines.iter().zip(&truth.epochs);
        let points =
            epochs.map(|(line, epoch)| (seconds(line.unix_ns), f64::from(epoch[0]) / 256.0));
        series.push(("truth, 1 s", points.collect()));
    }
    for method in ["census", "order", "sampling", "scan"] {
        let points = recording
            .lines
            .iter()
            .filter_map(|line| Some((seconds(line.unix_ns), line.pages(method)? / 256.0)));
        series.push((method, points.collect()));
    }
    series
}

fn curves(recording: &Recording) -> Vec<Series> {
    let points = |curve: &insight::MissRatioCurve| {
        curve.points().map(|(pages, ratio)| (pages as f64 / 256.0, ratio)).collect()
    };
    let mut series = Vec::new();
    if let Some(truth) = &recording.truth {
        series.extend([("exact", points(&truth.curve)), ("exact, by 2 ms", points(&truth.fine))]);
    }
    if let Some(curve) = recording.lines.last().and_then(super::log::Line::curve) {
        series.push(("sampled", points(&curve)));
    }
    series
}

/// Lines from point to point, the first one thick.
pub(in super::super) fn lines(
    file: &Path,
    title: &str,
    axes: [&str; 2],
    series: &[Series],
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || series.iter().flat_map(|(_, points)| points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.01, f64::max) * 1.08;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 20).with_color(TEXT))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(axes[0])
        .y_desc(axes[1])
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .label_style((FONT, 13).with_color(TEXT))
        .draw()?;
    for (number, (name, points)) in series.iter().enumerate() {
        let style = COLOURS[number % COLOURS.len()].stroke_width(if number == 0 { 4 } else { 2 });
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    legend(&mut chart)?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_its_lines_and_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.svg");
        let series = [("truth", vec![(0.0, 1.0), (1.0, 2.0)]), ("nothing", vec![])];
        lines(&file, "Working set", ["seconds", "MiB"], &series).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for label in ["truth", "nothing", "Working set", "seconds", "polyline"] {
            assert!(text.contains(label), "{label}");
        }
    }
}
