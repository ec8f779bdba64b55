//! A walk through the page tables of all address spaces, a piece at a time.
//!
//! Each table is read once in a pass, whoever leads there and however often: a guest whose tables lead back to
//! themselves costs no more than one that has as many. A large page's frames are marked one by one, no more in a pass
//! than there are frames, for users and for the kernel each.

use std::collections::HashMap;

use memory::{Epoch, FRAME_SIZE, Frame, Gpa, ReadView};

use super::marks::{
    MAPPED, Marks, RING, SETTLED, SHARED, TABLE, TEXT, USERS, VACATED, WRITABLE, ZERO,
};
use super::spaces::Spaces;

/// Page-table entries, Intel SDM volume 3, section 5.5.
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ENTRIES: usize = 512;
/// From here on the root's entries are the kernel's.
const KERNEL_HALF: usize = 256;
/// Of a root with four levels.
const TOP: u8 = 3;
/// A pass that takes more epochs begins anew: dates would no longer tell.
const PASS_EPOCHS_MAX: u32 = 100;

/// A table to be read.
#[derive(Clone, Copy, Debug)]
struct Pending {
    frame: Frame,
    /// The space that it is of; `None`: the kernel's half.
    root: Option<Frame>,
    level: u8,
    writable: bool,
    executable: bool,
}

/// Where the walk is.
#[derive(Debug)]
pub(super) struct Walker {
    view: ReadView,
    /// Spaces of this pass that were not begun.
    roots: Vec<Frame>,
    /// The space that is being walked.
    current: Option<Frame>,
    pending: Vec<Pending>,
    /// When the pass began.
    began: Option<Epoch>,
    /// When the last complete one began.
    complete: Option<Epoch>,
    /// Frames of large pages that may still be marked in this pass: for users, and as the kernel's code.
    large: [u32; 2],
    /// The last entry of the kernel's half: the same in all spaces of one kernel.
    kernel: Option<u64>,
}

impl Walker {
    pub(super) fn new(view: ReadView) -> Self {
        Self {
            view,
            roots: Vec::new(),
            current: None,
            pending: Vec::new(),
            began: None,
            complete: None,
            large: [0; 2],
            kernel: None,
        }
    }

    /// When the last pass began that came to its end.
    pub(super) fn complete(&self) -> Option<Epoch> {
        self.complete
    }

    /// The last entry of roots that lead to the guest's kernel, once one of them was met.
    pub(super) fn kernel(&self) -> Option<u64> {
        self.kernel
    }

    /// Reads at most `tables` tables. True where a pass came to its end.
    pub(super) fn walk(
        &mut self,
        spaces: &mut Spaces,
        marks: &mut Marks,
        now: Epoch,
        tables: u32,
    ) -> bool {
        if self.began.is_none() && self.complete == Some(now) {
            // Dates have no finer grain than epochs.
            return true;
        }
        if self.began.is_none_or(|began| now.0.saturating_sub(began.0) > PASS_EPOCHS_MAX) {
            self.begin(spaces, marks, now);
        }
        for _ in 0..tables {
            if self.pending.is_empty() && !self.next_space(spaces, marks, now) {
                self.complete = self.began.take();
                return true;
            }
            if let Some(table) = self.pending.pop() {
                self.read(table, spaces, marks, now);
            }
        }
        false
    }

    fn begin(&mut self, spaces: &Spaces, marks: &Marks, now: Epoch) {
        self.pending.clear();
        self.current = None;
        self.roots = spaces.roots();
        self.began = Some(now);
        self.large = [marks.len(); 2];
        if let Some((root, kernel)) = self.find_kernel(spaces.newest()) {
            self.kernel = Some(kernel);
            let kernel =
                Pending { frame: root, root: None, level: TOP, writable: true, executable: true };
            self.pending.push(kernel);
        }
    }

    /// What most roots end with, and one that does: the last that was loaded may be a program's that is gone.
    fn find_kernel(&self, newest: Option<Frame>) -> Option<(Frame, u64)> {
        let mut found = HashMap::<u64, (u32, Frame)>::new();
        let besides = newest.filter(|newest| self.roots.binary_search(newest).is_err());
        for &root in self.roots.iter().chain(&besides) {
            if let Some(entry) = last_entry(&self.view, root) {
                let (roots, holder) = found.entry(entry).or_insert((0, root));
                (*roots, *holder) = (*roots + 1, root);
            }
        }
        let order =
            |&(entry, (roots, _)): &(u64, (u32, Frame))| (roots, Some(entry) == self.kernel, entry);
        found.into_iter().max_by_key(order).map(|(entry, (_, root))| (root, entry))
    }

    /// Begins the next space. False: there is none.
    fn next_space(&mut self, spaces: &mut Spaces, marks: &mut Marks, now: Epoch) -> bool {
        if let Some(done) = self.current.take() {
            spaces.counted(done);
        }
        while let Some(root) = self.roots.pop() {
            let Some(entries) = self.table(root) else {
                spaces.ended(root);
                continue;
            };
            let users = entries[..KERNEL_HALF].iter().any(|entry| entry & PRESENT != 0);
            // Without the kernel in it no processor can go by it: it has become something else.
            if Some(used(entries[ENTRIES - 1])) != self.kernel || !users {
                spaces.ended(root);
                continue;
            }
            self.current = Some(root);
            let table = Pending {
                frame: root,
                root: Some(root),
                level: TOP,
                writable: true,
                executable: true,
            };
            // A root is read for its users whether or not it was for the kernel.
            self.read_entries(table, &entries[..KERNEL_HALF], spaces, marks, now);
            mark_table(marks, root, now);
            return true;
        }
        false
    }

    fn table(&self, frame: Frame) -> Option<Box<[u64; ENTRIES]>> {
        let mut bytes = [0; FRAME_SIZE];
        self.view.read(self.view.layout().gpa_of(frame)?, &mut bytes).ok()?;
        let mut entries = Box::new([0; ENTRIES]);
        for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks().0) {
            *entry = u64::from_le_bytes(*bytes);
        }
        Some(entries)
    }

    /// Reads a table, unless it was read in this pass.
    fn read(&mut self, table: Pending, spaces: &mut Spaces, marks: &mut Marks, now: Epoch) {
        let began = self.began.unwrap_or(now);
        let is_root = table.level == TOP;
        if !is_root && marks.of(table.frame) & TABLE != 0 && marks.date(table.frame, now) >= began {
            return;
        }
        let Some(entries) = self.table(table.frame) else { return };
        mark_table(marks, table.frame, now);
        let entries = if is_root { &entries[KERNEL_HALF..] } else { &entries[..] };
        self.read_entries(table, entries, spaces, marks, now);
    }

    fn read_entries(
        &mut self,
        table: Pending,
        entries: &[u64],
        spaces: &mut Spaces,
        marks: &mut Marks,
        now: Epoch,
    ) {
        let mut mapped = 0;
        for &entry in entries.iter().filter(|&entry| entry & PRESENT != 0) {
            if table.root.is_some() && entry & USER == 0 {
                continue;
            }
            let writable = table.writable && entry & WRITE != 0;
            let executable = table.executable && entry & NO_EXECUTE == 0;
            let is_page = table.level == 0 || table.level < TOP && entry & LARGE != 0;
            if !is_page {
                let frame = self.view.layout().frame_of(Gpa(entry & ADDRESS));
                if let (Some(frame), Some(level)) = (frame, table.level.checked_sub(1)) {
                    self.pending.push(Pending { frame, level, writable, executable, ..table });
                }
                continue;
            }
            let frames = 1_u32 << (9 * u32::from(table.level));
            let first = Gpa(entry & ADDRESS & !((u64::from(frames) << 12) - 1));
            if table.root.is_some() {
                mapped += u64::from(frames);
                for frame in self.frames(first, frames, 0) {
                    self.mark_users(marks, frame, writable, now);
                }
            } else if executable && !writable {
                for frame in self.frames(first, frames, 1) {
                    mark_text(marks, frame, now);
                }
            }
        }
        if let Some(root) = table.root {
            spaces.count(root, mapped);
        }
    }

    /// The frames of a page, as far as more may be marked.
    fn frames(
        &mut self,
        first: Gpa,
        frames: u32,
        budget: usize,
    ) -> impl Iterator<Item = Frame> + use<> {
        let layout = *self.view.layout();
        let count = if frames == 1 { 1 } else { frames.min(self.large[budget]) };
        if frames > 1 {
            self.large[budget] -= count;
        }
        (0..u64::from(count)).filter_map(move |n| layout.frame_of(Gpa(first.0 + (n << 12))))
    }

    fn mark_users(&self, marks: &mut Marks, frame: Frame, writable: bool, now: Epoch) {
        let before = marks.of(frame);
        let again = before & MAPPED != 0;
        let in_this_pass = again && Some(marks.date(frame, now)) >= self.began;
        let mut mark = before & USERS & !WRITABLE | MAPPED;
        if writable {
            mark |= WRITABLE;
        }
        if in_this_pass {
            mark |= before & WRITABLE;
            if writable && before & WRITABLE != 0 {
                mark |= SHARED;
            }
        } else if again {
            mark |= SETTLED;
        }
        marks.set(frame, mark, now);
    }
}

/// The last entry of a table, as if it had been used, where it leads anywhere.
pub(super) fn last_entry(view: &ReadView, table: Frame) -> Option<u64> {
    let mut bytes = [0; 8];
    let gpa = Gpa(view.layout().gpa_of(table)?.0 + (FRAME_SIZE - bytes.len()) as u64);
    view.read(gpa, &mut bytes).ok()?;
    Some(used(u64::from_le_bytes(bytes))).filter(|entry| entry & PRESENT != 0)
}

/// The entry as if it had been used.
fn used(entry: u64) -> u64 {
    entry | 0x60
}

fn mark_table(marks: &mut Marks, frame: Frame, now: Epoch) {
    marks.set(frame, TABLE, now);
}

fn mark_text(marks: &mut Marks, frame: Frame, now: Epoch) {
    let before = marks.of(frame);
    if before & USERS == 0 && !Marks::is_ring(before) {
        marks.set(frame, before & !(RING | VACATED | ZERO) | TEXT, now);
    }
}
