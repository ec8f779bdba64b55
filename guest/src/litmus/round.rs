//! Running a shape many times, its threads as much at the same time as can be.

use super::{Outcome, Shape, X, Y};
use crate::random::Random;
use crate::sys::pin_to_cpu;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rounds between two times that all threads wait for each other.
const BATCH: usize = 512;
/// How often a thread looks in a batch whether the others have come as far: some milliseconds, for who has no
/// processor now may get one. What remains of the batch it does by itself.
pub(super) const LOOKS: u32 = 2_000_000;
/// Turns of the loop before a thread begins: about as long as a line takes to come from another processor.
const LONGEST_DELAY: u64 = 150;

/// The two words, and what each thread saw. Two lines each, since processors fetch lines in pairs.
#[repr(C, align(128))]
#[derive(Default)]
struct Cell {
    x: Line,
    y: Line,
    seen: [Line; 4],
}

#[repr(C, align(128))]
#[derive(Default)]
struct Line(UnsafeCell<[u64; 16]>);

// SAFETY: the words are read and written by the assembly of `thread` only while threads run, and
// each `seen` by one thread; the histogram is made while all wait.
unsafe impl Sync for Line {}

#[repr(align(128))]
#[derive(Default)]
struct Progress(AtomicU64);

/// How often each outcome came about, of what the shape looks at.
pub(super) fn run(shape: &Shape, rounds: u64) -> BTreeMap<Vec<u64>, u64> {
    let count = shape.threads.len();
    let cells: Vec<Cell> = std::iter::repeat_with(Cell::default).take(BATCH).collect();
    let progress: [Progress; 4] = Default::default();
    let barrier = Barrier::new(count);
    let mut histogram = BTreeMap::new();
    std::thread::scope(|scope| {
        let batches = rounds.div_ceil(BATCH as u64);
        for id in 1..count {
            let (cells, progress, barrier) = (&cells, &progress[..count], &barrier);
            scope.spawn(move || {
                pin_to_cpu(id as u64);
                let mut runner = Runner::new(shape, id, progress);
                for _ in 0..batches {
                    barrier.wait();
                    runner.batch(cells);
                    barrier.wait();
                }
            });
        }
        pin_to_cpu(0);
        let mut runner = Runner::new(shape, 0, &progress[..count]);
        for _ in 0..batches {
            cells.iter().for_each(clear);
            barrier.wait();
            runner.batch(&cells);
            barrier.wait();
            for cell in &cells {
                let outcome = outcome(cell);
                let seen = shape.looks_at.iter().map(|&place| outcome[place]).collect();
                *histogram.entry(seen).or_insert(0) += 1;
            }
        }
    });
    crate::sys::go_on_any_cpu();
    histogram
}

/// One thread of a shape.
struct Runner<'a> {
    shape: &'a Shape,
    id: usize,
    progress: &'a [Progress],
    /// Rounds begun.
    begun: u64,
    random: Random,
}

impl<'a> Runner<'a> {
    fn new(shape: &'a Shape, id: usize, progress: &'a [Progress]) -> Self {
        let random = Random::from_seed(0x9e37_79b9_7f4a_7c15 ^ id as u64);
        Self { shape, id, progress, begun: 0, random }
    }

    fn batch(&mut self, cells: &[Cell]) {
        let thread = self.shape.threads[self.id];
        let mut looks = LOOKS;
        for cell in cells {
            self.begun += 1;
            self.progress[self.id].0.store(self.begun, Ordering::Relaxed);
            self.wait_for_others(&mut looks);
            self.delay();
            // SAFETY: both words are of a cell that lasts; the thread touches nothing else.
            let seen = unsafe { thread(cell.x.0.get().cast(), cell.y.0.get().cast()) };
            // SAFETY: this line is ours while the batch runs.
            unsafe { cell.seen[self.id].0.get().cast::<[u64; 2]>().write(seen) };
        }
    }

    fn wait_for_others(&self, looks: &mut u32) {
        let behind = |other: &Progress| other.0.load(Ordering::Relaxed) < self.begun;
        while *looks > 0 && self.progress.iter().any(behind) {
            *looks -= 1;
        }
    }

    fn delay(&mut self) {
        for turn in 0..self.random.next() % LONGEST_DELAY {
            black_box(turn);
        }
    }
}

fn clear(cell: &Cell) {
    for line in [&cell.x, &cell.y].into_iter().chain(&cell.seen) {
        // SAFETY: the other threads wait.
        unsafe { line.0.get().write([0; 16]) };
    }
}

fn outcome(cell: &Cell) -> Outcome {
    // SAFETY: the other threads wait.
    let at = |line: &Line, place: usize| unsafe { line.0.get().cast::<u64>().add(place).read() };
    let mut outcome = [0; 10];
    for (id, line) in cell.seen.iter().enumerate() {
        outcome[2 * id] = at(line, 0);
        outcome[2 * id + 1] = at(line, 1);
    }
    outcome[X] = at(&cell.x, 0);
    outcome[Y] = at(&cell.y, 0);
    outcome
}
