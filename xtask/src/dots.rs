//! A picture of figures of several kinds, many rows of them: a dot a figure, on a logarithmic scale.

use crate::picture::{FONT, GRID, TEXT, legend};
use anyhow::{Result, anyhow};
use plotters::coord::combinators::LogCoord;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const COLOURS: [RGBColor; 6] = [
    RGBColor(196, 52, 32),
    RGBColor(38, 84, 138),
    RGBColor(120, 140, 60),
    RGBColor(150, 150, 150),
    RGBColor(200, 140, 30),
    RGBColor(120, 70, 140),
];
const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 19;
const MARGINS: u32 = 130;
/// Rows above the first, for the legend.
const LEGEND_ROWS: u32 = 4;

/// The picture.
pub(crate) struct Dots {
    pub(crate) title: String,
    /// Below the scale.
    pub(crate) unit: String,
    /// What there is a colour for.
    pub(crate) series: Vec<String>,
    pub(crate) rows: Vec<DotRow>,
}

pub(crate) struct DotRow {
    pub(crate) name: String,
    /// One for each of the series, in their order.
    pub(crate) figures: Vec<Option<f64>>,
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn Error>>;

impl Dots {
    pub(crate) fn draw(&self, file: &Path) -> Result<()> {
        self.render(file).map_err(|error| anyhow!("draw {}: {error}", file.display()))
    }

    fn render(&self, file: &Path) -> Drawn {
        let size = (WIDTH, MARGINS + ROW_HEIGHT * (self.rows.len() as u32 + LEGEND_ROWS));
        let root = SVGBackend::new(file, size).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, 20).with_color(TEXT))
            .margin(14)
            .margin_right(28)
            .x_label_area_size(40)
            .y_label_area_size(150)
            .build_cartesian_2d(
                self.bounds().log_scale(),
                0.0..self.rows.len() as f64 + f64::from(LEGEND_ROWS),
            )?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .x_desc(&self.unit)
            .x_label_formatter(&|figure| format!("{figure}"))
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .label_style((FONT, 13).with_color(TEXT))
            .draw()?;
        self.lines(&mut chart)?;
        for (number, name) in self.series.iter().enumerate() {
            self.dots(&mut chart, number, name)?;
        }
        legend(&mut chart)?;
        root.present()?;
        Ok(())
    }

    /// From the least to the most, 1 among them; a logarithm knows nothing else.
    fn bounds(&self) -> std::ops::Range<f64> {
        let figures = self.rows.iter().flat_map(|row| &row.figures).flatten();
        let (least, most) = figures
            .filter(|figure| figure.is_finite() && **figure > 0.0)
            .fold((1.0_f64, 2.0_f64), |(least, most), &figure| {
                (least.min(figure), most.max(figure))
            });
        least / 1.3..most * 1.3
    }

    /// The first at the top.
    fn height(&self, row: usize) -> f64 {
        (self.rows.len() - row) as f64 - 0.5
    }

    /// A thin line and a name for each row, and a thick line at 1.
    fn lines(&self, chart: &mut Chart<'_, '_>) -> Drawn {
        let bounds = self.bounds();
        let right = Pos::new(HPos::Right, VPos::Center);
        let style = (FONT, 13).into_font().color(&TEXT).pos(right);
        for (number, row) in self.rows.iter().enumerate() {
            let y = self.height(number);
            chart.draw_series([PathElement::new([(bounds.start, y), (bounds.end, y)], GRID)])?;
            let name = Text::new(row.name.clone(), (-8, 0), style.clone());
            chart.draw_series([EmptyElement::at((bounds.start, y)) + name])?;
        }
        let top = self.rows.len() as f64;
        chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, top)], TEXT)])?;
        Ok(())
    }

    fn dots(&self, chart: &mut Chart<'_, '_>, series: usize, name: &str) -> Drawn {
        let colour = COLOURS[series % COLOURS.len()];
        let places = self.rows.iter().enumerate().filter_map(|(number, row)| {
            let figure = row.figures.get(series).copied().flatten()?;
            (figure.is_finite() && figure > 0.0).then(|| (figure, self.height(number)))
        });
        chart
            .draw_series(places.map(|place| Circle::new(place, 4, colour.filled())))?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_names_and_a_dot_for_each_figure_that_a_logarithm_has() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.svg");
        let row = |name: &str, figures: &[Option<f64>]| DotRow {
            name: name.into(),
            figures: figures.to_vec(),
        };
        let rows = vec![
            row("rdtsc", &[Some(2030.0), Some(216.0)]),
            row("cli", &[None, Some(3.0)]),
            row("nothing", &[Some(0.0), Some(f64::NAN)]),
        ];
        let series = vec!["trap".into(), "in line".into()];
        let dots = Dots { title: "What it costs".into(), unit: "cycles".into(), series, rows };
        dots.draw(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for label in ["rdtsc", "cli", "nothing", "trap", "in line", "What it costs", "cycles"] {
            assert!(text.contains(label), "{label}");
        }
        // Three figures, one dot each in the legend.
        assert_eq!(text.matches("<circle").count(), 5);
    }
}
