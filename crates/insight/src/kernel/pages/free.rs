//! Which frames the kernel has in its lists of free ones, a piece of memory at a time.

use std::ops::Range;

use memory::{FRAME_SHIFT, Frame, Gpa, ReadView};

use super::super::address::AddressSpace;
use super::super::layout::PageLayout;
use super::{Files, KernelPages, MAPPING_FLAGS, Page, PageClass, Reader, TAIL};
use crate::mix::mix;

/// What it takes to tell free frames from others, without all that [`crate::kernel::Kernel`] has in memory.
#[derive(Debug)]
pub struct FreeFrames {
    pub(in super::super) view: ReadView,
    pub(in super::super) space: AddressSpace,
    pub(in super::super) layout: PageLayout,
    pub(in super::super) vmemmap: u64,
}

/// Who has a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageUser {
    /// The kernel, or nobody: by the type of the page.
    Kernel,
    /// A program (1), or a place in a file, of which that is a hash; never 0.
    Other(u16),
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

    /// Who has `frame`; `None` where its `struct page` does not say, as of some that the kernel has.
    #[must_use]
    pub fn user(&self, frame: Frame) -> Option<PageUser> {
        let size = self.layout.size as u64;
        let number = self.view.layout().gpa_of(frame)?.0 >> FRAME_SHIFT;
        let mut address = number.checked_mul(size)?.checked_add(self.vmemmap)?;
        let mut bytes = vec![0; self.layout.size];
        self.space.read(address, &mut bytes).ok()?;
        let head = Page(&bytes).u64(self.layout.compound_head);
        let mut behind = 0;
        if head & TAIL != 0 {
            behind = address.wrapping_sub(head & !TAIL) / size;
            address = head & !TAIL;
            self.space.read(address, &mut bytes).ok()?;
        }
        let page = Page(&bytes);
        let flags = page.u64(self.layout.flags);
        if self.layout.types.class(page.u32(self.layout.page_type)).is_some()
            || flags & (self.layout.bits.slab | self.layout.bits.reserved) != 0
        {
            return Some(PageUser::Kernel);
        }
        let (mapping, index) = (page.u64(self.layout.mapping), page.u64(self.layout.index?));
        match mapping & MAPPING_FLAGS {
            _ if mapping == 0 => None,
            0 => {
                let place = mapping ^ index.wrapping_add(behind).rotate_left(32);
                Some(PageUser::Other(mix(place) as u16 & !1 | 2))
            }
            // Not which: that changes when one of several that share it is left.
            _ => Some(PageUser::Other(1)),
        }
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
        Self { view: view.clone(), space: space.anew(), layout: layout.clone(), vmemmap: *vmemmap }
    }

    /// The kernel's own root of page tables.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.space.root()
    }
}
