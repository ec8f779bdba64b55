//! What random frames say of a guest that touches known sizes (figure 6 of the paper), against all its accesses.

use super::super::digits;
use super::super::place::Place;
use super::super::wss::{FRAMES, SERIES, Step, draw_lines, touch};
use crate::kit::Kit;
use crate::machine::MEMORY_MIB;
use anyhow::{Result, anyhow};
use serde::Serialize;
use std::path::Path;

/// In a period of the paper's, of 30 s.
const PUBLISHED_FRAMES: u32 = 100;
/// One standard deviation of [`PUBLISHED_FRAMES`] where half of all is active: what an estimate may be off in the mean.
const POINTS_MOST: f64 = 5.0;

#[derive(Serialize)]
pub(super) struct Figures {
    frames: u32,
    memory_mib: u64,
    steps: Vec<Step>,
}

pub(super) fn measure(place: &Place, kit: &Kit, quick: bool, pictures: &Path) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let toucher = touch(place, kit, MEMORY_MIB, quick, folder.path())?;
    let file = pictures.join("esx-sampling.svg");
    let series: Vec<_> = SERIES.into_iter().zip(toucher.series).collect();
    draw_lines(&file, "A toucher, by random frames", ["seconds", "MiB"], &series)
        .map_err(|error| anyhow!("draw {}: {error}", file.display()))?;
    Ok(Figures { frames: FRAMES, memory_mib: toucher.memory_mib, steps: toucher.steps })
}

/// One standard deviation of a part that `frames` random ones tell, in points.
fn deviation(part: f64, frames: u32) -> f64 {
    100.0 * (part * (1.0 - part) / f64::from(frames)).max(0.0).sqrt()
}

impl Figures {
    pub(super) fn table(&self) -> String {
        let mut table = format!(
            "sampling: {} random frames in 3 s, of {} MiB; the paper has {PUBLISHED_FRAMES} in 30 s, and tracks 50 to \
             250 MB\nMiB; errors in percent of all memory, beside one standard deviation of so many frames\n\
             {:>8}{:>8}{:>8}{:>8}{:>8}{:>10}{:>10}{:>10}{:>10}\n",
            self.frames,
            self.memory_mib,
            "touched",
            "used",
            "sample",
            "largest",
            "periods",
            "error",
            "averaged",
            format!("of {}", self.frames),
            format!("of {PUBLISHED_FRAMES}"),
        );
        for step in &self.steps {
            let part = step.used_mib.map(|used| used / self.memory_mib as f64);
            let deviation = |frames| digits(part.map(|part| deviation(part, frames)));
            table += &format!(
                "{:>8.0}{:>8}{:>8}{:>8}{:>8}{:>10}{:>10}{:>10}{:>10}\n",
                step.touched_mib,
                digits(step.used_mib),
                digits(step.sample_mib),
                digits(step.largest_mib),
                step.periods,
                digits(step.sample_points),
                digits(step.largest_points),
                deviation(self.frames),
                deviation(PUBLISHED_FRAMES),
            );
        }
        table
    }

    /// A sample against the log of the same time; that averages are slow to fall is their purpose.
    pub(super) fn troubles(&self) -> Vec<String> {
        let periods: usize = self.steps.iter().map(|step| step.periods).sum();
        if periods == 0 {
            return vec!["sampling: no period has ended while a size was touched".into()];
        }
        let off = self.steps.iter().filter_map(|step| Some((step, step.sample_points?)));
        let off = off.filter(|(_, points)| *points > POINTS_MOST);
        let told = off.map(|(step, points)| {
            format!(
                "sampling: {points:.2} points off where {:.0} MiB are touched, not {POINTS_MOST}",
                step.touched_mib
            )
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(sample_points: Option<f64>, periods: usize) -> Figures {
        let step = Step { touched_mib: 30.0, sample_points, periods, ..Step::default() };
        Figures { frames: 1000, memory_mib: 256, steps: vec![step] }
    }

    #[test]
    fn the_published_sample_is_five_points_off_at_a_half() {
        assert!((deviation(0.5, PUBLISHED_FRAMES) - POINTS_MOST).abs() < 1e-9);
        assert!(deviation(0.5, 1000) < 1.6);
    }

    #[test]
    fn what_is_off_and_what_was_not_sampled_is_told() {
        assert!(figures(Some(4.9), 2).troubles().is_empty());
        assert_eq!(figures(Some(5.1), 2).troubles().len(), 1);
        assert_eq!(figures(None, 0).troubles().len(), 1);
        let table = figures(Some(1.25), 2).table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2].len(), lines[3].len(), "{table}");
    }
}
