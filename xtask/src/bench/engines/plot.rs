//! The picture: how many times the first engine's time each engine takes, workload by workload.

use super::report::{Report, Row};
use crate::dots::{DotRow, Dots};
use anyhow::Result;
use std::path::Path;

pub(super) fn draw(file: &Path, report: &Report) -> Result<()> {
    let (first, others) = report.engines.split_first().unwrap_or((&"", &[]));
    let row = |row: &Row| DotRow {
        name: row.workload.name.clone(),
        figures: others.iter().map(|engine| row.ratio(engine)).collect(),
    };
    let dots = Dots {
        title: format!("Time taken, times {first}"),
        unit: "logarithmic; left is faster".into(),
        series: others.iter().map(|engine| (*engine).to_owned()).collect(),
        rows: report.rows.iter().map(row).collect(),
    };
    dots.draw(file)
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
