//! The picture: measured working set over time, before it what the guest really touched.

use super::phases::Phase;
use super::report::Sample;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (1000, 480);
const TRUTH: RGBColor = RGBColor(200, 212, 226);
const SECOND: RGBColor = RGBColor(196, 62, 42);
const TEN: RGBColor = RGBColor(38, 84, 138);

/// What a line is called, its colour, and the figure it shows.
type Line = (&'static str, RGBColor, fn(&Sample) -> Option<u64>);

/// `idle` is the idle guest's own working set, added to what the workload touches.
pub(super) fn draw(file: &Path, phases: &[Phase], samples: &[Sample], idle: u64) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", file.display());
    render(file, phases, samples, idle).map_err(|error| wrong(&error))
}

fn render(
    file: &Path,
    phases: &[Phase],
    samples: &[Sample],
    idle: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let end = samples.iter().map(|s| s.t_seconds).chain(phases.iter().map(|p| p.end));
    let end = end.fold(1.0, f64::max);
    let seen = samples.iter().filter(|s| s.t_seconds > start_of(phases));
    let most = seen.flat_map(|s| [s.window_1s_bytes, s.window_10s_bytes]).flatten();
    let most = most.chain(phases.iter().map(|p| p.bytes + idle)).max().unwrap_or(1);
    let mut chart = ChartBuilder::on(&root)
        .caption("Working set of a Debian guest of 256 MiB", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..mib(most) * 1.1)?;
    chart.configure_mesh().x_desc("seconds").y_desc("MiB").light_line_style(WHITE).draw()?;
    let truth = phases.iter().filter(|phase| phase.bytes > 0);
    chart
        .draw_series(truth.map(|phase| {
            let corners = [(phase.begin, 0.0), (phase.end, mib(phase.bytes + idle))];
            Rectangle::new(corners, TRUTH.filled())
        }))?
        .label("touched by the guest, as it says")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 20, y + 5)], TRUTH.filled()));
    let lines: [Line; 2] = [
        ("measured, last 10 s", TEN, |sample| sample.window_10s_bytes),
        ("measured, last 1 s", SECOND, |sample| sample.window_1s_bytes),
    ];
    for (label, colour, window) in lines {
        let points = samples.iter().filter_map(|s| Some((s.t_seconds, mib(window(s)?))));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    let labels = SeriesLabelPosition::UpperLeft;
    chart
        .configure_series_labels()
        .position(labels)
        .background_style(WHITE)
        .border_style(TRUTH)
        .draw()?;
    root.present()?;
    Ok(())
}

/// Booting touches more than any phase: the picture need not show all of it.
fn start_of(phases: &[Phase]) -> f64 {
    phases.first().map_or(0.0, |phase| phase.begin + 2.0)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::super::phases::Phases;
    use super::*;

    #[test]
    fn a_picture_has_the_three_series() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.svg");
        let samples: Vec<Sample> = (1..20)
            .map(|second| Sample {
                t_seconds: f64::from(second),
                window_1s_bytes: Some(30 << 20),
                window_10s_bytes: Some(40 << 20),
                window_60s_bytes: None,
            })
            .collect();
        draw(&file, &Phases::default().done, &samples, 0).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for label in ["touched by the guest", "last 10 s", "last 1 s", "MiB", "seconds"] {
            assert!(text.contains(label), "{label}");
        }
        assert!(text.contains("polyline"));
    }
}
