//! The software TLB of one vCPU.
//!
//! Direct-mapped, one half for supervisor and one for user accesses, so that the privilege check is the
//! choice of the half. A tag is the page's linear address with the address-space number in its low twelve
//! bits: one comparison checks both, and a switch between address spaces flushes nothing. An access is
//! compared with the tag of its *last* byte at the index of its first: one that crosses a page never hits.
//!
//! Instruction fetches have entries of their own, which lead to physical addresses: blocks are kept by
//! those.

/// Data entries of one half; a power of two.
const HALF: usize = 1024;

/// Fetch entries of one half; a power of two.
const FETCH_HALF: usize = 256;

/// Regions of large pages that are remembered for INVLPG; with more, it flushes everything.
const REGIONS: usize = 8;

/// Base-two logarithm of the largest page.
const REGION_SHIFT: u32 = 30;

/// A tag that no access produces: address-space numbers end at 0xffe.
const NEVER: u64 = u64::MAX;

/// One translation for data. A tag that is `NEVER` sends its kind of access to the slow path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    /// Host address minus linear address.
    pub(crate) addend: usize,
}

const EMPTY: Entry = Entry { read: NEVER, write: NEVER, addend: 0 };

impl Entry {
    fn tag(&self) -> u64 {
        if self.read == NEVER { self.write } else { self.read }
    }
}

/// One translation for fetches.
#[derive(Clone, Copy, Debug)]
struct FetchEntry {
    tag: u64,
    /// Physical address of the page.
    page: u64,
}

const NO_FETCH: FetchEntry = FetchEntry { tag: NEVER, page: 0 };

/// See the module.
pub(crate) struct Tlb {
    entries: Box<[Entry; 2 * HALF]>,
    fetches: Box<[FetchEntry; 2 * FETCH_HALF]>,
    /// Whether user accesses are looked up.
    user: bool,
    /// Address-space number, 0..=0xffe.
    asid: u64,
    large: LargeRegions,
}

/// What a translation allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) large: bool,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self {
            entries: boxed(EMPTY),
            fetches: boxed(NO_FETCH),
            user: false,
            asid: 0,
            large: LargeRegions::default(),
        }
    }

    /// The entry that an access at `va` has to match.
    #[inline(always)]
    pub(crate) fn entry(&self, va: u64) -> &Entry {
        &self.entries[data_index(va, self.user)]
    }

    /// What its tag must be for an access of `size` bytes at `va`.
    #[inline(always)]
    pub(crate) fn tag(&self, va: u64, size: usize) -> u64 {
        va.wrapping_add(size as u64 - 1) & !0xfff | self.asid
    }

    /// The host address for an access of `len` bytes, where a privilege's translation is known.
    #[inline(always)]
    pub(crate) fn cached(&self, va: u64, len: usize, user: bool, write: bool) -> Option<usize> {
        let entry = &self.entries[data_index(va, user)];
        let tag = if write { entry.write } else { entry.read };
        (tag == self.tag(va, len)).then(|| entry.addend.wrapping_add(va as usize))
    }

    /// The physical address that a fetch at `va` comes from, where it is known.
    #[inline(always)]
    pub(crate) fn fetch(&self, va: u64) -> Option<u64> {
        let entry = &self.fetches[fetch_index(va, self.user)];
        (entry.tag == va & !0xfff | self.asid).then_some(entry.page | va & 0xfff)
    }

    pub(crate) fn set_user(&mut self, user: bool) {
        self.user = user;
    }

    pub(crate) fn set_asid(&mut self, asid: u64) {
        self.asid = asid;
    }

    /// Adds the translation of the page of `va`, for the privilege `user`.
    pub(crate) fn insert(&mut self, va: u64, host_page: usize, user: bool, rights: Rights) {
        let page = va & !0xfff;
        let tag = page | self.asid;
        self.note_large(va, rights.large);
        self.entries[data_index(va, user)] = Entry {
            read: if rights.read { tag } else { NEVER },
            write: if rights.write { tag } else { NEVER },
            addend: host_page.wrapping_sub(page as usize),
        };
    }

    /// Adds the translation of the page of `va` to physical address `gpa` for fetches.
    pub(crate) fn insert_fetch(&mut self, va: u64, gpa: u64, user: bool, large: bool) {
        self.note_large(va, large);
        let entry = FetchEntry { tag: va & !0xfff | self.asid, page: gpa & !0xfff };
        self.fetches[fetch_index(va, user)] = entry;
    }

    fn note_large(&mut self, va: u64, large: bool) {
        if large {
            self.large.note(va >> REGION_SHIFT);
        }
    }

    /// Forgets everything, all address spaces and global pages.
    pub(crate) fn flush(&mut self) {
        self.entries.fill(EMPTY);
        self.fetches.fill(NO_FETCH);
        self.large = LargeRegions::default();
    }

    /// Forgets one address space. Global pages go too: forgetting more than asked is always allowed.
    pub(crate) fn flush_asid(&mut self, asid: u64) {
        self.flush_where(|tag| tag & 0xfff == asid);
    }

    /// Forgets the page of `va` in every address space, and what is left of a large page around it.
    pub(crate) fn flush_page(&mut self, va: u64) {
        for user in [false, true] {
            self.entries[data_index(va, user)] = EMPTY;
            self.fetches[fetch_index(va, user)] = NO_FETCH;
        }
        let region = va >> REGION_SHIFT;
        if self.large.may_contain(region) {
            self.flush_where(|tag| tag >> REGION_SHIFT == region);
        }
    }

    /// Sends the next data access to the page of `va` to the slow path, whatever the address space.
    pub(crate) fn forget_data(&mut self, va: u64) {
        for user in [false, true] {
            self.entries[data_index(va, user)] = EMPTY;
        }
    }

    fn flush_where(&mut self, doomed: impl Fn(u64) -> bool) {
        self.entries
            .iter_mut()
            .filter(|entry| doomed(entry.tag()))
            .for_each(|entry| *entry = EMPTY);
        let fetches = self.fetches.iter_mut();
        fetches.filter(|entry| doomed(entry.tag)).for_each(|entry| *entry = NO_FETCH);
    }

    /// No store to the host page goes unseen any more: its frame becomes code.
    pub(crate) fn drop_writes(&mut self, host_page: usize) {
        for entry in self.entries.iter_mut() {
            if entry.addend.wrapping_add((entry.write & !0xfff) as usize) == host_page {
                entry.write = NEVER;
            }
        }
    }
}

/// Where large pages have been seen, by address / 1 GiB: few regions, since kernels map their memory in one
/// and their text in another, so that INVLPG elsewhere need not look at every entry.
#[derive(Debug, Default)]
struct LargeRegions {
    known: [u64; REGIONS],
    /// How many; more than `REGIONS` once some could not be kept.
    count: usize,
}

impl LargeRegions {
    fn note(&mut self, region: u64) {
        if self.may_contain(region) {
            return;
        }
        if let Some(slot) = self.known.get_mut(self.count) {
            *slot = region;
        }
        self.count += 1;
    }

    fn may_contain(&self, region: u64) -> bool {
        self.known.get(..self.count).is_none_or(|known| known.contains(&region))
    }
}

#[inline(always)]
fn data_index(va: u64, user: bool) -> usize {
    (va >> 12) as usize & (HALF - 1) | if user { HALF } else { 0 }
}

#[inline(always)]
fn fetch_index(va: u64, user: bool) -> usize {
    (va >> 12) as usize & (FETCH_HALF - 1) | if user { FETCH_HALF } else { 0 }
}

fn boxed<T: Clone, const N: usize>(value: T) -> Box<[T; N]> {
    let Ok(array) = vec![value; N].into_boxed_slice().try_into() else {
        unreachable!("the vector has N elements")
    };
    array
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const WRITABLE: Rights = Rights { read: true, write: true, large: false };
    const LARGE: Rights = Rights { read: true, write: true, large: true };

    /// Whether an access would hit.
    fn hits(tlb: &Tlb, va: u64, size: usize) -> bool {
        tlb.entry(va).read == tlb.tag(va, size)
    }

    #[test]
    fn an_access_that_crosses_a_page_never_hits() {
        let mut tlb = Tlb::new();
        tlb.insert(0x1000, 0x10_0000, false, WRITABLE);
        tlb.insert(0x2000, 0x20_0000, false, WRITABLE);
        assert!(hits(&tlb, 0x1ff8, 8) && hits(&tlb, 0x2000, 8));
        assert!(!hits(&tlb, 0x1ff9, 8) && !hits(&tlb, 0x1fff, 2));
    }

    #[test]
    fn privileges_and_address_spaces_are_apart() {
        let mut tlb = Tlb::new();
        tlb.set_asid(5);
        tlb.insert(0x1000, 0x10_0000, false, WRITABLE);
        tlb.insert_fetch(0x1000, 0x7000, false, false);
        assert_eq!(tlb.fetch(0x1234), Some(0x7234));
        tlb.set_user(true);
        assert!(!hits(&tlb, 0x1000, 1) && tlb.fetch(0x1000).is_none());
        tlb.set_user(false);
        tlb.set_asid(6);
        assert!(!hits(&tlb, 0x1000, 1) && tlb.fetch(0x1000).is_none());
        tlb.flush_asid(6);
        tlb.set_asid(5);
        assert!(hits(&tlb, 0x1000, 1) && tlb.fetch(0x1000).is_some());
        tlb.flush_asid(5);
        assert!(!hits(&tlb, 0x1000, 1) && tlb.fetch(0x1000).is_none());
    }

    #[test]
    fn a_flushed_page_takes_the_rest_of_its_large_page_along() {
        let mut tlb = Tlb::new();
        tlb.insert(0x4000_0000, 0, false, LARGE);
        tlb.insert_fetch(0x4020_1000, 0x5000, false, true);
        tlb.insert(0x8000_1000, 0, false, WRITABLE);
        tlb.flush_page(0x4010_0000);
        assert!(!hits(&tlb, 0x4000_0000, 1) && tlb.fetch(0x4020_1000).is_none());
        assert!(hits(&tlb, 0x8000_1000, 1));
    }

    #[test]
    fn many_large_regions_are_all_flushed() {
        let mut tlb = Tlb::new();
        for region in 0..20u64 {
            tlb.insert(region << 30 | region << 12, 0, false, LARGE);
        }
        tlb.flush_page(13 << 30 | 0x20_0000);
        assert!(!hits(&tlb, 13 << 30 | 13 << 12, 1));
    }

    #[test]
    fn a_dropped_write_can_still_be_read() {
        let mut tlb = Tlb::new();
        tlb.insert(0x1000, 0x7f00_0000_5000, true, WRITABLE);
        tlb.insert(0x9000, 0x7f00_0000_5000, false, WRITABLE);
        tlb.insert(0x2000, 0x7f00_0000_6000, true, WRITABLE);
        tlb.drop_writes(0x7f00_0000_5000);
        assert!(tlb.cached(0x1000, 1, true, false).is_some());
        assert!(tlb.cached(0x1000, 1, true, true).is_none());
        assert!(tlb.cached(0x9000, 1, false, true).is_none());
        assert!(tlb.cached(0x2000, 1, true, true).is_some());
    }

    /// Against a map that forgets nothing it is not told to: what the TLB knows must be in the map.
    #[test]
    fn it_never_knows_what_was_flushed() {
        let mut tlb = Tlb::new();
        let mut model = HashMap::new();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for step in 0..20_000u64 {
            let (va, asid) = (next(3) << 30 | next(3000) << 12, next(4));
            tlb.set_asid(asid);
            match next(40) {
                0 => {
                    tlb.flush_page(va);
                    // Large pages cover up to 1 GiB: the map drops what they may have covered.
                    model.retain(|&(page, _), &mut (large, _)| {
                        page != va && !(large && page >> 30 == va >> 30)
                    });
                }
                1 => {
                    tlb.flush_asid(asid);
                    model.retain(|&(_, other), _| other != asid);
                }
                _ => {
                    let large = next(50) == 0;
                    tlb.insert(va, step as usize, false, Rights { large, ..WRITABLE });
                    model.insert((va, asid), (large, step));
                }
            }
            let (va, asid) = (next(3) << 30 | next(3000) << 12, next(4));
            tlb.set_asid(asid);
            if hits(&tlb, va, 1) {
                let host = tlb.entry(va).addend.wrapping_add(va as usize) as u64;
                assert_eq!(model.get(&(va, asid)).map(|&(_, host)| host), Some(host));
            }
        }
    }
}
