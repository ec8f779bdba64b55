//! The kernel's events as steps of the page cache and the swap cache, in the order of their times.

use super::facts::{Facts, Layout};
use super::ring::{self, Raw};
use anyhow::{Context, Result, bail};

/// Bytes of a `struct page` on x86-64.
const STRUCT_PAGE: u64 = 64;
/// Larger ones there are not in a page cache: 1 GiB.
const LARGEST_ORDER: u64 = 18;
/// Of a buffer outside the page cache: 16 MiB.
const MOST_UNITS: u64 = 1 << 15;
/// Of a swap entry in the kernel, the bits that are the page's number in the area (include/linux/swapops.h); above
/// them is the area's number.
const ENTRY_BITS: u32 = 58;

/// A page of a file: device, inode and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilePage {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) page: u64,
}

/// A page of a swap area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) area: u64,
    pub(super) page: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Memory was wanted.
    Reclaimed,
    /// Asked for by name, as by a write past the cache; its block goes on to be valid.
    Invalidated,
    /// The file's end moved before it, or the file went.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// So many pages at once, in frames that follow each other.
    Add {
        frame: u64,
        page: FilePage,
        count: u64,
    },
    Remove {
        frame: u64,
        page: FilePage,
        count: u64,
        why: Why,
    },
    SwapAdd {
        frame: u64,
        slot: Slot,
    },
    SwapRemove {
        frame: u64,
        slot: Slot,
        why: Why,
    },
    /// The content went on to another frame.
    Move {
        from: u64,
        to: u64,
    },
    /// A file system transfers so many blocks from there on that it keeps outside the page cache.
    Outside {
        device: u64,
        block: u64,
        count: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) tsc: u64,
    pub(super) what: What,
}

pub(super) fn of(facts: &Facts, rings: &[Vec<u8>]) -> Result<Vec<Step>> {
    let reader = Reader::new(facts)?;
    let mut steps = Vec::new();
    for (cpu, ring) in rings.iter().enumerate() {
        let raw = ring::events(ring).with_context(|| format!("events of processor {cpu}"))?;
        reader.read(&raw, &mut steps).with_context(|| format!("events of processor {cpu}"))?;
    }
    // Stable: what one processor did at one time stays in order.
    steps.sort_by_key(|step| step.tsc);
    Ok(steps)
}

struct Reader<'a> {
    facts: &'a Facts,
    add: &'a Layout,
    delete: &'a Layout,
    remove: &'a Layout,
    swap_add: &'a Layout,
    swap_remove: &'a Layout,
    moved: &'a Layout,
    /// Only where XFS is.
    buffer: Option<&'a Layout>,
}

impl<'a> Reader<'a> {
    fn new(facts: &'a Facts) -> Result<Self> {
        let layout = |name| {
            facts
                .layouts
                .get(name)
                .with_context(|| format!("the guest tells nothing of event {name}"))
        };
        Ok(Self {
            facts,
            add: layout("mm_filemap_add_to_page_cache")?,
            delete: layout("mm_filemap_delete_from_page_cache")?,
            remove: layout("remove")?,
            swap_add: layout("swap_add")?,
            swap_remove: layout("swap_remove")?,
            moved: layout("move")?,
            buffer: facts.layouts.get("xfs_buf_submit"),
        })
    }

    fn read(&self, events: &[Raw<'_>], steps: &mut Vec<Step>) -> Result<()> {
        // What the removal that follows is for.
        let mut why = None;
        for Raw { tsc, data } in events {
            let event = Event { data };
            let id = event.id()?;
            let what = if id == self.remove.id {
                why = Some(self.why(&event)?);
                continue;
            } else if id == self.add.id {
                let (frame, page, count) = event.folio(self.add)?;
                What::Add { frame, page, count }
            } else if id == self.delete.id {
                let (frame, page, count) = event.folio(self.delete)?;
                // Without a probe before it, one of a batch.
                What::Remove { frame, page, count, why: why.take().unwrap_or(Why::Truncated) }
            } else if id == self.swap_add.id {
                let layout = self.swap_add;
                What::SwapAdd { frame: event.frame(layout, "folio")?, slot: event.slot(layout)? }
            } else if id == self.swap_remove.id {
                let layout = self.swap_remove;
                let reclaimed = event.number(layout, "shadow")? != 0;
                let why = if reclaimed { Why::Reclaimed } else { Why::Truncated };
                What::SwapRemove {
                    frame: event.frame(layout, "folio")?,
                    slot: event.slot(layout)?,
                    why,
                }
            } else if id == self.moved.id {
                What::Move {
                    from: event.frame(self.moved, "folio")?,
                    to: event.frame(self.moved, "to")?,
                }
            } else if let Some(layout) = self.buffer.filter(|layout| layout.id == id) {
                event.buffer(layout)?
            } else {
                // Padding of the kernel's own, such as a note that somebody wrote to the trace.
                continue;
            };
            steps.push(Step { tsc: *tsc, what });
        }
        Ok(())
    }

    fn why(&self, event: &Event<'_>) -> Result<Why> {
        let caller = event.number(self.remove, "caller")?;
        let by = |name| self.facts.symbols.get(name).is_some_and(|range| range.contains(&caller));
        let shadow = event.number(self.remove, "shadow")?;
        Ok(match () {
            () if by("filemap_remove_folio") => Why::Truncated,
            // Reclaim leaves no shadow of a page that is not on a list of files' pages.
            () if shadow != 0 => Why::Reclaimed,
            () => Why::Invalidated,
        })
    }
}

struct Event<'a> {
    data: &'a [u8],
}

impl Event<'_> {
    /// Every event begins with the number of its kind.
    fn id(&self) -> Result<u16> {
        match self.data {
            [low, high, ..] => Ok(u16::from_le_bytes([*low, *high])),
            _ => bail!("an event is cut off"),
        }
    }

    fn number(&self, layout: &Layout, field: &str) -> Result<u64> {
        layout
            .number(self.data, field)
            .with_context(|| format!("event {} has no {field}", layout.id))
    }

    fn folio(&self, layout: &Layout) -> Result<(u64, FilePage, u64)> {
        let number = |field| self.number(layout, field);
        let page =
            FilePage { device: number("s_dev")?, inode: number("i_ino")?, page: number("index")? };
        // Kernels without large folios have no field for it.
        let order = layout.number(self.data, "order").unwrap_or(0);
        if order > LARGEST_ORDER {
            bail!("a folio of order {order}");
        }
        Ok((number("pfn")?, page, 1 << order))
    }

    /// The frame that a `struct page` is of.
    fn frame(&self, layout: &Layout, field: &str) -> Result<u64> {
        let (folio, base) = (self.number(layout, field)?, self.number(layout, "base")?);
        let offset = folio.checked_sub(base).context("a folio lies before all others")?;
        Ok(offset / STRUCT_PAGE)
    }

    /// Of the kernel's trace event: a place in units of 512 bytes, whatever the disk's sectors.
    fn buffer(&self, layout: &Layout) -> Result<What> {
        const UNITS: u64 = 8;
        let number = |field| self.number(layout, field);
        let (device, first, units) = (number("dev")?, number("bno")?, number("nblks")?);
        let end = first.checked_add(units).filter(|_| units <= MOST_UNITS);
        let end = end.with_context(|| format!("a buffer of {units} times 512 bytes"))?;
        let block = first / UNITS;
        Ok(What::Outside { device, block, count: end.div_ceil(UNITS) - block })
    }

    fn slot(&self, layout: &Layout) -> Result<Slot> {
        let entry = self.number(layout, "entry")?;
        Ok(Slot { area: entry >> ENTRY_BITS, page: entry & ((1 << ENTRY_BITS) - 1) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reproduce::geiger::truth::ring::tests::page;

    pub(in super::super) const EVENTS: &str = "event mm_filemap_add_to_page_cache 1 pfn:8:8 i_ino:16:8 index:24:8 s_dev:32:4 order:36:1\n\
        event mm_filemap_delete_from_page_cache 2 pfn:8:8 i_ino:16:8 index:24:8 s_dev:32:4 order:36:1\n\
        event remove 3 folio:8:8 shadow:16:8 caller:24:8\n\
        event swap_add 4 folio:8:8 entry:16:8 base:24:8\n\
        event swap_remove 5 folio:8:8 entry:16:8 shadow:24:8 base:32:8\n\
        event move 6 to:8:8 folio:16:8 base:24:8\n\
        symbol filemap_remove_folio 100 200\nsymbol __remove_mapping 300 400\n";

    /// An event of that kind, with these words after the first.
    pub(in super::super) fn event(id: u64, words: &[u64]) -> Vec<u8> {
        std::iter::once(&id).chain(words).flat_map(|word| word.to_le_bytes()).collect()
    }

    fn steps(events: &[Vec<u8>]) -> Vec<What> {
        let facts = Facts::parse(EVENTS).unwrap();
        let events: Vec<_> = events.iter().map(|event| (1, event.as_slice())).collect();
        of(&facts, &[page(10, &events)]).unwrap().into_iter().map(|step| step.what).collect()
    }

    #[test]
    fn a_removal_is_for_what_the_probe_before_it_says() {
        let delete = event(2, &[7, 12, 3, 9]);
        let probe = |shadow, caller| event(3, &[0, shadow, caller]);
        let events = [
            probe(5, 0x310),
            delete.clone(),
            probe(0, 0x310),
            delete.clone(),
            probe(0, 0x110),
            delete.clone(),
            delete,
        ];
        let page = FilePage { device: 9, inode: 12, page: 3 };
        let expected = [Why::Reclaimed, Why::Invalidated, Why::Truncated, Why::Truncated]
            .map(|why| What::Remove { frame: 7, page, count: 1, why });
        assert_eq!(steps(&events), expected);
    }

    #[test]
    fn large_folios_are_several_pages() {
        let page = FilePage { device: 9, inode: 12, page: 4 };
        let expected = What::Add { frame: 8, page, count: 4 };
        assert_eq!(steps(&[event(1, &[8, 12, 4, 2 << 32 | 9])]), [expected]);
        let facts = Facts::parse(EVENTS).unwrap();
        let absurd = event(1, &[8, 12, 4, 63 << 32 | 9]);
        assert!(of(&facts, &[super::super::ring::tests::page(1, &[(0, &absurd)])]).is_err());
    }

    #[test]
    fn the_swap_cache_and_moves_go_by_struct_page() {
        let base = 0xffff_ea00_0000_0000;
        let slot = Slot { area: 1, page: 33 };
        let entry = 1 << 58 | 33;
        let events = [
            event(4, &[base + 5 * 64, entry, base]),
            event(5, &[base + 5 * 64, entry, 1, base]),
            event(5, &[base + 6 * 64, entry, 0, base]),
            event(6, &[base + 2 * 64, base + 64, base]),
            event(99, &[]),
        ];
        let expected = [
            What::SwapAdd { frame: 5, slot },
            What::SwapRemove { frame: 5, slot, why: Why::Reclaimed },
            What::SwapRemove { frame: 6, slot, why: Why::Truncated },
            What::Move { from: 1, to: 2 },
        ];
        assert_eq!(steps(&events), expected);
    }

    #[test]
    fn buffers_are_all_blocks_that_they_reach() {
        let text = format!("{EVENTS}event xfs_buf_submit 7 dev:8:4 bno:16:8 nblks:24:4\n");
        let facts = Facts::parse(&text).unwrap();
        let read = |units| of(&facts, &[page(1, &[(0, &event(7, &[9, 15, units]))])]);
        let what = read(2).unwrap()[0].what;
        assert_eq!(what, What::Outside { device: 9, block: 1, count: 2 });
        assert!(read(1 << 16).is_err());
    }

    #[test]
    fn processors_are_put_together_by_time() {
        let facts = Facts::parse(EVENTS).unwrap();
        let add = |frame| event(1, &[frame, 12, frame, 9]);
        let rings = [page(5, &[(1, &add(1)), (10, &add(2))]), page(8, &[(0, &add(3))])];
        let tscs: Vec<_> = of(&facts, &rings).unwrap().iter().map(|step| step.tsc).collect();
        assert_eq!(tscs, [6, 8, 16]);
        let cut = page(5, &[(1, &[1, 0, 0, 0])]);
        assert!(of(&facts, &[cut]).is_err());
    }
}
