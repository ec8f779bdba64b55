//! The kernel's lists of free frames themselves: what is free, without a look at all that is not.
//!
//! ```text
//!   node_data[] --> zone[] --> free_area[order].free_list[] --> page.lru --> page.lru ...       the buddy allocator's
//!                     |
//!                     +--> per_cpu_pageset + __per_cpu_offset[] --> lists[] --> page.lru ...    those of CPUs
//! ```
//!
//! The guest changes them meanwhile, and a walk may be led into another list. So an entry counts by what its own
//! `struct page` says, read with the link to the next one.

use std::ops::Range;

use memory::{FRAME_SHIFT, Gpa};

use super::super::error::{AddressError, KernelError};
use super::super::types::Types;
use super::{FreeFrames, ORDER_MAX, Page, PageClass};

/// Nodes and CPUs that are looked at.
const NODES: u64 = 8;
const CPUS: u64 = 256;
/// Entries of one list that are followed from either end: the newest are at the ends.
const ENTRIES: usize = 512;
/// Lists and entries of one walk: a guest may have any number.
const STEPS: usize = 1 << 16;
/// Elements of an array of lists, areas or zones.
const TABLE_MAX: u64 = 64;
/// `struct list_head`.
const HEAD: usize = 16;

/// Where the lists are, and what tells a free frame in them. To be asked again and again.
#[derive(Debug)]
pub struct FreeLists {
    pub(in super::super) frames: FreeFrames,
    pub(in super::super) places: ListPlaces,
}

/// Offsets and sizes in the kernel's structures, and addresses of its variables.
#[derive(Debug)]
pub(in super::super) struct ListPlaces {
    node_data: u64,
    per_cpu_offset: u64,
    nr_cpu_ids: u64,
    zones: Table,
    areas: Table,
    lists: Table,
    per_cpu: u64,
    per_cpu_lists: Table,
}

/// An array in a structure.
#[derive(Clone, Copy, Debug)]
struct Table {
    offset: u64,
    /// Of an element.
    size: u64,
    count: u64,
}

impl Table {
    fn of(types: &Types, name: &'static str, member: &str, size: usize) -> Option<Self> {
        let found = types.member(name, member)?;
        let (offset, size) = (found.offset()? as u64, size as u64);
        let count = found.bytes().checked_div(size);
        let count = count.filter(|count| (1..=TABLE_MAX).contains(count))?;
        Some(Self { offset, size, count })
    }

    /// Where the elements of the array in the structure at `base` are.
    fn at(self, base: u64) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |n| base.wrapping_add(self.offset).wrapping_add(n * self.size))
    }
}

impl ListPlaces {
    pub(in super::super) fn new(
        types: &Types,
        address_of: impl Fn(&'static str) -> Result<u64, KernelError>,
    ) -> Result<Self, KernelError> {
        let unknown = || KernelError::Unknown {
            what: "lists of free frames",
            why: "BTF has no complete zone".to_owned(),
        };
        let size = |name| types.size_of(name).ok_or_else(unknown);
        let table = |of, member, size| Table::of(types, of, member, size).ok_or_else(unknown);
        Ok(Self {
            node_data: address_of("node_data")?,
            per_cpu_offset: address_of("__per_cpu_offset")?,
            nr_cpu_ids: address_of("nr_cpu_ids")?,
            zones: table("pglist_data", "node_zones", size("zone")?)?,
            areas: table("zone", "free_area", size("free_area")?)?,
            lists: table("free_area", "free_list", HEAD)?,
            per_cpu: types.offset("zone", "per_cpu_pageset").ok_or_else(unknown)? as u64,
            per_cpu_lists: table("per_cpu_pages", "lists", HEAD)?,
        })
    }
}

/// Which list an entry is in.
#[derive(Clone, Copy)]
enum Kind {
    Buddy { order: u64 },
    Cpu,
}

impl FreeLists {
    /// What tells a free frame from another.
    #[must_use]
    pub fn frames(&self) -> &FreeFrames {
        &self.frames
    }

    /// The frames in each list, as far as they are reached from its ends: 512 entries, and 65,536 in all. Of a list of a
    /// CPU's, the first frame of each block. Some come twice.
    ///
    /// # Errors
    /// The lists are not where they were: another kernel runs.
    pub fn walk(&self) -> Result<Vec<Range<u32>>, AddressError> {
        let mut walk = Walk { lists: self, left: STEPS, found: Vec::new() };
        walk.nodes()?;
        Ok(walk.found)
    }

    /// Where the `struct page` is that has this entry, and the number of its frame in the guest's memory.
    fn page_of(&self, entry: u64) -> Option<(u64, u64)> {
        let FreeFrames { layout, vmemmap, .. } = &self.frames;
        let page = entry.checked_sub(layout.lru as u64)?;
        let (size, offset) = (layout.size as u64, page.checked_sub(*vmemmap)?);
        offset.is_multiple_of(size).then_some((page, offset / size))
    }

    /// The frames of the block that begins there, if its first page says that it is a free one of this kind.
    fn free_at(&self, number: u64, kind: Kind, page: &Page<'_>) -> Option<Range<u32>> {
        let FreeFrames { layout, view, .. } = &self.frames;
        let class = layout.types.class(page.u32(layout.page_type));
        let order = match kind {
            Kind::Buddy { order } => {
                let is_it = class == Some(PageClass::Free) && page.u64(layout.private) == order;
                is_it.then_some(order)?
            }
            Kind::Cpu => (class.is_none() && page.u32(layout.refcount) == 0).then_some(0)?,
        };
        let gpa = Gpa(number.checked_mul(1 << FRAME_SHIFT)?);
        let first = view.layout().frame_of(gpa)?.0;
        let inside = view.layout().contiguous(gpa) >> FRAME_SHIFT;
        let count = (1_u64 << order.min(ORDER_MAX)).min(inside) as u32;
        Some(first..first.saturating_add(count))
    }
}

struct Walk<'a> {
    lists: &'a FreeLists,
    /// Steps.
    left: usize,
    found: Vec<Range<u32>>,
}

impl Walk<'_> {
    fn nodes(&mut self) -> Result<(), AddressError> {
        let FreeLists { frames: FreeFrames { space, .. }, places } = self.lists;
        for node in 0..NODES {
            let node = space.u64(places.node_data.wrapping_add(node * 8))?;
            if node == 0 {
                break;
            }
            for zone in places.zones.at(node) {
                for (order, area) in places.areas.at(zone).enumerate() {
                    self.heads(places.lists, area, Kind::Buddy { order: order as u64 })?;
                }
                let of_cpus = space.u64(zone.wrapping_add(places.per_cpu))?;
                if of_cpus != 0 {
                    self.cpus(of_cpus)?;
                }
            }
        }
        Ok(())
    }

    fn cpus(&mut self, lists: u64) -> Result<(), AddressError> {
        let FreeLists { frames: FreeFrames { space, .. }, places } = self.lists;
        let count = space.u32(places.nr_cpu_ids)?;
        for cpu in 0..CPUS.min(count.into()) {
            let offset = space.u64(places.per_cpu_offset.wrapping_add(cpu * 8))?;
            self.heads(places.per_cpu_lists, lists.wrapping_add(offset), Kind::Cpu)?;
        }
        Ok(())
    }

    /// All lists of `table`, in the structure at `base`.
    fn heads(&mut self, table: Table, base: u64, kind: Kind) -> Result<(), AddressError> {
        let mut heads = [0; TABLE_MAX as usize * HEAD];
        let heads = &mut heads[..table.count as usize * HEAD];
        self.lists.frames.space.read(base.wrapping_add(table.offset), heads)?;
        self.left = self.left.saturating_sub(heads.len() / HEAD);
        for (head, ends) in table.at(base).zip(heads.chunks_exact(HEAD)) {
            for link in [0, 8] {
                self.follow(head, Page(ends).u64(link), link, kind);
            }
        }
        Ok(())
    }

    /// From `entry` on, by the entries' word at `link`: 0 leads to the next one, 8 to the one before.
    fn follow(&mut self, head: u64, mut entry: u64, link: usize, kind: Kind) {
        let FreeFrames { space, layout, .. } = &self.lists.frames;
        let mut bytes = Vec::new();
        for _ in 0..ENTRIES {
            let Some(left) = self.left.checked_sub(1).filter(|_| entry != head) else { return };
            self.left = left;
            let Some((page, number)) = self.lists.page_of(entry) else { return };
            bytes.resize(layout.size, 0);
            if space.read(page, &mut bytes).is_err() {
                return;
            }
            let page = Page(&bytes);
            let Some(frames) = self.lists.free_at(number, kind, &page) else { return };
            self.found.push(frames);
            entry = page.u64(layout.lru + link);
        }
    }
}
