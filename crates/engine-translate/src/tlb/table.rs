//! Tables that are found by bits of an address and know which of their entries are in use, so that emptying
//! one that is hardly used costs little.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags};

/// Bits of a word of [`Marks`].
const WORD: usize = 64;

/// Base-two logarithm of a page's size.
pub(super) const PAGE_SHIFT: u32 = 12;

/// What stands in a [`Table`].
///
/// # Safety
/// All zeroes are a value of it.
pub(super) unsafe trait Slot: Copy {
    /// Generated code puts entries back that stood here before: where something was inserted something may be,
    /// whatever was removed from there, until all that could be put back is gone.
    const RETURNS: bool = false;

    /// The first so many empty entries are not all zeroes.
    const NOT_ZERO: usize;

    /// What leads nowhere at `index`.
    fn empty(index: usize) -> Self;

    /// Where the entry for the page of `va` stands among `N`.
    #[inline(always)]
    fn index<const N: usize>(va: u64) -> usize {
        index::<N>(va)
    }

    /// Where entries for `region` may stand among `N`.
    fn indices<const N: usize>(region: Region) -> Range<usize> {
        region.indices(N)
    }

    /// Whether it may lead somewhere for an address in `region`, one of those that have its index.
    fn may_serve(&self, region: Region) -> bool;
}

/// The memory around a linear address that one leaf of the page tables may map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    number: u64,
    shift: u32,
}

impl Region {
    /// That of a leaf at `level` (0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB).
    pub(super) const fn around(va: u64, level: u32) -> Self {
        let shift = PAGE_SHIFT + 9 * level;
        Self { number: va >> shift, shift }
    }

    pub(super) const fn contains(self, va: u64) -> bool {
        va >> self.shift == self.number
    }

    /// Its address, if it is a single page.
    pub(super) fn page(self) -> Option<u64> {
        (self.shift == PAGE_SHIFT).then_some(self.number << PAGE_SHIFT)
    }

    /// A number below `values` (a power of two): one for neighbours and regions far apart that others of
    /// them hardly share.
    pub(super) const fn hash(self, values: usize) -> usize {
        // Fibonacci hashing: 2^64 divided by the golden ratio.
        (self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - values.ilog2())) as usize
    }

    /// Where its pages stand in a table of `entries`.
    fn indices(self, entries: usize) -> Range<usize> {
        let pages = 1usize << (self.shift - PAGE_SHIFT);
        if pages >= entries {
            return 0..entries;
        }
        let first = (self.number as usize).wrapping_mul(pages) & (entries - 1);
        first..first + pages
    }
}

/// `N` entries (a power of two, at least 64) by the low bits of the page number, at an address that stays:
/// it may be kept beside the table. They are a mapping of their own, which takes memory where entries were used: a
/// clone that stands, and a program that runs for a moment, use few.
pub(super) struct Table<T, const N: usize> {
    entries: NonNull<[T; N]>,
    /// Others are empty.
    filled: Marks,
    /// Those filled for the current address space alone.
    local: Marks,
}

// SAFETY: it owns its entries, as a box does.
unsafe impl<T: Send, const N: usize> Send for Table<T, N> {}

impl<T: Slot, const N: usize> Table<T, N> {
    const LAYOUT: Layout = Layout::new::<[T; N]>();

    pub(super) fn new() -> Self {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                Self::LAYOUT.size(),
                access,
                MapFlags::PRIVATE,
            )
        };
        let Some(entries) = mapped.ok().and_then(|at| NonNull::new(at.cast::<[T; N]>())) else {
            handle_alloc_error(Self::LAYOUT)
        };
        let mut table = Self { entries, filled: Marks::new(N), local: Marks::new(N) };
        for (index, entry) in table.entries_mut().iter_mut().enumerate().take(T::NOT_ZERO) {
            *entry = T::empty(index);
        }
        table
    }

    pub(super) fn as_ptr(&self) -> *const T {
        self.entries.as_ptr().cast()
    }

    pub(super) fn at(&self, va: u64) -> &T {
        // SAFETY: `new` mapped them for this table alone, as zeroes, which `Slot` allows; nobody writes without `&mut self`.
        let entries = unsafe { self.entries.as_ref() };
        &entries[T::index::<N>(va)]
    }

    /// Whether the entry of `va` is of the current address space alone.
    pub(super) fn is_local(&self, va: u64) -> bool {
        self.local.contains(T::index::<N>(va))
    }

    pub(super) fn insert(&mut self, va: u64, entry: T, local: bool) {
        let index = T::index::<N>(va);
        self.entries_mut()[index] = entry;
        self.filled.put(index, true);
        self.local.put(index, local || T::RETURNS && self.local.contains(index));
    }

    pub(super) fn clear(&mut self) {
        self.remove_where(0..N, |_| true);
        self.filled.clear();
        self.local.clear();
    }

    /// Empties the entries of the address space that is left.
    pub(super) fn clear_local(&mut self) {
        for word in 0..N / WORD {
            for index in ones(word, self.local.words[word]) {
                self.remove(index);
            }
        }
        self.local.clear();
    }

    /// Empties what may serve an address in `region`.
    pub(super) fn clear_region(&mut self, region: Region) {
        self.remove_where(T::indices::<N>(region), |entry| entry.may_serve(region));
    }

    /// Changes entries in use, which stay so.
    pub(super) fn change(&mut self, change: impl Fn(&mut T)) {
        for word in 0..N / WORD {
            for index in ones(word, self.filled.words[word]) {
                change(&mut self.entries_mut()[index]);
            }
        }
    }

    fn remove_where(&mut self, indices: Range<usize>, doomed: impl Fn(&T) -> bool) {
        for word in indices.start / WORD..indices.end.div_ceil(WORD) {
            for index in ones(word, self.filled.words[word]) {
                if indices.contains(&index) && doomed(&self.entries_mut()[index]) {
                    self.remove(index);
                }
            }
        }
    }

    fn remove(&mut self, index: usize) {
        self.entries_mut()[index] = T::empty(index);
        if !T::RETURNS {
            self.filled.put(index, false);
            self.local.put(index, false);
        }
    }

    fn entries_mut(&mut self) -> &mut [T; N] {
        // SAFETY: `new` mapped them for this table alone, which is borrowed; zeroes are a value, by `Slot`.
        unsafe { self.entries.as_mut() }
    }
}

impl<T, const N: usize> Drop for Table<T, N> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it for this table, whose it is no more. A slot is `Copy`: nothing of it is to be dropped.
        let unmapped =
            unsafe { rustix::mm::munmap(self.entries.as_ptr().cast(), size_of::<[T; N]>()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Where the page of `va` stands among `N` entries.
#[inline(always)]
pub(super) const fn index<const N: usize>(va: u64) -> usize {
    (va >> PAGE_SHIFT) as usize & (N - 1)
}

/// A set of indices.
struct Marks {
    words: Box<[u64]>,
}

impl Marks {
    fn new(indices: usize) -> Self {
        Self { words: vec![0; indices / WORD].into() }
    }

    fn clear(&mut self) {
        self.words.fill(0);
    }

    fn contains(&self, index: usize) -> bool {
        self.words[index / WORD] >> (index % WORD) & 1 != 0
    }

    fn put(&mut self, index: usize, marked: bool) {
        let word = &mut self.words[index / WORD];
        *word = *word & !(1 << (index % WORD)) | u64::from(marked) << (index % WORD);
    }
}

/// The indices that `bits`, word `word` of [`Marks`], stand for.
fn ones(word: usize, bits: u64) -> impl Iterator<Item = usize> {
    let some = |bits: u64| (bits != 0).then_some(bits);
    std::iter::successors(some(bits), move |bits| some(bits & (bits - 1)))
        .map(move |bits| word * WORD + bits.trailing_zeros() as usize)
}
