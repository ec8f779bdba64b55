//! What is known of the accesses of one privilege in one address space.

use std::cell::OnceCell;
use std::ops::Range;

use translator::native::tables::{
    GUARDS, NO_GUARD, SECOND, TRANSLATIONS, Translation, guard, guard_index, second_index,
};

use super::table::{Region, Slot, Table, index};
use crate::walk::Leaf;

/// Entries for fetches; a power of two.
const FETCHES: usize = 256;

/// Hashes of the regions of one size in which large pages were met; a power of two.
const REGIONS: usize = 1024;

/// One translation for fetches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    /// Linear address of the page.
    from: u64,
    /// Physical address of the page.
    to: u64,
}

/// The guard of a page (see [`tables`](translator::native::tables)).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Guard(u64);

/// An entry of the second table for data.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Second(Translation);

/// See the module.
pub(super) struct Context {
    data: Table<Translation, TRANSLATIONS>,
    /// What `data` has, and had before another page took its place.
    second: Table<Second, SECOND>,
    fetches: Table<Fetch, FETCHES>,
    /// Made when first asked for: the interpreter has no use for it.
    guards: OnceCell<Table<Guard, GUARDS>>,
    large: LargePages,
}

impl Context {
    pub(super) fn new() -> Self {
        Self {
            data: Table::new(),
            second: Table::new(),
            fetches: Table::new(),
            guards: OnceCell::new(),
            large: LargePages::default(),
        }
    }

    /// Its entry for the page of `va` is at [`data_index`](translator::native::tables::data_index).
    pub(super) fn data_table(&self) -> *const Translation {
        self.data.as_ptr()
    }

    /// Its entry for the page of `va` is at [`second_index`].
    pub(super) fn second_table(&self) -> *const Translation {
        self.second.as_ptr().cast()
    }

    /// Its entry for the page of `va` is at [`Fetch::index`].
    pub(super) fn fetch_table(&self) -> *const Fetch {
        self.fetches.as_ptr()
    }

    /// Its entry for the page of `va` is at [`guard_index`].
    pub(super) fn guard_table(&self) -> *const u64 {
        self.guards.get_or_init(Table::new).as_ptr().cast()
    }

    pub(super) fn insert(&mut self, va: u64, host: usize, write: bool, leaf: Leaf) {
        self.large.note(va, leaf.level);
        let read = va & !0xfff;
        let write = if write { read } else { Translation::nowhere(read) };
        let entry = Translation { read, write, host };
        self.data.insert(va, entry, !leaf.global);
        self.second.insert(va, Second(entry), !leaf.global);
    }

    pub(super) fn insert_fetch(&mut self, va: u64, gpa: u64, leaf: Leaf) {
        self.large.note(va, leaf.level);
        let entry = Fetch { from: va & !0xfff, to: gpa & !0xfff };
        self.fetches.insert(va, entry, !leaf.global);
    }

    /// Adds the guard that leads from the page of `va` to the code of frame `frame`, while a fetch from
    /// there is translated. Every flush of that translation drops it; a translation that takes its place
    /// does not.
    pub(super) fn admit(&mut self, va: u64, frame: u32) {
        if self.fetches.at(va).leads(va).is_none() {
            return;
        }
        let local = self.fetches.is_local(va);
        self.guards.get_or_init(Table::new);
        if let Some(guards) = self.guards.get_mut() {
            guards.insert(va, Guard(guard(va, frame)), local);
        }
    }

    pub(super) fn clear(&mut self) {
        self.data.clear();
        self.second.clear();
        self.fetches.clear();
        if let Some(guards) = self.guards.get_mut() {
            guards.clear();
        }
        self.large = LargePages::default();
    }

    /// Forgets what is not global.
    pub(super) fn clear_local(&mut self) {
        self.data.clear_local();
        self.second.clear_local();
        self.fetches.clear_local();
        if let Some(guards) = self.guards.get_mut() {
            guards.clear_local();
        }
    }

    /// Forgets the page of `va`, and what is left of a large page around it.
    pub(super) fn flush_page(&mut self, va: u64) {
        for level in self.large.levels(va) {
            let region = Region::around(va, level);
            self.data.clear_region(region);
            self.second.clear_region(region);
            self.fetches.clear_region(region);
            if let Some(guards) = self.guards.get_mut() {
                guards.clear_region(region);
            }
        }
    }

    /// Forgets the page of `va` for data.
    pub(super) fn forget_data(&mut self, va: u64) {
        let page = Region::around(va, 0);
        self.data.clear_region(page);
        self.second.clear_region(page);
    }

    /// Forgets the page of `va`, of a large page nothing else.
    pub(super) fn forget_page(&mut self, va: u64) {
        self.forget_data(va);
        let page = Region::around(va, 0);
        self.fetches.clear_region(page);
        if let Some(guards) = self.guards.get_mut() {
            guards.clear_region(page);
        }
    }

    /// See [`Tlb::forget_watched`](super::Tlb::forget_watched).
    pub(super) fn forget_watched(&mut self, user: bool, watched: &impl Fn(usize, bool) -> bool) {
        let forget = |entry: &mut Translation| {
            let nowhere = Translation::nowhere(entry.read);
            if user && watched(entry.host, true) {
                // Of no page any more: what is forgotten twice must not come back.
                *entry = Translation { read: nowhere, write: nowhere, host: 0 };
            } else if entry.write == entry.read && watched(entry.host, false) {
                entry.write = nowhere;
            }
        };
        self.data.change(forget);
        self.second.change(|entry| forget(&mut entry.0));
    }

    /// No store hits any more. Entries of no page stay what they are.
    pub(super) fn drop_all_writes(&mut self) {
        let drop = |entry: &mut Translation| {
            if entry.host != 0 {
                entry.write = Translation::nowhere(entry.read);
            }
        };
        self.data.change(drop);
        self.second.change(|entry| drop(&mut entry.0));
    }

    /// No store to the host page hits any more.
    pub(super) fn drop_writes(&mut self, host_page: usize) {
        let drop = |entry: &mut Translation| {
            if entry.host == host_page {
                entry.write = Translation::nowhere(entry.read);
            }
        };
        self.data.change(drop);
        self.second.change(|entry| drop(&mut entry.0));
    }
}

impl Fetch {
    /// Where the entry for the page of `va` stands.
    #[inline(always)]
    pub(super) const fn index(va: u64) -> usize {
        index::<FETCHES>(va)
    }

    /// The physical address that a fetch at `va` comes from, if this is its translation.
    #[inline(always)]
    pub(super) fn leads(&self, va: u64) -> Option<u64> {
        (self.from == va & !0xfff).then_some(self.to | va & 0xfff)
    }
}

// SAFETY: it is numbers.
unsafe impl Slot for Translation {
    const NOT_ZERO: usize = 1;
    /// From the second table.
    const RETURNS: bool = true;

    fn empty(index: usize) -> Self {
        Self::empty(index)
    }

    fn may_serve(&self, region: Region) -> bool {
        region.contains(self.read)
    }
}

// SAFETY: it is numbers.
unsafe impl Slot for Second {
    const NOT_ZERO: usize = 1;

    fn empty(index: usize) -> Self {
        Self(Translation::empty(index))
    }

    fn index<const N: usize>(va: u64) -> usize {
        const { assert!(N == SECOND) };
        second_index(va)
    }

    /// Neighbours stand together, but not where their addresses say.
    fn indices<const N: usize>(region: Region) -> Range<usize> {
        match region.page() {
            Some(page) => second_index(page)..second_index(page) + 1,
            None => 0..N,
        }
    }

    fn may_serve(&self, region: Region) -> bool {
        self.0.may_serve(region)
    }
}

// SAFETY: it is numbers.
unsafe impl Slot for Fetch {
    const NOT_ZERO: usize = 1;

    fn empty(index: usize) -> Self {
        // Not the address of a page, or that of page 0, which has another index.
        Self { from: if index == 0 { u64::MAX } else { 0 }, to: 0 }
    }

    fn may_serve(&self, region: Region) -> bool {
        region.contains(self.from)
    }
}

// SAFETY: it is a number.
unsafe impl Slot for Guard {
    // Zero leads from some pages to some frames.
    const NOT_ZERO: usize = usize::MAX;

    fn empty(_: usize) -> Self {
        Self(NO_GUARD)
    }

    /// A guard does not tell its page.
    fn may_serve(&self, _: Region) -> bool {
        true
    }
}

// The guards stand where generated code looks for them.
const _: () = assert!(guard_index(0x1234_5678_9000) == index::<GUARDS>(0x1234_5678_9000));

/// Where large pages were met, so that INVLPG elsewhere need not look for their pieces: for 2 MiB and for
/// 1 GiB a set of hashes.
#[derive(Default)]
struct LargePages {
    met: [[u64; REGIONS / 64]; 2],
}

impl LargePages {
    fn note(&mut self, va: u64, level: u32) {
        if level > 0 {
            let hash = Region::around(va, level).hash(REGIONS);
            self.met[level as usize - 1][hash / 64] |= 1 << (hash % 64);
        }
    }

    /// At which levels `va` may be mapped, and certainly at the lowest.
    fn levels(&self, va: u64) -> impl Iterator<Item = u32> {
        (0..=2).filter(move |&level| {
            let hash = Region::around(va, level).hash(REGIONS);
            level == 0 || self.met[level as usize - 1][hash / 64] >> (hash % 64) & 1 != 0
        })
    }
}
