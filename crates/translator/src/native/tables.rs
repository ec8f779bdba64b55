//! The tables that generated code looks addresses up in. The machine owns and fills them; generated code
//! knows their layout.

/// One translation for data, 32 bytes, found by bits of the linear address (see [`data_index`]).
///
/// An access of `size` bytes at `va` may use it where `va - read` (or `va - write`), as an unsigned number,
/// is at most `4096 - size`: that is one subtraction and one comparison, and an access that crosses a page
/// never passes. The byte is then at host address `host + (va - read)`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Translation {
    /// Linear address of the page for reads; of a page that has another index, in both tables, where reads are not
    /// allowed.
    pub read: u64,
    /// The same for writes.
    pub write: u64,
    /// Host address of the page.
    pub host: usize,
}

/// Entries of a table of [`Translation`]; a power of two.
pub const TRANSLATIONS: usize = 1024;

/// Where the page of `va` stands.
#[inline(always)]
#[must_use]
pub const fn data_index(va: u64) -> usize {
    (va >> 12) as usize & (TRANSLATIONS - 1)
}

impl Translation {
    /// What allows nothing at `index`, of either table: the page has another index. But for the first entry that is page 0,
    /// all zeroes, so that a new table is memory that nobody has written yet.
    #[must_use]
    pub const fn empty(index: usize) -> Self {
        let page = if index == 0 { Self::nowhere(0) } else { 0 };
        Self { read: page, write: page, host: 0 }
    }

    /// What stands for `page` where an access is not allowed: a neighbour's address, which has another index in
    /// both tables.
    #[must_use]
    pub const fn nowhere(page: u64) -> u64 {
        page ^ 0x1000
    }
}

/// Entries of the second table of [`Translation`], which is looked up, by code out of line, where the first does
/// not answer; a power of two. It is larger, and pages that stand in each other's way in one do not in the other.
pub const SECOND: usize = 4096;

/// Where the page of `va` stands in it.
#[inline(always)]
#[must_use]
pub const fn second_index(va: u64) -> usize {
    ((va >> 12 ^ va) >> 12) as usize & (SECOND - 1)
}

/// Entries of a table of guards; a power of two.
///
/// A guard says which frame's code a page of linear addresses leads to: it is `token - page`, where
/// `token` stands for the frame ([`guard`]). Code of a frame may be entered at address `va` where
/// the guard of `va` plus the page of `va` is the frame's token, in the table of the current privilege and
/// address space.
pub const GUARDS: usize = 8192;

/// Where the guard for the page of `va` stands.
#[inline(always)]
#[must_use]
pub const fn guard_index(va: u64) -> usize {
    (va >> 12) as usize & (GUARDS - 1)
}

/// The guard that leads from the page of `va` to the frame whose number among those with code is `frame`.
/// No other page with the same index and no other frame gives this value while there are at most
/// [`CODE_FRAMES`].
#[inline(always)]
#[must_use]
pub const fn guard(va: u64, frame: u32) -> u64 {
    token(frame).wrapping_sub(va & !0xfff)
}

/// The token of a frame: a multiple of four, so that [`NO_GUARD`] plus any page is none.
#[inline(always)]
#[must_use]
pub const fn token(frame: u32) -> u64 {
    frame as u64 * 4
}

/// Frames with code that can be told apart: pages with the same index are at least 32 MiB apart, and four
/// times a number must not reach from one to the next.
pub const CODE_FRAMES: u32 = (GUARDS * 4096 / 4) as u32;

/// Leads nowhere.
pub const NO_GUARD: u64 = 1;
