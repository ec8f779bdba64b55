//! What a [`Classifier`] says against what the guest's kernel says: for tests and `cargo xtask reproduce self-e`, never
//! for an inference.
//!
//! The guest must stand. Some classes are not the kernel's to tell: whether it has ever touched a frame, and where
//! devices have their rings, the machine knows; that a frame holds nothing but zeros is looked at.

use std::collections::HashSet;

use memory::{FRAME_SIZE, Frame, FrameState, Gpa, GuestMemory, ReadView};
use serde::Serialize;

use super::{Classifier, Evidence, FrameClass};
use crate::CacheTracker;
use crate::kernel::{Kernel, KernelError, PageClass};

const CLASSES: usize = FrameClass::ALL.len();
/// Where modules have their code (Documentation/arch/x86/x86_64/mm.rst).
const MODULES: u64 = 0xffff_ffff_c000_0000;
/// Tables of the kernel's own that are looked at.
const TABLES_MAX: usize = 1 << 18;

/// Frames by what they are and what they were taken for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// Rows: what they are; columns: what they were taken for; both in the order of [`FrameClass::ALL`].
    pub matrix: [[u64; CLASSES]; CLASSES],
    /// The same of what was inferred without the kernel's word.
    pub inferred: [[u64; CLASSES]; CLASSES],
    /// The same with rows by the kernel's own classes.
    pub by_kernel: Vec<(&'static str, [u64; CLASSES])>,
    /// Frames that look vacated, as inferred: (free by the kernel, in use).
    pub vacated: (u64, u64),
    /// Frames called free that the kernel uses, by its word or without.
    pub used_called_free: u64,
    /// Frames reported free that are in none of the kernel's lists, and nobody has touched since: being reported at this
    /// moment, or handed out. There is nothing in them.
    pub unlisted: u64,
    /// Frames of which the kernel does not tell.
    pub unknown: u64,
    /// Address spaces: the kernel's processes', those seen, those in both.
    pub spaces: (u64, u64, u64),
}

/// Compares. Looks at all of the guest's memory.
///
/// # Errors
/// No kernel was found, or it does not tell what frames are for.
pub fn compare(
    memory: &std::sync::Arc<GuestMemory>,
    classifier: &Classifier,
    cache: &CacheTracker,
) -> Result<Comparison, KernelError> {
    let view = ReadView::new(std::sync::Arc::clone(memory));
    let kernel = Kernel::find(&view)?;
    let pages = kernel.pages()?;
    let known = Known::of(&view, &kernel);
    let mut comparison = Comparison {
        by_kernel: PageClass::ALL.map(|class| (class.name(), [0; CLASSES])).into(),
        ..Comparison::default()
    };
    for frame in (0..view.layout().frames()).map(Frame) {
        let (Some(by_kernel), Some(facts)) = (pages.class(frame), memory.facts(frame)) else {
            continue;
        };
        let taken_for = classifier.class(frame, cache).0;
        let (inferred, evidence) = classifier.inferred(frame, cache);
        comparison.by_kernel[by_kernel as usize].1[taken_for as usize] += 1;
        let is_free = by_kernel.is_free();
        if evidence == Evidence::Vacated {
            let (free, used) = &mut comparison.vacated;
            *if is_free { free } else { used } += 1;
        }
        let called_free = [taken_for, inferred].contains(&FrameClass::Free);
        let has_contents = facts.state == FrameState::Resident;
        comparison.used_called_free += u64::from(called_free && !is_free && has_contents);
        comparison.unlisted += u64::from(called_free && !is_free && !has_contents);
        if by_kernel == PageClass::Unknown {
            comparison.unknown += 1;
            continue;
        }
        let is = match FrameClass::by_state(&facts) {
            Some(FrameClass::Untouched) => FrameClass::Untouched,
            _ if inferred == FrameClass::DmaRing => FrameClass::DmaRing,
            _ => known.class(&view, frame, by_kernel, facts.state),
        };
        // A free page of zeros is both; so is one in a CPU's list, which is in nobody's count of free memory, and one
        // that is just being reported, which is in no list.
        let right = |taken: FrameClass| {
            let nobodys = is_free || !has_contents;
            let both = nobodys && matches!(is, FrameClass::Zero | FrameClass::Kernel);
            if taken == FrameClass::Free && both { taken } else { is }
        };
        comparison.matrix[right(taken_for) as usize][taken_for as usize] += 1;
        comparison.inferred[right(inferred) as usize][inferred as usize] += 1;
    }
    let told: HashSet<u64> = kernel
        .processes()?
        .list
        .iter()
        .filter_map(|process| process.page_table.map(|root| root.0))
        .collect();
    let seen: HashSet<u64> = classifier.processes().map(|process| process.root).collect();
    let both = told.intersection(&seen).count() as u64;
    comparison.spaces = (told.len() as u64, seen.len() as u64, both);
    Ok(comparison)
}

/// Frames whose use follows from the kernel's own page tables and symbols.
struct Known {
    tables: HashSet<Frame>,
    text: HashSet<Frame>,
}

impl Known {
    fn of(view: &ReadView, kernel: &Kernel) -> Self {
        let mut known = Self { tables: HashSet::new(), text: HashSet::new() };
        let symbol = |name| kernel.symbols().ok()?.address_of(name);
        if let (Some(text), Some(end)) = (symbol("_text"), symbol("_etext")) {
            for va in (text..end).step_by(FRAME_SIZE) {
                let gpa = kernel.space().translate(va).ok();
                known.text.extend(gpa.and_then(|gpa| view.layout().frame_of(gpa)));
            }
        }
        let root = kernel.note().symbol("init_top_pgt").or(kernel.note().symbol("swapper_pg_dir"));
        if let Some(Ok(root)) = root.map(|va| kernel.space().translate(va)) {
            known.walk(view, root);
        }
        known
    }

    /// The kernel's half below `root`, of four levels.
    fn walk(&mut self, view: &ReadView, root: Gpa) {
        let mut pending = vec![(root, 3_u32, 0_u64, true)];
        while let Some((table, level, va, executable)) = pending.pop() {
            let Some(frame) = view.layout().frame_of(table) else { continue };
            let mut bytes = [0; FRAME_SIZE];
            if view.read(table, &mut bytes).is_err() || self.tables.len() >= TABLES_MAX {
                continue;
            }
            if !self.tables.insert(frame) {
                continue;
            }
            for (number, bytes) in (0_u64..).zip(bytes.as_chunks().0) {
                let entry = u64::from_le_bytes(*bytes);
                let gpa = Gpa(entry & 0x000f_ffff_ffff_f000);
                let va = va | number << (12 + 9 * level);
                if entry & 1 == 0 || level == 3 && number < 256 {
                    continue;
                }
                let executable = executable && entry >> 63 == 0;
                if level == 0 {
                    // The root's sign is not extended.
                    let is_module = va | 0xffff << 48 >= MODULES;
                    if executable && is_module && entry & 2 == 0 {
                        self.text.extend(view.layout().frame_of(gpa));
                    }
                } else if entry & 0x80 == 0 {
                    pending.push((gpa, level - 1, va, executable));
                }
            }
        }
    }

    fn class(
        &self,
        view: &ReadView,
        frame: Frame,
        by_kernel: PageClass,
        state: FrameState,
    ) -> FrameClass {
        let kernels = |class| if is_zero(view, frame) { FrameClass::Zero } else { class };
        match by_kernel {
            PageClass::Free if state == FrameState::Resident => kernels(FrameClass::Free),
            PageClass::Free => FrameClass::Free,
            PageClass::FileCache => FrameClass::FileCache,
            PageClass::SharedMemory
            | PageClass::Anonymous
            | PageClass::SwapCache
            | PageClass::Huge => FrameClass::Anonymous,
            PageClass::Offline => FrameClass::Ballooned,
            PageClass::PageTable => FrameClass::PageTable,
            _ if self.text.contains(&frame) => FrameClass::KernelText,
            _ if self.tables.contains(&frame) => FrameClass::PageTable,
            PageClass::Slab
            | PageClass::Reserved
            | PageClass::Kernel
            | PageClass::CpuFree
            | PageClass::Unknown => kernels(FrameClass::Kernel),
        }
    }
}

fn is_zero(view: &ReadView, frame: Frame) -> bool {
    let mut bytes = [0; FRAME_SIZE];
    let read = view.layout().gpa_of(frame).map(|gpa| view.read(gpa, &mut bytes));
    matches!(read, Some(Ok(()))) && bytes == [0; FRAME_SIZE]
}
