//! Frames that the host's kernel is to merge with others of the same contents: KSM (docs/decisions/0017).
//!
//! KSM looks only at what a process has marked, and marks are an attribute of a mapping: a mark in the midst of RAM
//! splits its mapping in three. So marks come in units of neighbours, and there are so many runs of them at most.
//!
//! A merged page is the kernel's matter: who writes gets a copy, guest or device, and nobody here is told. Two things
//! here are in its way. Memory that moves to a file is mapped anew, so no mark is left. And memory that is frozen must have
//! none: KSM makes the entry of a page that it merges anew, without the mark of userfaultfd on it (`replace_page`,
//! mm/ksm.c), and the next write would go by unseen.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::{FRAME_SIZE, Frame};
use crate::guest_memory::GuestMemory;
use crate::ram::Ram;

/// Frames that are marked together, by their numbers: those from a multiple of this on.
pub const MERGE_UNIT: u32 = 16;
/// Runs of marked units at most: two more mappings each, of the 65,530 that a process may have (vm.max_map_count).
pub const MERGE_RUNS_MAX: usize = 8192;

/// Why nothing was marked.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// KSM merges private anonymous memory alone.
    #[error(
        "have the kernel share frames: the memory is in a file, as that of a guest that somebody watches, or was cloned"
    )]
    File,
    /// Who saves it would miss writes.
    #[error("have the kernel share frames: the memory is being saved")]
    Frozen,
    /// The kernel has no KSM, or no memory for it.
    #[error("have the kernel share frames: {0}")]
    Host(#[from] Errno),
}

/// What is marked of a memory.
#[derive(Default)]
pub(crate) struct Merging {
    marks: Mutex<Marks>,
    /// What has come of it; opened while this process may.
    counts: Option<Counts>,
}

/// Units that are marked.
#[derive(Debug, Default)]
struct Marks {
    units: BTreeSet<u32>,
    /// Runs of neighbours among them.
    runs: usize,
}

impl Marks {
    fn neighbours(&self, unit: u32) -> usize {
        let before = unit.checked_sub(1).is_some_and(|before| self.units.contains(&before));
        let after = unit.checked_add(1).is_some_and(|after| self.units.contains(&after));
        usize::from(before) + usize::from(after)
    }

    /// False if it is there, or there would be too many runs.
    fn insert(&mut self, unit: u32) -> bool {
        let runs = self.runs + 1 - self.neighbours(unit).min(self.runs + 1);
        if runs > MERGE_RUNS_MAX || !self.units.insert(unit) {
            return false;
        }
        self.runs = runs;
        true
    }

    /// False if it is not there, or what is left would be too many runs.
    fn remove(&mut self, unit: u32) -> bool {
        let runs = (self.runs + self.neighbours(unit)).saturating_sub(1);
        if runs > MERGE_RUNS_MAX || !self.units.remove(&unit) {
            return false;
        }
        self.runs = runs;
        true
    }
}

/// Where the kernel tells how many pages of this process it has merged.
enum Counts {
    /// /proc/self/ksm_stat, since Linux 6.1: lines of a name and a number.
    Lines(File),
    /// /proc/self/ksm_merging_pages, since 5.19.
    Number(File),
}

impl Counts {
    fn open() -> Option<Self> {
        let number = || File::open("/proc/self/ksm_merging_pages").ok().map(Self::Number);
        let lines = File::open("/proc/self/ksm_stat").ok().map(Self::Lines);
        // The first kernels with the one have that number in the other.
        lines.filter(|lines| lines.read().is_some()).or_else(number)
    }

    fn read(&self) -> Option<u64> {
        let (Self::Lines(file) | Self::Number(file)) = self;
        let mut text = [0; 512];
        let length = file.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        match self {
            Self::Lines(_) => merged_of(text),
            Self::Number(_) => text.trim().parse().ok(),
        }
    }
}

/// Pages that are merged, with those that are the kernel's page of zeros now.
fn merged_of(text: &str) -> Option<u64> {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse::<u64>().ok())
    };
    Some(number("ksm_merging_pages ")? + number("ksm_zero_pages ").unwrap_or(0))
}

impl Merging {
    pub(crate) fn of(ram: &Ram) -> Self {
        let counts = if ram.is_anonymous() { Counts::open() } else { None };
        Self { counts, ..Self::default() }
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was marked is mapped anew.
    pub(crate) fn forget(&self) {
        *self.marks() = Marks::default();
    }
}

impl Ram {
    /// For units of neighbours.
    fn advise(&self, first: u32, units: u32, advice: Advice) -> Result<(), Errno> {
        let unit = MERGE_UNIT as usize * FRAME_SIZE;
        let from = first as usize * unit;
        let bytes = (units as usize * unit).min(self.guest.bytes() - from);
        let at = self.page(Frame(first * MERGE_UNIT)).as_ptr().cast();
        // SAFETY: inside RAM: the first address is checked, the length is bounded. It changes no contents.
        unsafe { rustix::mm::madvise(at, bytes, advice) }
    }
}

impl GuestMemory {
    /// Has the kernel merge these units' frames with others that have the same, this process's and any other's that are
    /// marked, whoever's they are. Answers how many were marked that were not: as many as there may be runs.
    ///
    /// # Errors
    /// See [`MergeError`]. Some may be marked then.
    pub fn mark_units(&self, units: &[u32]) -> Result<u32, MergeError> {
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_anonymous() || self.ram.below().is_some() {
            return Err(MergeError::File);
        }
        if self.is_frozen() {
            return Err(MergeError::Frozen);
        }
        let mut marks = self.merging.marks();
        let exist = |unit: &&u32| **unit < self.table.len().div_ceil(MERGE_UNIT);
        let mut new: Vec<u32> = Vec::new();
        for &unit in units.iter().filter(exist) {
            if marks.insert(unit) {
                new.push(unit);
            }
        }
        new.sort_unstable();
        let mut failed = Ok(());
        for run in new.chunk_by(|one, next| one + 1 == *next) {
            if failed.is_ok() {
                failed = self.ram.advise(run[0], run.len() as u32, Advice::LinuxMergeable);
            }
            if failed.is_err() {
                // A part of it may be: it is asked for again before it is relied on.
                let _ = self.ram.advise(run[0], run.len() as u32, Advice::LinuxUnmergeable);
                for unit in run {
                    marks.remove(*unit);
                }
            }
        }
        failed?;
        Ok(new.len() as u32)
    }

    /// Has it leave them alone: what was merged of them has pages of its own again when this returns. One in the midst of a run stays
    /// marked where that would make one run too many.
    ///
    /// # Errors
    /// The host has no memory for the copies. Some are marked still.
    pub fn unmark_units(&self, units: &[u32]) -> Result<(), MergeError> {
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marks = self.merging.marks();
        for &unit in units {
            if !marks.remove(unit) {
                continue;
            }
            if let Err(errno) = self.ram.advise(unit, 1, Advice::LinuxUnmergeable) {
                marks.insert(unit);
                return Err(errno.into());
            }
        }
        Ok(())
    }

    /// The same for all that are marked.
    ///
    /// # Errors
    /// As there.
    pub fn unmark_all(&self) -> Result<(), MergeError> {
        let _one_at_a_time = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        self.unmark_all_held()
    }

    /// By who holds the lock of discards.
    pub(crate) fn unmark_all_held(&self) -> Result<(), MergeError> {
        let mut marks = self.merging.marks();
        if marks.units.is_empty() {
            return Ok(());
        }
        let all: Vec<u32> = marks.units.iter().copied().collect();
        for run in all.chunk_by(|one, next| one + 1 == *next) {
            self.ram.advise(run[0], run.len() as u32, Advice::LinuxUnmergeable)?;
        }
        *marks = Marks::default();
        Ok(())
    }

    /// Whether a unit is marked.
    pub fn is_unit_marked(&self, unit: u32) -> bool {
        self.merging.marks().units.contains(&unit)
    }

    /// Frames that are marked.
    pub fn marked_frames(&self) -> u32 {
        self.merging.marks().units.len() as u32 * MERGE_UNIT
    }

    /// Pages of this process that the kernel has merged; 0 where it does not tell.
    pub fn merged_frames(&self) -> u32 {
        if self.merging.marks().units.is_empty() {
            return 0;
        }
        let merged = self.merging.counts.as_ref().and_then(Counts::read).unwrap_or(0);
        merged.min(u64::from(self.table.len())) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceView, Gpa};

    #[test]
    fn runs_are_counted_and_bounded() {
        let mut marks = Marks::default();
        for unit in [4, 6, 5, 0, 1] {
            assert!(marks.insert(unit));
            assert!(!marks.insert(unit), "{unit} twice");
        }
        assert_eq!(marks.runs, 2);
        assert!(marks.remove(5) && !marks.remove(5));
        assert_eq!(marks.runs, 3);
        assert!(marks.remove(0) && marks.remove(1));
        assert_eq!(marks.runs, 2);
        let mut next = 10;
        while marks.insert(next) {
            next += 2;
        }
        assert_eq!(marks.runs, MERGE_RUNS_MAX);
        // Between two it makes fewer; out of the midst of three it would make more.
        assert!(marks.insert(11) && marks.insert(13));
        assert_eq!(marks.runs, MERGE_RUNS_MAX - 2);
        assert!(marks.remove(12) && marks.insert(next));
        assert_eq!(marks.runs, MERGE_RUNS_MAX);
        assert!(marks.insert(12) && marks.insert(next + 2));
        assert_eq!(marks.runs, MERGE_RUNS_MAX);
        assert!(!marks.remove(12), "it would be one too many");
        assert!(marks.remove(next));
        let runs = marks.units.iter().copied().collect::<Vec<_>>();
        assert_eq!(runs.chunk_by(|one, next| one + 1 == *next).count(), marks.runs);
    }

    /// What smaps says of the mappings of RAM: bytes that are marked (`mg`), and how many mappings there are.
    fn marked_bytes(memory: &GuestMemory) -> (u64, usize) {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let from = memory.guest_base().as_ptr() as u64;
        let (mut at, mut marked, mut mappings) = (None, 0, 0);
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let hex = |text: &str| u64::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(a, b)| (hex(a), hex(b))) {
                let is_ram = start >= from && end <= from + memory.bytes();
                at = is_ram.then_some(end - start);
                mappings += usize::from(is_ram);
            }
            if let (Some(bytes), Some(flags)) = (at, line.strip_prefix("VmFlags:")) {
                marked += if flags.split(' ').any(|flag| flag == "mg") { bytes } else { 0 };
            }
        }
        (marked, mappings)
    }

    #[test]
    fn units_are_marked_and_taken_back() {
        if !std::path::Path::new("/sys/kernel/mm/ksm").exists() {
            eprintln!("*** NOT TESTED: this kernel has no KSM ***");
            return;
        }
        const UNIT: u64 = MERGE_UNIT as u64 * FRAME_SIZE as u64;
        // 2048 frames and five: the last unit is not a whole one.
        let memory = std::sync::Arc::new(
            GuestMemory::anonymous((8 << 20) + 5 * FRAME_SIZE as u64).expect("memory"),
        );
        let view = DeviceView::new(std::sync::Arc::clone(&memory));
        view.write(Gpa(3 * UNIT), &[9; 100]).expect("written");
        assert_eq!(marked_bytes(&memory), (0, 1));
        assert_eq!(memory.mark_units(&[5, 3, 4, 4, 9, 129, u32::MAX]).expect("marked"), 4);
        assert_eq!(marked_bytes(&memory), (4 * UNIT, 5));
        assert_eq!(memory.mark_units(&[3, 128]).expect("marked"), 1);
        let last = 5 * FRAME_SIZE as u64;
        assert_eq!(marked_bytes(&memory).0, 4 * UNIT + last);
        assert!(memory.is_unit_marked(4) && !memory.is_unit_marked(6));
        memory.unmark_units(&[4, 100, u32::MAX]).expect("unmarked");
        assert_eq!(marked_bytes(&memory).0, 3 * UNIT + last);
        memory.unmark_all().expect("unmarked");
        assert_eq!(marked_bytes(&memory), (0, 1));
        assert_eq!((memory.marked_frames(), memory.merged_frames()), (0, 0));

        // In a file there is nothing to mark.
        memory.mark_units(&[3]).expect("marked");
        memory.move_to_file().expect("moved");
        assert_eq!((memory.marked_frames(), marked_bytes(&memory).0), (0, 0));
        assert!(matches!(memory.mark_units(&[3]), Err(MergeError::File)));
        memory.unmark_all().expect("nothing to do");
        let mut byte = [0];
        view.read(Gpa(3 * UNIT + 99), &mut byte).expect("read");
        assert_eq!(byte, [9]);
    }

    /// KSM makes the entry of a page that it merges anew, and what userfaultfd has noted in it is gone: a write to memory that is
    /// being saved would not be seen (512 entries, two of them with the note a second later, with Linux 6.1).
    #[test]
    fn what_is_frozen_is_not_marked() {
        struct Nobody;
        impl crate::Keep for Nobody {
            fn keep(&self, _: Frame, _: &[u8; FRAME_SIZE]) {}
        }
        if !std::path::Path::new("/sys/kernel/mm/ksm").exists() {
            eprintln!("*** NOT TESTED: this kernel has no KSM ***");
            return;
        }
        let memory = std::sync::Arc::new(GuestMemory::anonymous(8 << 20).expect("memory"));
        memory.mark_units(&[1, 2, 7]).expect("marked");
        let frozen = memory.freeze(Box::new(Nobody)).expect("frozen");
        assert_eq!((memory.marked_frames(), marked_bytes(&memory).0), (0, 0));
        assert!(matches!(memory.mark_units(&[1]), Err(MergeError::Frozen)));
        drop(frozen);
        assert_eq!(memory.mark_units(&[1]).expect("marked"), 1);
    }

    #[test]
    fn what_the_kernel_tells_is_understood() {
        let text =
            "ksm_rmap_items 0\nksm_zero_pages 3\nksm_merging_pages 40\nksm_process_profit -5\n";
        assert_eq!(merged_of(text), Some(43));
        assert_eq!(merged_of("ksm_merging_pages 7\n"), Some(7));
        // Linux 6.1.
        assert_eq!(merged_of("ksm_rmap_items 12\n"), None);
        assert_eq!(merged_of("ksm_merging_pages many\n"), None);
    }
}
