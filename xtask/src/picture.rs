//! What all pictures have in common.

use plotters::coord::CoordTranslate;
use plotters::prelude::*;
use std::error::Error;

pub(crate) const FONT: &str = "sans-serif";
pub(crate) const TEXT: RGBColor = RGBColor(50, 50, 50);
pub(crate) const GRID: RGBColor = RGBColor(232, 232, 232);

/// The names of the series that were drawn, at the top right.
pub(crate) fn legend<'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
) -> Result<(), Box<dyn Error>> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(GRID)
        .label_font((FONT, 13).with_color(TEXT))
        .draw()?;
    Ok(())
}
