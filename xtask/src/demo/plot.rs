//! The picture: measured working set over time, behind it what the guest really touched.

use super::phases::Row;
use super::report::Sample;
use crate::picture::{FONT, GRID, TEXT};
use anyhow::{Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (1000, 500);
const TRUTH: RGBColor = RGBColor(214, 224, 236);
const EDGE: RGBColor = RGBColor(132, 152, 178);
const RESIDENT: RGBColor = RGBColor(150, 150, 150);
const SECOND: RGBColor = RGBColor(196, 52, 32);
const TEN: RGBColor = RGBColor(38, 84, 138);
/// Above the highest bar, for the labels.
const HEADROOM: f64 = 1.08;
/// Of the boot, so much is shown at most.
const BOOT_SECONDS: f64 = 12.0;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn Error>>;

pub(super) fn draw(file: &Path, rows: &[Row], samples: &[Sample]) -> Result<()> {
    render(file, rows, samples).map_err(|error| anyhow!("draw {}: {error}", file.display()))
}

fn render(file: &Path, rows: &[Row], samples: &[Sample]) -> Drawn {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (from, to) = seconds(rows, samples);
    let samples: Vec<Sample> =
        samples.iter().filter(|s| (from..=to).contains(&s.t_seconds)).copied().collect();
    let mut chart = ChartBuilder::on(&root)
        .caption("Working set of a Debian guest of 256 MiB", (FONT, 21).with_color(TEXT))
        .margin(14)
        .margin_right(28)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(from..to, 0.0..highest(rows, &samples) * HEADROOM)?;
    let whole = |value: &f64| format!("{value:.0}");
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("MiB")
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .label_style((FONT, 13).with_color(TEXT))
        .draw()?;
    truths(&mut chart, rows)?;
    lines(&mut chart, &samples)?;
    titles(&mut chart, rows)?;
    legend(&mut chart)?;
    root.present()?;
    Ok(())
}

/// What to show: a long boot not from its beginning.
fn seconds(rows: &[Row], samples: &[Sample]) -> (f64, f64) {
    let first = rows.iter().map(|row| row.phase.begin).fold(f64::INFINITY, f64::min);
    let from = if first.is_finite() { (first - BOOT_SECONDS).max(0.0) } else { 0.0 };
    let ends = samples.iter().map(|s| s.t_seconds).chain(rows.iter().map(|row| row.phase.end));
    (from, ends.fold(from + 1.0, f64::max))
}

fn highest(rows: &[Row], samples: &[Sample]) -> f64 {
    let seen = samples
        .iter()
        .flat_map(|s| [s.window_1s_bytes, s.window_10s_bytes, s.resident_bytes])
        .flatten();
    mib(seen.chain(rows.iter().map(Row::truth)).max().unwrap_or(1 << 20))
}

/// A bar for each phase.
fn truths(chart: &mut Chart<'_, '_>, rows: &[Row]) -> Drawn {
    let bar = |row: &Row| [(row.phase.begin, 0.0), (row.phase.end, mib(row.truth()))];
    let busy = || rows.iter().filter(|row| row.phase.bytes > 0);
    chart
        .draw_series(busy().map(|row| Rectangle::new(bar(row), TRUTH.filled())))?
        .label("true: what the guest touches, as it says")
        .legend(|(x, y)| Rectangle::new([(x, y - 6), (x + 22, y + 5)], TRUTH.filled()));
    let top = |row: &Row| [(row.phase.begin, mib(row.truth())), (row.phase.end, mib(row.truth()))];
    chart.draw_series(busy().map(|row| PathElement::new(top(row), EDGE.stroke_width(1))))?;
    Ok(())
}

fn lines(chart: &mut Chart<'_, '_>, samples: &[Sample]) -> Drawn {
    let points = |window: fn(&Sample) -> Option<u64>| {
        samples.iter().filter_map(move |s| Some((s.t_seconds, mib(window(s)?))))
    };
    let key = |colour: RGBColor, width| {
        move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(width))
    };
    chart
        .draw_series(LineSeries::new(points(|s| s.resident_bytes), RESIDENT.stroke_width(1)))?
        .label("resident: what the host holds for it")
        .legend(key(RESIDENT, 1));
    chart
        .draw_series(LineSeries::new(points(|s| s.window_10s_bytes), TEN.stroke_width(1)))?
        .label("measured: working set of the last 10 s")
        .legend(key(TEN, 1));
    // Of the second before each sample, so drawn over that second.
    let seconds = points(|s| s.window_1s_bytes);
    let steps = seconds.flat_map(|(at, value)| [(at - 1.0, value), (at, value)]);
    chart
        .draw_series(LineSeries::new(steps, SECOND.stroke_width(2)))?
        .label("measured: working set of the last 1 s")
        .legend(key(SECOND, 2));
    Ok(())
}

/// Over each bar: what the guest does, the truth and the measurement.
fn titles(chart: &mut Chart<'_, '_>, rows: &[Row]) -> Drawn {
    let centred = Pos::new(HPos::Center, VPos::Bottom);
    let bold = (FONT, 13).into_font().style(FontStyle::Bold).color(&TEXT).pos(centred);
    let plain = (FONT, 12).into_font().color(&TEXT).pos(centred);
    for row in rows.iter().filter(|row| !row.phase.is_base()) {
        let at = ((row.phase.begin + row.phase.end) / 2.0, mib(row.truth()));
        let measured = row.measured.map_or("none".into(), |bytes| format!("{:.1}", mib(bytes)));
        let said = format!("true {:.1}", mib(row.truth()));
        let lines = [
            (row.phase.short_title(), &bold, -41),
            (said, &plain, -26),
            (format!("measured {measured}"), &plain, -12),
        ];
        for (text, style, up) in lines {
            let label = Text::new(text, (0, up), style.clone());
            chart.draw_series([EmptyElement::at(at) + label])?;
        }
    }
    Ok(())
}

fn legend<'a>(chart: &mut Chart<'a, 'a>) -> Drawn {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(RGBColor(220, 220, 220))
        .label_font((FONT, 13).with_color(TEXT))
        .legend_area_size(30)
        .draw()?;
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::super::phases::Phase;
    use super::*;

    #[test]
    fn a_picture_has_its_series_and_the_figures_of_each_phase() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.svg");
        let samples: Vec<Sample> = (1..20)
            .map(|second| Sample {
                t_seconds: f64::from(second),
                resident_bytes: Some(50 << 20),
                window_1s_bytes: Some(31 << 20),
                window_10s_bytes: Some(40 << 20),
                window_60s_bytes: None,
            })
            .collect();
        let phase = Phase::for_tests("touch", 30 << 20, 3.0..12.0);
        let row = Row { phase, base: 1 << 20, measured: Some(31 << 20) };
        draw(&file, &[row], &samples).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for label in ["touch 30 MiB", "measured 31.0", "last 10 s", "last 1 s", "resident"] {
            assert!(text.contains(label), "{label}");
        }
        assert!(text.contains("polyline"));
    }
}
