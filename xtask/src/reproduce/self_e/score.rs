//! How right it was.

use anyhow::{Context, Result, bail};
use insight::FrameClass;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

const CLASSES: usize = FrameClass::ALL.len();
/// What is inferred: of the others the machine knows by itself.
const INFERRED: [FrameClass; 7] = [
    FrameClass::PageTable,
    FrameClass::FileCache,
    FrameClass::Anonymous,
    FrameClass::KernelText,
    FrameClass::Kernel,
    FrameClass::Free,
    FrameClass::Zero,
];
const FREE: usize = FrameClass::Free as usize;
const ANONYMOUS: usize = FrameClass::Anonymous as usize;
/// With every free page reported: by the kernel's word and without.
const ENOUGH: [f64; 2] = [0.95, 0.9];

/// Rows: what frames are; columns: what they were taken for.
pub(super) type Matrix = [[u64; CLASSES]; CLASSES];

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
    matrix: Matrix,
    inferred: Matrix,
    vacated: (u64, u64),
    used_called_free: u64,
    unlisted: u64,
    unknown: u64,
    spaces: (u64, u64, u64),
}

/// Of several looks.
#[derive(Clone, Default, Serialize)]
pub(super) struct Sums {
    looks: u64,
    /// With the kernel's word on what is free.
    pub(super) matrix: Matrix,
    /// Without.
    pub(super) inferred: Matrix,
    /// Look vacated: (free, in use).
    vacated: (u64, u64),
    used_called_free: u64,
    /// Reported free, in no list of free frames, and not touched since.
    unlisted: u64,
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
    /// With the kernel's word on what is free.
    classes: [Score; CLASSES],
    /// Without.
    inferred: [Score; CLASSES],
    /// Of the classes that are inferred.
    macro_f1: f64,
    /// Of all.
    macro_f1_all: f64,
    /// Without the kernel's word.
    macro_f1_inferred: f64,
    /// The same, if all that looks vacated were free.
    macro_f1_vacated_is_free: f64,
}

impl Sums {
    pub(super) fn take(&mut self, look: &Look) -> Result<()> {
        if look.sweeps == 0 {
            bail!("nothing was swept yet");
        }
        let Comparison { matrix, inferred, vacated, used_called_free, unlisted, unknown, spaces } =
            look.comparison;
        let one = Self {
            looks: 1,
            matrix,
            inferred,
            vacated,
            used_called_free,
            unlisted,
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
        for (matrix, other) in
            [(&mut self.matrix, &other.matrix), (&mut self.inferred, &other.inferred)]
        {
            let cells = matrix.iter_mut().flatten().zip(other.iter().flatten());
            cells.for_each(|(sum, count)| *sum += count);
        }
        self.looks += other.looks;
        self.vacated = (self.vacated.0 + other.vacated.0, self.vacated.1 + other.vacated.1);
        self.used_called_free += other.used_called_free;
        self.unlisted += other.unlisted;
        self.unknown += other.unknown;
        let (told, seen, both) = other.spaces;
        self.spaces = (self.spaces.0 + told, self.spaces.1 + seen, self.spaces.2 + both);
        self.events_lost += other.events_lost;
        self.sweep_seconds += other.sweep_seconds;
        self.sweeps += other.sweeps;
        self.longest_sweep_seconds = self.longest_sweep_seconds.max(other.longest_sweep_seconds);
    }

    pub(super) fn scores(&self) -> Scores {
        let (classes, inferred) = (scores_of(&self.matrix), scores_of(&self.inferred));
        let mut vacated = self.inferred;
        let moved = self.vacated.0.min(vacated[FREE][ANONYMOUS]);
        vacated[FREE][ANONYMOUS] -= moved;
        vacated[FREE][FREE] += moved;
        Scores {
            macro_f1: mean(&classes, &INFERRED),
            macro_f1_all: mean(&classes, &FrameClass::ALL),
            macro_f1_inferred: mean(&inferred, &INFERRED),
            macro_f1_vacated_is_free: mean(&scores_of(&vacated), &INFERRED),
            classes,
            inferred,
        }
    }

    pub(super) fn costs(&self) -> String {
        format!(
            "{} frames in use look vacated, {} free ones; {} reported ones are in no list of free ones and hold nothing; events lost {}; a sweep takes {:.1} ms, the longest {:.1} ms",
            self.vacated.1,
            self.vacated.0,
            self.unlisted,
            self.events_lost,
            self.sweep_seconds * 1e3 / self.sweeps.max(1) as f64,
            self.longest_sweep_seconds * 1e3
        )
    }
}

/// Of classes that there are any of, or that something was taken for.
pub(super) fn table(matrix: &Matrix) -> String {
    let shown = shown(matrix);
    let mut table = format!("{:14}", "is / taken for");
    for class in &shown {
        let _ = write!(table, "{:>12}", title(*class));
    }
    for class in &shown {
        let _ = write!(table, "\n{:14}", title(*class));
        for taken_for in &shown {
            let _ = write!(table, "{:>12}", matrix[*class as usize][*taken_for as usize]);
        }
    }
    table
}

pub(super) fn shown(matrix: &Matrix) -> Vec<FrameClass> {
    let any = |class: &FrameClass| {
        let class = *class as usize;
        matrix[class].iter().any(|count| *count > 0) || matrix.iter().any(|row| row[class] > 0)
    };
    FrameClass::ALL.into_iter().filter(any).collect()
}

pub(super) fn title(class: FrameClass) -> String {
    class.name().replace('_', " ")
}

fn scores_of(matrix: &Matrix) -> [Score; CLASSES] {
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
fn mean(scores: &[Score], which: &[FrameClass]) -> f64 {
    let there: Vec<f64> = which.iter().filter_map(|&class| scores[class as usize].f1).collect();
    there.iter().sum::<f64>() / there.len().max(1) as f64
}

impl Scores {
    pub(super) fn head() -> String {
        let mut head = format!("{:11}{:>9}{:>9}{:>9}", "F1 of", "macro", "inferred", "vacated");
        for class in INFERRED {
            let _ = write!(head, "{:>12}", title(class));
        }
        head + "  used called free  processes: kernel's, seen, both"
    }

    pub(super) fn row(&self, name: &str, sums: &Sums) -> String {
        let macros = [self.macro_f1, self.macro_f1_inferred, self.macro_f1_vacated_is_free];
        let mut row = format!("{name:11}");
        for f1 in macros {
            let _ = write!(row, "{f1:>9.4}");
        }
        row += &figures(&self.classes);
        let (told, seen, both) = sums.spaces;
        let _ = write!(row, "{:>18}  {told:>19}{seen:>6}{both:>6}", sums.used_called_free);
        row
    }

    /// Of each class, without the kernel's word.
    pub(super) fn inferred_row(&self) -> String {
        format!("{:38}{}", "without the kernel's word", figures(&self.inferred))
    }

    pub(super) fn check(&self, sums: &Sums, all_reported: bool) -> Result<()> {
        if sums.used_called_free > 0 {
            bail!("{} used pages are called free", sums.used_called_free);
        }
        let reached = [self.macro_f1, self.macro_f1_inferred];
        if all_reported && (reached[0] < ENOUGH[0] || reached[1] < ENOUGH[1]) {
            bail!("macro-F1 is {reached:.4?}, below {ENOUGH:?}");
        }
        let (told, _, both) = sums.spaces;
        if both * 10 < told * 9 {
            bail!("of {told} processes {both} were seen");
        }
        Ok(())
    }
}

fn figures(scores: &[Score; CLASSES]) -> String {
    let mut figures = String::new();
    for class in INFERRED {
        let f1 = scores[class as usize].f1.map_or("-".to_owned(), |f1| format!("{f1:.4}"));
        let _ = write!(figures, "{f1:>12}");
    }
    figures
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

    fn sums(cells: &[(FrameClass, FrameClass, u64)]) -> Sums {
        let mut sums = Sums::default();
        for &(is, taken, count) in cells {
            sums.matrix[is as usize][taken as usize] = count;
            sums.inferred[is as usize][taken as usize] = count;
        }
        sums
    }

    #[test]
    fn a_used_page_that_is_called_free_fails_the_check() {
        use FrameClass::{Free, Kernel, PageTable};
        let mut sums = sums(&[(PageTable, PageTable, 10), (Free, Free, 10), (Kernel, Kernel, 10)]);
        assert!(sums.scores().check(&sums, true).is_ok());
        sums.used_called_free = 1;
        assert!(sums.scores().check(&sums, false).is_err());
    }

    #[test]
    fn scores_are_of_classes_that_there_are() {
        use FrameClass::{Anonymous, FileCache, Free, Kernel, PageTable, Untouched};
        let mut sums = sums(&[
            (PageTable, PageTable, 10),
            (Anonymous, Anonymous, 90),
            (Free, Anonymous, 10),
            (Untouched, Untouched, 1000),
        ]);
        sums.vacated = (10, 0);
        let scores = sums.scores();
        let anonymous = scores.classes[ANONYMOUS];
        assert_eq!((anonymous.precision, anonymous.recall), (Some(0.9), Some(1.0)));
        assert!((scores.macro_f1 - (1.0 + 180.0 / 190.0) / 3.0).abs() < 1e-9);
        assert!((scores.macro_f1_vacated_is_free - 1.0).abs() < 1e-9);
        assert!(scores.classes[FileCache as usize].f1.is_none());
        assert!(scores.check(&sums, false).is_ok());
        // Too low, and only with every page reported that counts.
        let low = super::tests::sums(&[(PageTable, Kernel, 10), (Kernel, Kernel, 10)]);
        assert!(low.scores().check(&low, false).is_ok());
        assert!(low.scores().check(&low, true).is_err());
        assert!(
            table(&low.matrix).starts_with("is / taken for  page table      kernel\npage table")
        );
    }

    #[test]
    fn a_median_is_one_of_them() {
        assert!((median(&[5, 1, 9]) - 5.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }
}
