//! Frames in the order in which a guest's programs see them: who needs one will need its neighbours there next.
//!
//! ```text
//!  files, by index:       | file a: 0 1 2 3 7 | file b: 0 1 | ...
//!  process by process:    | page tables, as a walk meets them | what they map, by linear address |
//! ```
//! A frame is listed where it is met first. What is neither a file's nor mapped by a program (slabs, stacks of the kernel) is
//! not listed: the kernel reaches it through its direct map, where the neighbour is the frame with the next number.

use memory::{FRAME_SIZE, Frame, Gpa, ReadView};

use super::Kernel;
use super::error::KernelError;

/// Page-table entries, Intel SDM volume 3, section 5.5.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: usize = 512;
/// From here on the root's entries are the kernel's.
const KERNEL_HALF: usize = 256;

impl Kernel {
    /// The frames of files and programs, each once, those together that a program reaches one after the other.
    ///
    /// Each table is read once, whoever leads there, and no more frames of large pages are looked at than there are frames.
    /// A table that is absent is left out, with what it maps.
    ///
    /// # Errors
    /// As for [`Kernel::pages`]; without a list of processes there are files only.
    pub fn together(&self) -> Result<Vec<Frame>, KernelError> {
        let pages = self.pages()?;
        let frames = self.view.layout().frames();
        let mut together = Together {
            view: &self.view,
            listed: vec![false; frames as usize],
            walked: vec![false; frames as usize],
            large: frames,
            order: Vec::new(),
            mapped: Vec::new(),
        };
        let mut files: Vec<_> =
            pages.cached().map(|it| (it.file.mapping, it.index, it.frame)).collect();
        files.sort_unstable();
        files.into_iter().for_each(|(_, _, frame)| together.list(frame));
        let processes = self.processes().map(|processes| processes.list).unwrap_or_default();
        for root in processes.iter().filter_map(|process| process.page_table) {
            together.walk(root, self.space.levels() - 1, KERNEL_HALF);
            for frame in std::mem::take(&mut together.mapped) {
                together.list(frame);
            }
        }
        Ok(together.order)
    }
}

struct Together<'a> {
    view: &'a ReadView,
    listed: Vec<bool>,
    /// Tables that were read.
    walked: Vec<bool>,
    /// Frames of large pages that may still be looked at.
    large: u32,
    order: Vec<Frame>,
    /// By the process that is being walked.
    mapped: Vec<Frame>,
}

impl Together<'_> {
    fn list(&mut self, frame: Frame) {
        if let Some(listed @ false) = self.listed.get_mut(frame.index()) {
            *listed = true;
            self.order.push(frame);
        }
    }

    fn frame_of(&self, entry: u64) -> Option<Frame> {
        self.view.layout().frame_of(Gpa(entry & ADDRESS))
    }

    /// The first `entries` of a table; `level` 0 maps pages.
    fn walk(&mut self, table: Gpa, level: u32, entries: usize) {
        let table = Gpa(table.0 & ADDRESS);
        let Some(frame) = self.view.layout().frame_of(table) else { return };
        if self.walked.get(frame.index()).is_none_or(|walked| *walked) {
            return;
        }
        self.walked[frame.index()] = true;
        let mut page = [0; FRAME_SIZE];
        if self.view.read(table, &mut page).is_err() {
            return;
        }
        self.list(frame);
        for entry in page.as_chunks().0.iter().take(entries.min(ENTRIES)) {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 {
                continue;
            }
            if level == 0 {
                self.mapped.extend(self.frame_of(entry));
            } else if entry & LARGE == 0 {
                self.walk(Gpa(entry & ADDRESS), level - 1, ENTRIES);
            } else if level <= 2 {
                self.large_page(entry, level);
            }
        }
    }

    fn large_page(&mut self, entry: u64, level: u32) {
        let frames = 1_u64 << (9 * level);
        let first = (entry & ADDRESS) >> 12 & !(frames - 1);
        let frames = (frames as u32).min(self.large);
        self.large -= frames;
        for number in first..first + u64::from(frames) {
            self.mapped.extend(self.frame_of(number << 12));
        }
    }
}
