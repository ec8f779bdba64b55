//! How right it was.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// As `insight::FrameClass` has them in order.
const CLASSES: [&str; 10] = [
    "page table",
    "file cache",
    "anonymous",
    "kernel text",
    "kernel",
    "dma ring",
    "free",
    "zero",
    "ballooned",
    "untouched",
];
/// What is inferred: of the others the machine knows by itself.
const INFERRED: [usize; 7] = [0, 1, 2, 3, 4, 6, 7];
const FREE: usize = 6;
/// With every free page reported: as it is, and with what looks vacated counted as free.
const ENOUGH: [f64; 2] = [0.9, 0.95];

/// What a look says; the fields that count here.
#[derive(Deserialize)]
pub(super) struct Look {
    comparison: Comparison,
    events_lost: u64,
    sweep_seconds: f64,
    sweeps: u64,
    longest_sweep_seconds: f64,
}

#[derive(Deserialize)]
struct Comparison {
    matrix: [[u64; CLASSES.len()]; CLASSES.len()],
    vacated: (u64, u64),
    used_called_free: u64,
    unknown: u64,
    spaces: (u64, u64, u64),
}

/// Of several looks.
#[derive(Clone, Default, Serialize)]
pub(super) struct Sums {
    looks: u64,
    /// Rows: what frames are; columns: what they were taken for.
    matrix: [[u64; CLASSES.len()]; CLASSES.len()],
    /// Look vacated: (free, in use).
    vacated: (u64, u64),
    used_called_free: u64,
    unknown: u64,
    /// Address spaces: the kernel's, those seen, those in both.
    spaces: (u64, u64, u64),
    events_lost: u64,
    sweep_seconds: f64,
    sweeps: u64,
    longest_sweep_seconds: f64,
}

#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Score {
    frames: u64,
    precision: Option<f64>,
    recall: Option<f64>,
    f1: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Scores {
    classes: [Score; CLASSES.len()],
    /// Of the classes that are inferred.
    macro_f1: f64,
    /// Of all.
    macro_f1_all: f64,
    /// If all frames were free that look vacated, and those that are in use were then called free.
    macro_f1_vacated_is_free: f64,
}

impl Sums {
    pub(super) fn take(&mut self, look: &Look) -> Result<()> {
        if look.sweeps == 0 {
            bail!("nothing was swept yet");
        }
        let Comparison { matrix, vacated, used_called_free, unknown, spaces } = look.comparison;
        let one = Self {
            looks: 1,
            matrix,
            vacated,
            used_called_free,
            unknown,
            spaces,
            events_lost: 0,
            sweep_seconds: 0.0,
            sweeps: 0,
            longest_sweep_seconds: look.longest_sweep_seconds,
        };
        self.add(&one);
        // These add up in the guest already.
        self.events_lost = look.events_lost;
        (self.sweep_seconds, self.sweeps) = (look.sweep_seconds, look.sweeps);
        Ok(())
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (row, others) in self.matrix.iter_mut().zip(other.matrix) {
            row.iter_mut().zip(others).for_each(|(sum, count)| *sum += count);
        }
        self.looks += other.looks;
        self.vacated = (self.vacated.0 + other.vacated.0, self.vacated.1 + other.vacated.1);
        self.used_called_free += other.used_called_free;
        self.unknown += other.unknown;
        let (told, seen, both) = other.spaces;
        self.spaces = (self.spaces.0 + told, self.spaces.1 + seen, self.spaces.2 + both);
        self.events_lost += other.events_lost;
        self.sweep_seconds += other.sweep_seconds;
        self.sweeps += other.sweeps;
        self.longest_sweep_seconds = self.longest_sweep_seconds.max(other.longest_sweep_seconds);
    }

    pub(super) fn scores(&self) -> Scores {
        let classes = scores_of(&self.matrix);
        let mut vacated = self.matrix;
        // Frames that look vacated are called anonymous.
        let moved = self.vacated.0.min(vacated[FREE][2]);
        vacated[FREE][2] -= moved;
        vacated[FREE][FREE] += moved;
        let all: Vec<_> = (0..CLASSES.len()).collect();
        Scores {
            macro_f1: mean(&classes, &INFERRED),
            macro_f1_all: mean(&classes, &all),
            macro_f1_vacated_is_free: mean(&scores_of(&vacated), &INFERRED),
            classes,
        }
    }

    pub(super) fn matrix_table(&self) -> String {
        let mut table = format!("{:12}", "is / taken for");
        for class in CLASSES {
            let _ = write!(table, "{class:>12}");
        }
        for (class, row) in CLASSES.iter().zip(self.matrix) {
            let _ = write!(table, "\n{class:14}");
            row.iter().for_each(|count| {
                let _ = write!(table, "{count:>12}");
            });
        }
        table
    }

    pub(super) fn costs(&self) -> String {
        format!(
            "{} frames in use look vacated, {} free ones; events lost {}; a sweep takes {:.1} ms, the longest {:.1} ms",
            self.vacated.1,
            self.vacated.0,
            self.events_lost,
            self.sweep_seconds * 1e3 / self.sweeps.max(1) as f64,
            self.longest_sweep_seconds * 1e3
        )
    }
}

fn scores_of(matrix: &[[u64; CLASSES.len()]; CLASSES.len()]) -> [Score; CLASSES.len()] {
    std::array::from_fn(|class| {
        let right = matrix[class][class] as f64;
        let is: u64 = matrix[class].iter().sum();
        let taken: u64 = matrix.iter().map(|row| row[class]).sum();
        let part = |whole: u64| (whole > 0).then(|| right / whole as f64);
        // What there is none of has no score; what was taken for it counts where it is.
        let f1 = (is > 0).then(|| 2.0 * right / (is + taken) as f64);
        Score { frames: is, precision: part(taken), recall: part(is), f1 }
    })
}

/// Of those that there are.
fn mean(scores: &[Score], which: &[usize]) -> f64 {
    let there: Vec<f64> = which.iter().filter_map(|&class| scores[class].f1).collect();
    there.iter().sum::<f64>() / there.len().max(1) as f64
}

impl Scores {
    pub(super) fn head() -> String {
        let mut head = format!("{:11}{:>9}{:>9}", "F1 of", "macro", "vacated");
        for class in INFERRED {
            let _ = write!(head, "{:>12}", CLASSES[class]);
        }
        head + "  used called free  processes: kernel's, seen, both"
    }

    pub(super) fn row(&self, name: &str, sums: &Sums) -> String {
        let mut row =
            format!("{name:11}{:>9.4}{:>9.4}", self.macro_f1, self.macro_f1_vacated_is_free);
        for class in INFERRED {
            let f1 = self.classes[class].f1.map_or("-".to_owned(), |f1| format!("{f1:.4}"));
            let _ = write!(row, "{f1:>12}");
        }
        let (told, seen, both) = sums.spaces;
        let _ = write!(row, "{:>18}  {told:>19}{seen:>6}{both:>6}", sums.used_called_free);
        row
    }

    pub(super) fn check(&self, sums: &Sums, all_reported: bool) -> Result<()> {
        if sums.used_called_free > 0 {
            bail!("{} used pages are called free", sums.used_called_free);
        }
        let reached = [self.macro_f1, self.macro_f1_vacated_is_free];
        if all_reported && (reached[0] < ENOUGH[0] || reached[1] < ENOUGH[1]) {
            bail!("macro-F1 is {reached:.4?}, below {ENOUGH:?}");
        }
        if sums.vacated.1 > 0 {
            bail!("{} frames in use look vacated", sums.vacated.1);
        }
        let (told, _, both) = sums.spaces;
        if both * 10 < told * 9 {
            bail!("of {told} processes {both} were seen");
        }
        Ok(())
    }
}

pub(super) fn median(times: &[u64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied();
    middle.context("no runs").unwrap_or(0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(cells: &[(usize, usize, u64)]) -> Sums {
        let mut sums = Sums::default();
        cells.iter().for_each(|&(is, taken, count)| sums.matrix[is][taken] = count);
        sums
    }

    #[test]
    fn a_used_page_that_is_called_free_fails_the_check() {
        let mut sums = sums(&[(0, 0, 10), (FREE, FREE, 10), (4, 4, 10)]);
        assert!(sums.scores().check(&sums, true).is_ok());
        sums.vacated.1 = 1;
        assert!(sums.scores().check(&sums, true).is_err());
        sums.vacated.1 = 0;
        sums.used_called_free = 1;
        assert!(sums.scores().check(&sums, false).is_err());
    }

    #[test]
    fn scores_are_of_classes_that_there_are() {
        let mut sums = sums(&[(0, 0, 10), (2, 2, 90), (FREE, 2, 10), (9, 9, 1000)]);
        sums.vacated = (10, 0);
        let scores = sums.scores();
        let anonymous = scores.classes[2];
        assert_eq!((anonymous.precision, anonymous.recall), (Some(0.9), Some(1.0)));
        assert!((scores.macro_f1 - (1.0 + 180.0 / 190.0) / 3.0).abs() < 1e-9);
        assert!((scores.macro_f1_vacated_is_free - 1.0).abs() < 1e-9);
        assert!(scores.classes[1].f1.is_none());
        assert!(scores.check(&sums, false).is_ok());
        // Too low, and only with every page reported that counts.
        let low = super::tests::sums(&[(0, 4, 10), (4, 4, 10)]);
        assert!(low.scores().check(&low, false).is_ok());
        assert!(low.scores().check(&low, true).is_err());
    }

    #[test]
    fn a_median_is_one_of_them() {
        assert!((median(&[5, 1, 9]) - 5.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }
}
