//! Which frames the kernel has in its lists of free ones, a piece of memory at a time.

use std::ops::Range;

use memory::{Frame, Gpa, ReadView};

use super::super::address::AddressSpace;
use super::super::layout::PageLayout;
use super::{Files, KernelPages, PageClass, Reader};

/// What it takes to tell free frames from others, without all that [`crate::kernel::Kernel`] has in memory.
#[derive(Debug)]
pub struct FreeFrames {
    pub(in super::super) view: ReadView,
    pub(in super::super) space: AddressSpace,
    pub(in super::super) layout: PageLayout,
    pub(in super::super) vmemmap: u64,
}

impl FreeFrames {
    /// Whether each of `frames` is free, in the buddy allocator or in the list of a CPU. No answer for those past the end
    /// of RAM. A free block that begins before the first of `frames` is not met.
    #[must_use]
    pub fn read(&self, frames: Range<u32>) -> Vec<bool> {
        self.classes(frames).into_iter().map(PageClass::is_free).collect()
    }

    /// As [`FreeFrames::read`], without the lists of CPUs: what is left is what the kernel itself says is free, and not
    /// inferred of anything. The contents of these frames are nobody's.
    #[must_use]
    pub fn in_buddy(&self, frames: Range<u32>) -> Vec<bool> {
        self.classes(frames).into_iter().map(|class| class == PageClass::Free).collect()
    }

    fn classes(&self, frames: Range<u32>) -> Vec<PageClass> {
        let end = frames.end.min(self.view.layout().frames());
        let files = Files::new(None);
        let pages = KernelPages { classes: Vec::new(), cached: Vec::new(), files };
        let Self { view, space, layout, vmemmap } = self;
        let mut reader =
            Reader { view, space, layout, vmemmap: *vmemmap, pages, free_until: Gpa(0) };
        let mut frame = frames.start;
        while frame < end {
            frame += reader.batch(frame, end, |reader, _: Frame, gpa, va, page| {
                reader.unmapped(gpa, va, page).unwrap_or(PageClass::Kernel)
            });
        }
        reader.pages.classes
    }

    /// The same for another thread.
    #[must_use]
    pub fn anew(&self) -> Self {
        let Self { view, space, layout, vmemmap } = self;
        Self {
            view: view.clone(),
            space: space.anew(),
            layout: layout.clone(),
            vmemmap: *vmemmap,
        }
    }

    /// The kernel's own root of page tables.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.space.root()
    }
}
