//! The software TLB of one vCPU.
//!
//! Direct-mapped, one half for supervisor and one for user accesses, so that the privilege check is the
//! choice of the half. A tag is the page's linear address with the address-space number in its low twelve
//! bits: one comparison checks both, and a switch between address spaces flushes nothing. An access is
//! compared with the tag of its *last* byte at the index of its first: one that crosses a page never hits.

/// Entries of one half; a power of two.
const HALF: usize = 1024;

/// A tag that no access produces: address-space numbers end at 0xffe.
const NEVER: u64 = u64::MAX;

/// One translation. A tag that is `NEVER` sends its kind of access to the slow path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    /// Host address minus linear address.
    pub(crate) addend: usize,
}

const EMPTY: Entry = Entry { read: NEVER, write: NEVER, addend: 0 };

/// See the module.
pub(crate) struct Tlb {
    entries: Box<[Entry; 2 * HALF]>,
    /// 0 for supervisor, `HALF` for user accesses.
    half: usize,
    /// Address-space number, 0..=0xffe.
    asid: u64,
    /// Whether an entry may be part of a large page: then INVLPG must look at all entries.
    large: bool,
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
        let entries: Box<[Entry]> = vec![EMPTY; 2 * HALF].into_boxed_slice();
        let entries = entries.try_into().expect("the length is 2 * HALF");
        Self { entries, half: 0, asid: 0, large: false }
    }

    /// The entry that an access at `va` has to match.
    #[inline(always)]
    pub(crate) fn entry(&self, va: u64) -> &Entry {
        &self.entries[(self.half | (va >> 12) as usize & (HALF - 1)) & (2 * HALF - 1)]
    }

    /// What its tag must be for an access of `size` bytes at `va`.
    #[inline(always)]
    pub(crate) fn tag(&self, va: u64, size: usize) -> u64 {
        va.wrapping_add(size as u64 - 1) & !0xfff | self.asid
    }

    #[inline(always)]
    pub(crate) fn asid(&self) -> u64 {
        self.asid
    }

    pub(crate) fn set_user(&mut self, user: bool) {
        self.half = if user { HALF } else { 0 };
    }

    pub(crate) fn set_asid(&mut self, asid: u64) {
        self.asid = asid;
    }

    /// Adds the translation of the page of `va`, for the privilege `user`.
    pub(crate) fn insert(&mut self, va: u64, host_page: usize, user: bool, rights: Rights) {
        let page = va & !0xfff;
        let tag = page | self.asid;
        let half = if user { HALF } else { 0 };
        self.large |= rights.large;
        self.entries[half | (va >> 12) as usize & (HALF - 1)] = Entry {
            read: if rights.read { tag } else { NEVER },
            write: if rights.write { tag } else { NEVER },
            addend: host_page.wrapping_sub(page as usize),
        };
    }

    /// Forgets everything, all address spaces and global pages.
    pub(crate) fn flush(&mut self) {
        self.entries.fill(EMPTY);
        self.large = false;
    }

    /// Forgets one address space. Global pages go too: forgetting more than asked is always allowed.
    pub(crate) fn flush_asid(&mut self, asid: u64) {
        for entry in self.entries.iter_mut() {
            let tag = if entry.read == NEVER { entry.write } else { entry.read };
            if tag & 0xfff == asid {
                *entry = EMPTY;
            }
        }
    }

    /// Forgets the page of `va` in every address space, and what is left of a large page around it.
    pub(crate) fn flush_page(&mut self, va: u64) {
        let index = (va >> 12) as usize & (HALF - 1);
        self.entries[index] = EMPTY;
        self.entries[HALF | index] = EMPTY;
        if self.large {
            let gib = va >> 30;
            for entry in self.entries.iter_mut() {
                let tag = if entry.read == NEVER { entry.write } else { entry.read };
                if tag >> 30 == gib {
                    *entry = EMPTY;
                }
            }
        }
    }

    /// No store goes unseen any more to any page: for a frame that becomes code.
    pub(crate) fn drop_writes(&mut self) {
        for entry in self.entries.iter_mut() {
            entry.write = NEVER;
        }
    }
}
