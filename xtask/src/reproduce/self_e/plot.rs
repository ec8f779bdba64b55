//! The confusion matrix as a picture.

use super::score::{Matrix, Sums, shown, title};
use crate::picture::{FONT, GRID, TEXT};
use anyhow::{Result, anyhow};
use insight::FrameClass;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const CELL: (u32, u32) = (86, 30);
/// For titles: above each matrix and left of the first.
const HEAD: u32 = 70;
const LEFT: u32 = 110;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// With the kernel's word, and without below.
pub(super) fn draw(file: &Path, title: &str, sums: &Sums) -> Result<()> {
    render(file, title, sums).map_err(|error| anyhow!("draw {}: {error}", file.display()))
}

fn render(file: &Path, title: &str, sums: &Sums) -> Result<(), Box<dyn Error>> {
    let classes = shown(&sums.matrix).len().max(shown(&sums.inferred).len()) as u32;
    let height = HEAD + CELL.1 * classes + 20;
    let root =
        SVGBackend::new(file, (LEFT + CELL.0 * classes + 20, 2 * height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(height);
    matrix(
        &above,
        &format!("{title}: rows are what frames are, columns what they were taken for"),
        &sums.matrix,
    )?;
    matrix(&below, "The same without the kernel's word on what is free", &sums.inferred)?;
    root.present()?;
    Ok(())
}

/// Each cell has its count, and a shade by its part of the row.
fn matrix(area: &Area<'_>, caption: &str, matrix: &Matrix) -> Result<(), Box<dyn Error>> {
    let style = |size, horizontal| {
        let at = Pos::new(horizontal, VPos::Center);
        (FONT, size).into_font().color(&TEXT).pos(at)
    };
    let classes = shown(matrix);
    let corner = |row: usize, column: usize| {
        ((LEFT + CELL.0 * column as u32) as i32, (HEAD + CELL.1 * row as u32) as i32)
    };
    let (half_width, half_height) = (CELL.0 as i32 / 2, CELL.1 as i32 / 2);
    area.draw(&Text::new(caption.to_owned(), (14, 20), style(16, HPos::Left)))?;
    for (row, &class) in classes.iter().enumerate() {
        let (x, y) = corner(row, 0);
        area.draw(&Text::new(title(class), (x - 8, y + half_height), style(13, HPos::Right)))?;
        let (x, y) = corner(0, row);
        area.draw(&Text::new(title(class), (x + half_width, y - 12), style(12, HPos::Center)))?;
        let counts = |taken_for: FrameClass| matrix[class as usize][taken_for as usize];
        let all: u64 = classes.iter().map(|&taken_for| counts(taken_for)).sum();
        for (column, &taken_for) in classes.iter().enumerate() {
            let (x, y) = corner(row, column);
            let (width, height) = (CELL.0 as i32, CELL.1 as i32);
            let count = counts(taken_for);
            let shade = shade(count, all, taken_for == class);
            area.draw(&Rectangle::new([(x, y), (x + width, y + height)], shade.filled()))?;
            area.draw(&Rectangle::new([(x, y), (x + width, y + height)], GRID))?;
            if count > 0 {
                let middle = (x + half_width, y + half_height);
                area.draw(&Text::new(count.to_string(), middle, style(12, HPos::Center)))?;
            }
        }
    }
    Ok(())
}

/// From white to green where it is right, to red where it is wrong; by the root, so that little shows too.
fn shade(count: u64, of: u64, right: bool) -> RGBColor {
    let depth = (count as f64 / of.max(1) as f64).sqrt();
    let less = |most: f64| (255.0 - most * depth) as u8;
    if right {
        RGBColor(less(130.0), less(60.0), less(130.0))
    } else {
        RGBColor(less(30.0), less(170.0), less(170.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_classes_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.svg");
        let mut sums = Sums::default();
        sums.matrix[FrameClass::Free as usize][FrameClass::Anonymous as usize] = 4321;
        draw(&file, "Reported", &sums).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for label in ["free", "anonymous", "4321", "Reported"] {
            assert!(text.contains(label), "{label}");
        }
        assert!(!text.contains("page table"));
    }

    #[test]
    fn what_is_wrong_is_red_and_nothing_is_white() {
        assert_eq!(shade(0, 0, true), RGBColor(255, 255, 255));
        let wrong = shade(1, 1, false);
        assert!(wrong.0 > wrong.1 && wrong.1 == wrong.2);
    }
}
