//! The picture: how many times the first engine's time each engine takes, workload by workload.

use super::report::Report;
use anyhow::{Result, anyhow};
use plotters::coord::combinators::LogCoord;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const FONT: &str = "sans-serif";
const TEXT: RGBColor = RGBColor(50, 50, 50);
const GRID: RGBColor = RGBColor(232, 232, 232);
/// In the order of the engines, after the first.
const COLOURS: [RGBColor; 4] =
    [RGBColor(196, 52, 32), RGBColor(38, 84, 138), RGBColor(120, 140, 60), RGBColor(150, 150, 150)];
const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 19;
const MARGINS: u32 = 130;
/// Rows above the first, for the legend.
const LEGEND_ROWS: u32 = 4;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn Error>>;

pub(super) fn draw(file: &Path, report: &Report) -> Result<()> {
    render(file, report).map_err(|error| anyhow!("draw {}: {error}", file.display()))
}

fn render(file: &Path, report: &Report) -> Drawn {
    let size = (WIDTH, MARGINS + ROW_HEIGHT * (report.rows.len() as u32 + LEGEND_ROWS));
    let root = SVGBackend::new(file, size).into_drawing_area();
    root.fill(&WHITE)?;
    let first = report.engines.first().copied().unwrap_or_default();
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Time taken, times {first}"), (FONT, 20).with_color(TEXT))
        .margin(14)
        .margin_right(28)
        .x_label_area_size(40)
        .y_label_area_size(130)
        .build_cartesian_2d(
            bounds(report).log_scale(),
            0.0..report.rows.len() as f64 + f64::from(LEGEND_ROWS),
        )?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_desc("logarithmic; left is faster")
        .x_label_formatter(&|ratio| format!("{ratio}"))
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .label_style((FONT, 13).with_color(TEXT))
        .draw()?;
    rows(&mut chart, report)?;
    for (number, engine) in report.engines.iter().skip(1).enumerate() {
        dots(&mut chart, report, engine, COLOURS[number % COLOURS.len()])?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(GRID)
        .label_font((FONT, 13).with_color(TEXT))
        .draw()?;
    root.present()?;
    Ok(())
}

/// From the fastest to the slowest, 1 among them.
fn bounds(report: &Report) -> std::ops::Range<f64> {
    let ratios = report
        .rows
        .iter()
        .flat_map(|row| report.engines.iter().filter_map(|engine| row.ratio(engine)));
    let (least, most) =
        ratios.fold((1.0_f64, 2.0_f64), |(least, most), ratio| (least.min(ratio), most.max(ratio)));
    least / 1.3..most * 1.3
}

/// The first at the top.
fn height(report: &Report, row: usize) -> f64 {
    (report.rows.len() - row) as f64 - 0.5
}

/// A thin line and a name for each workload, and a thick line at 1.
fn rows(chart: &mut Chart<'_, '_>, report: &Report) -> Drawn {
    let bounds = bounds(report);
    let right = Pos::new(HPos::Right, VPos::Center);
    let style = (FONT, 13).into_font().color(&TEXT).pos(right);
    for (number, row) in report.rows.iter().enumerate() {
        let y = height(report, number);
        chart.draw_series([PathElement::new([(bounds.start, y), (bounds.end, y)], GRID)])?;
        let name = Text::new(row.workload.name.clone(), (-8, 0), style.clone());
        chart.draw_series([EmptyElement::at((bounds.start, y)) + name])?;
    }
    let top = report.rows.len() as f64;
    chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, top)], TEXT)])?;
    Ok(())
}

fn dots(
    chart: &mut Chart<'_, '_>,
    report: &Report,
    engine: &'static str,
    colour: RGBColor,
) -> Drawn {
    let places = report
        .rows
        .iter()
        .enumerate()
        .filter_map(|(number, row)| Some((row.ratio(engine)?, height(report, number))));
    chart
        .draw_series(places.map(|place| Circle::new(place, 4, colour.filled())))?
        .label(engine)
        .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_picture_has_a_row_for_each_workload_and_a_dot_for_each_ratio() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.svg");
        draw(&file, &report()).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for label in ["alu", "sort", "x87", "fathom", "qemu", "times native"] {
            assert!(text.contains(label), "{label}");
        }
        // Three ratios of Fathom, two of QEMU, one dot each in the legend.
        assert_eq!(text.matches("<circle").count(), 7);
    }
}
