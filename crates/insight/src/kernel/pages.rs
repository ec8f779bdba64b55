//! What the guest's kernel uses each frame for, by its own `struct page`.

mod files;
mod free;
mod lists;

use memory::{FRAME_SHIFT, Frame, Gpa, ReadView};

pub(super) use files::Files;
pub use files::{CachedFile, Inode};
pub use free::{FreeFrames, PageUser};
pub use lists::FreeLists;
pub(super) use lists::ListPlaces;

use super::address::AddressSpace;
use super::layout::PageLayout;

/// Pages read at a time.
const BATCH: usize = 64;
/// Largest order of a free block that is believed: Linux has at most 2^10 frames, or 2^11 with large pages
/// of half a size; no block is larger than a gigabyte.
const ORDER_MAX: u64 = 18;
/// Compound pages are no larger than a gigabyte.
const COMPOUND_MAX: u64 = 1 << ORDER_MAX;
/// Low bits of `page.mapping`: anonymous, movable by a driver, or both for KSM
/// (include/linux/page-flags.h, `PAGE_MAPPING_FLAGS`).
const MAPPING_ANONYMOUS: u64 = 1;
const MAPPING_FLAGS: u64 = 3;
/// Bit 0 of `page.compound_head` says that this is a tail.
const TAIL: u64 = 1;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum PageClass {
    /// In the buddy allocator.
    Free,
    /// Free, in a list of one CPU: not the buddy allocator's, and soon somebody's.
    CpuFree,
    /// Contents of a file, or of a block device.
    FileCache,
    /// Of tmpfs, shared memory and the like: a file without a disk behind it.
    SharedMemory,
    /// A program's own memory.
    Anonymous,
    /// The same, and it has a place in swap.
    SwapCache,
    /// Of hugetlbfs, in use or not.
    Huge,
    /// A page table, other than those of the kernel's own start.
    PageTable,
    /// Small objects of the kernel.
    Slab,
    /// The kernel's own since it started: its image, `struct page` itself.
    Reserved,
    /// In the balloon, or unplugged.
    Offline,
    /// In use by the kernel or a driver for something else: stacks, modules, buffers.
    Kernel,
    /// The kernel has no readable `struct page` for it.
    Unknown,
}

impl PageClass {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 13] = [
        Self::Free,
        Self::CpuFree,
        Self::FileCache,
        Self::SharedMemory,
        Self::Anonymous,
        Self::SwapCache,
        Self::Huge,
        Self::PageTable,
        Self::Slab,
        Self::Reserved,
        Self::Offline,
        Self::Kernel,
        Self::Unknown,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::CpuFree => "cpu_free",
            Self::FileCache => "file_cache",
            Self::SharedMemory => "shared_memory",
            Self::Anonymous => "anonymous",
            Self::SwapCache => "swap_cache",
            Self::Huge => "huge",
            Self::PageTable => "page_table",
            Self::Slab => "slab",
            Self::Reserved => "reserved",
            Self::Offline => "offline",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        }
    }

    /// Whether nobody has it.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Free | Self::CpuFree)
    }
}

/// A frame that holds a piece of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedFrame<'a> {
    /// The frame.
    pub frame: Frame,
    /// The file.
    pub file: &'a CachedFile,
    /// Which 4096 bytes of the file; `None` where the kernel's types are not known.
    pub index: Option<u64>,
}

/// The class of every frame, at about one moment.
///
/// The guest runs on while it is taken: each frame is right as of when it was looked at, and a frame that
/// changes hands meanwhile may be seen in neither. Pause it first for a still picture. In memory a byte a
/// frame, and 24 for each that holds a piece of a file.
#[derive(Debug)]
pub struct KernelPages {
    classes: Vec<PageClass>,
    /// By rising frame.
    cached: Vec<Cached>,
    files: Files,
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    frame: Frame,
    file: u32,
    index: Option<u64>,
}

impl KernelPages {
    /// One pass over `struct page` of each frame of RAM, which are from `vmemmap` on.
    pub(super) fn read(
        view: &ReadView,
        space: &AddressSpace,
        layout: &PageLayout,
        vmemmap: u64,
        files: Files,
    ) -> Self {
        let frames = view.layout().frames();
        let pages =
            Self { classes: Vec::with_capacity(frames as usize), cached: Vec::new(), files };
        let mut reader = Reader { view, space, layout, vmemmap, pages, free_until: Gpa(0) };
        let mut frame = 0;
        while frame < frames {
            frame += reader.batch(frame, frames, Reader::class);
        }
        reader.pages
    }

    /// The class of `frame`; `None` past the end of RAM.
    pub fn class(&self, frame: Frame) -> Option<PageClass> {
        self.classes.get(frame.index()).copied()
    }

    /// The class of each frame, the first one's first.
    pub fn classes(&self) -> &[PageClass] {
        &self.classes
    }

    /// How many frames are of each class, in the order of [`PageClass::ALL`].
    pub fn counts(&self) -> [(PageClass, u64); PageClass::ALL.len()] {
        let mut counts = PageClass::ALL.map(|class| (class, 0));
        for &class in &self.classes {
            counts[class as usize].1 += 1;
        }
        counts
    }

    /// The frames that hold a piece of a file, tmpfs included, in order.
    pub fn cached(&self) -> impl Iterator<Item = CachedFrame<'_>> {
        self.cached.iter().map(|&Cached { frame, file, index }| CachedFrame {
            frame,
            file: self.files.file(file),
            index,
        })
    }

    /// The files that [`KernelPages::cached`] names.
    pub fn files(&self) -> &[CachedFile] {
        self.files.all()
    }

    fn cached_in(&self, frame: Frame) -> Option<Cached> {
        let at = self.cached.binary_search_by_key(&frame, |cached| cached.frame).ok()?;
        Some(self.cached[at])
    }
}

struct Reader<'a> {
    view: &'a ReadView,
    space: &'a AddressSpace,
    layout: &'a PageLayout,
    vmemmap: u64,
    pages: KernelPages,
    /// Frames before this address lie in the free block that was met last.
    free_until: Gpa,
}

impl Reader<'_> {
    /// Classifies some frames from `first` on; returns how many, at least one. `class_of` is told the frame, its address,
    /// and where its `struct page` is, which follows.
    fn batch(
        &mut self,
        first: u32,
        frames: u32,
        class_of: impl Fn(&mut Self, Frame, Gpa, u64, &Page<'_>) -> PageClass,
    ) -> u32 {
        let Some(gpa) = self.view.layout().gpa_of(Frame(first)) else { return 1 };
        let contiguous = self.view.layout().contiguous(gpa) >> FRAME_SHIFT;
        let count = contiguous.min(u64::from(frames - first)).clamp(1, BATCH as u64) as u32;
        let size = self.layout.size;
        let mut bytes = vec![0; size * count as usize];
        let pages = self.page_address(gpa);
        let whole = pages.is_some_and(|va| self.space.read(va, &mut bytes).is_ok());
        for (number, page) in (0..count).zip(bytes.chunks_exact_mut(size)) {
            let gpa = Gpa(gpa.0 + (u64::from(number) << FRAME_SHIFT));
            // Where the batch could not be read, perhaps a part of it can.
            let va = self.page_address(gpa);
            let read = whole || va.is_some_and(|va| self.space.read(va, page).is_ok());
            let class = match va {
                Some(va) if read => class_of(self, Frame(first + number), gpa, va, &Page(page)),
                _ => PageClass::Unknown,
            };
            self.pages.classes.push(class);
        }
        count
    }

    /// Where the `struct page` of the frame at `gpa` is.
    fn page_address(&self, gpa: Gpa) -> Option<u64> {
        (gpa.0 >> FRAME_SHIFT).checked_mul(self.layout.size as u64)?.checked_add(self.vmemmap)
    }

    fn class(&mut self, frame: Frame, gpa: Gpa, va: u64, page: &Page<'_>) -> PageClass {
        if let Some(class) = self.unmapped(gpa, va, page) {
            return class;
        }
        let head = page.u64(self.layout.compound_head);
        if head & TAIL != 0 {
            return self.tail(frame, gpa, head & !TAIL);
        }
        self.mapped(frame, page.u64(self.layout.flags), page)
    }

    /// The class of a frame that is neither a tail nor anything by its `mapping`.
    fn unmapped(&mut self, gpa: Gpa, va: u64, page: &Page<'_>) -> Option<PageClass> {
        // What the struct pages inside a free block say is left over from earlier.
        if gpa < self.free_until {
            return Some(PageClass::Free);
        }
        let layout = self.layout;
        if page.u64(layout.compound_head) & TAIL != 0 {
            return None;
        }
        if let Some(class) = layout.types.class(page.u32(layout.page_type)) {
            if class == PageClass::Free {
                self.free_until = self.end_of_block(gpa, page.u64(layout.private));
            }
            return Some(class);
        }
        let flags = page.u64(layout.flags);
        if flags & layout.bits.slab != 0 {
            return Some(PageClass::Slab);
        }
        if flags & layout.bits.reserved != 0 {
            return Some(PageClass::Reserved);
        }
        if page.u32(layout.refcount) == 0 {
            // Nobody's: in a CPU's list, or the rest of a block that its user holds by its first frame only.
            let listed = self.is_in_a_list(va + layout.lru as u64, page);
            return Some(if listed { PageClass::CpuFree } else { PageClass::Kernel });
        }
        None
    }

    /// A frame in use, by its `mapping`.
    fn mapped(&mut self, frame: Frame, flags: u64, page: &Page<'_>) -> PageClass {
        let (layout, bits) = (self.layout, self.layout.bits);
        let mapping = page.u64(layout.mapping);
        let swap_backed = flags & bits.swap_backed != 0;
        match mapping & MAPPING_FLAGS {
            _ if mapping == 0 => PageClass::Kernel,
            0 => {
                let Some(file) = self.pages.files.of(self.space, mapping) else {
                    return PageClass::Kernel;
                };
                let index = layout.index.map(|offset| page.u64(offset));
                self.pages.cached.push(Cached { frame, file, index });
                if swap_backed { PageClass::SharedMemory } else { PageClass::FileCache }
            }
            flags_of_mapping if flags_of_mapping & MAPPING_ANONYMOUS != 0 => {
                let swapped = swap_backed && flags & bits.swap_cache != 0;
                if swapped { PageClass::SwapCache } else { PageClass::Anonymous }
            }
            _ => PageClass::Kernel,
        }
    }

    /// A tail is what its head is, which lies before it.
    fn tail(&mut self, frame: Frame, gpa: Gpa, head: u64) -> PageClass {
        let size = self.layout.size as u64;
        let head = head.checked_sub(self.vmemmap).filter(|bytes| bytes % size == 0);
        let number = gpa.0 >> FRAME_SHIFT;
        let head = head.map(|bytes| bytes / size).filter(|&head| head < number);
        let Some(head) = head.filter(|&head| number - head < COMPOUND_MAX) else {
            return PageClass::Unknown;
        };
        let head_frame = self.view.layout().frame_of(Gpa(head << FRAME_SHIFT));
        let Some(head_frame) = head_frame else { return PageClass::Unknown };
        if let Some(cached) = self.pages.cached_in(head_frame) {
            let index = cached.index.map(|index| index.wrapping_add(number - head));
            self.pages.cached.push(Cached { frame, file: cached.file, index });
        }
        match self.pages.class(head_frame) {
            // Freed meanwhile, and the two do not fit together.
            Some(PageClass::Free | PageClass::CpuFree) | None => PageClass::Unknown,
            Some(class) => class,
        }
    }

    /// The end of the free block that begins at `gpa`. A block lies at a multiple of its size.
    fn end_of_block(&self, gpa: Gpa, order: u64) -> Gpa {
        let frames = if order <= ORDER_MAX { 1 << order } else { 1_u64 };
        let bytes = frames << FRAME_SHIFT;
        let sound = gpa.0.is_multiple_of(bytes) && self.view.layout().contiguous(gpa) >= bytes;
        Gpa(gpa.0 + if sound { bytes } else { 1 << FRAME_SHIFT })
    }

    /// Whether the list entry at `entry` is in a list: its neighbours lead back to it.
    fn is_in_a_list(&self, entry: u64, page: &Page<'_>) -> bool {
        let next = page.u64(self.layout.lru);
        let back = next.checked_add(8).map(|previous| self.space.u64(previous));
        back == Some(Ok(entry))
    }
}

/// The bytes of one `struct page`; the layout has been checked against their number.
struct Page<'a>(&'a [u8]);

impl Page<'_> {
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.0[at + n]))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|n| self.0[at + n]))
    }
}
