//! The software TLB of one vCPU.
//!
//! ```text
//! set_user, set_asid ---> context in use: data    (linear -> host, for loads and stores; generated code has a
//!                           |                      second, larger table that it fills the first from)
//!                           |             fetches (linear -> physical, for finding blocks)
//!                           |             guards  (linear -> frame with code, for generated code)
//!                           |
//!     supervisor, all address spaces  |  user, one for each of the last few address spaces
//! ```
//!
//! Which accesses a translation serves is told by the context that it is in, so that a lookup compares
//! addresses and nothing else. A kernel has most of its memory in common between address spaces: its one
//! context loses at a switch only what is not global (SDM volume 3, 4.10.2.4).
//!
//! Interpreter and generated code look up data in the same tables ([`tables`](translator::native::tables)).
//! What must be seen by the machine at every access (devices, watched pages, stores to code) is simply not
//! in them.

mod context;
mod spaces;
mod table;

use translator::native::Privilege;
use translator::native::tables::{SECOND, Translation, data_index};

use crate::walk::Leaf;
use context::{Context, Fetch};
use spaces::Spaces;

/// Bytes of the page of an entry.
const PAGE: u64 = 4096;

/// The tables of an address space in which nothing was accessed, and of data that takes the slow path: the second
/// is the longer one.
static NOTHING: [Translation; SECOND] = nothing();

/// See the module.
pub(crate) struct Tlb {
    /// Where ordinary accesses are looked up: in `of_privilege`, or `NOTHING` while `slow`.
    data: *const Translation,
    /// The second table beside it.
    second: *const Translation,
    /// Where fetches are looked up.
    fetches: *const Fetch,
    /// The data tables for supervisor and for user accesses.
    of_privilege: [*const Translation; 2],
    supervisor: Context,
    spaces: Spaces,
    /// Whether accesses are looked up with user privilege.
    user: bool,
    /// Whether all ordinary data accesses take the slow path.
    slow: bool,
    asid: u64,
}

// SAFETY: the pointers lead to `NOTHING` or to what its own contexts own, which stays where it is on the
// heap when they move.
unsafe impl Send for Tlb {}

impl Tlb {
    pub(crate) fn new() -> Self {
        let supervisor = Context::new();
        Self {
            data: supervisor.data_table(),
            second: supervisor.second_table(),
            fetches: supervisor.fetch_table(),
            of_privilege: [supervisor.data_table(), NOTHING.as_ptr()],
            supervisor,
            spaces: Spaces::default(),
            user: false,
            slow: false,
            asid: 0,
        }
    }

    /// The host address for a load of `size` bytes (at most a page).
    #[inline(always)]
    pub(crate) fn read(&self, va: u64, size: usize) -> Option<usize> {
        host(self.entry(va), va, size, false)
    }

    /// The host address for a store of `size` bytes.
    #[inline(always)]
    pub(crate) fn write(&self, va: u64, size: usize) -> Option<usize> {
        host(self.entry(va), va, size, true)
    }

    /// The host address for an access of `len` bytes, where a privilege's translation is known; also while
    /// ordinary accesses take the slow path.
    #[inline(always)]
    pub(crate) fn cached(&self, va: u64, len: usize, user: bool, write: bool) -> Option<usize> {
        let table = self.of_privilege[usize::from(user)];
        // SAFETY: as in `entry`.
        let entry = unsafe { &*table.add(data_index(va)) };
        if len as u64 <= PAGE { host(entry, va, len, write) } else { None }
    }

    /// The physical address that a fetch at `va` comes from, where it is known.
    #[inline(always)]
    pub(crate) fn fetch(&self, va: u64) -> Option<u64> {
        // SAFETY: `point` took it from the context in use, whose table stays where it is while the context
        // lives, and contexts live as long as this; the index is below its length.
        unsafe { &*self.fetches.add(Fetch::index(va)) }.leads(va)
    }

    /// Where generated code looks data up: `TRANSLATIONS` entries, until the next call of `set_user`,
    /// `set_slow` or `set_asid`.
    pub(crate) fn data_table(&self) -> *const Translation {
        self.data
    }

    /// Where it looks next: `SECOND` entries, for as long.
    pub(crate) fn second_table(&self) -> *const Translation {
        self.second
    }

    /// Where generated code looks for guards: `GUARDS` of them, until the next call of `set_user` or
    /// `set_asid`.
    pub(crate) fn guard_table(&self) -> *const u64 {
        self.current().guard_table()
    }

    /// The tables of a privilege level in the address space in use, until the next call of `set_asid`; `None` where
    /// nothing was accessed.
    pub(crate) fn tables(&self, user: bool) -> Option<Privilege> {
        let context = if user { self.spaces.entered()? } else { &self.supervisor };
        Some(Privilege {
            translations: context.data_table() as usize,
            second: context.second_table() as usize,
            guards: context.guard_table() as usize,
        })
    }

    /// Lets generated code of frame `frame` (among those with code) be entered through the page of `va`, if
    /// fetches from there are translated, and for as long as no flush forgets it.
    pub(crate) fn admit(&mut self, va: u64, frame: u32) {
        self.context(self.user).admit(va, frame);
    }

    pub(crate) fn set_user(&mut self, user: bool) {
        self.user = user;
        self.point();
    }

    /// Sends all ordinary data accesses to the slow path, or no longer.
    pub(crate) fn set_slow(&mut self, slow: bool) {
        self.slow = slow;
        self.point();
    }

    /// Takes up another address space, of which everything is known that was not flushed.
    pub(crate) fn set_asid(&mut self, asid: u64) {
        if asid == self.asid {
            return;
        }
        self.asid = asid;
        self.supervisor.clear_local();
        self.spaces.leave();
        self.of_privilege[1] = NOTHING.as_ptr();
        self.point();
    }

    /// Adds the translation of the page of `va` to the host page at `host_page`, for privilege `user`.
    pub(crate) fn insert(
        &mut self,
        va: u64,
        host_page: usize,
        user: bool,
        write: bool,
        leaf: Leaf,
    ) {
        self.context(user).insert(va, host_page, write, leaf);
    }

    /// Adds the translation of the page of `va` to physical address `gpa` for fetches.
    pub(crate) fn insert_fetch(&mut self, va: u64, gpa: u64, user: bool, leaf: Leaf) {
        self.context(user).insert_fetch(va, gpa, leaf);
    }

    /// Forgets everything, all address spaces and global pages.
    pub(crate) fn flush(&mut self) {
        self.contexts().for_each(Context::clear);
    }

    /// Forgets one address space but for the kernel's global pages.
    pub(crate) fn flush_asid(&mut self, asid: u64) {
        // Nothing else of another address space is in the supervisor's context.
        if asid == self.asid {
            self.supervisor.clear_local();
        }
        if let Some(context) = self.spaces.find(asid) {
            context.clear();
        }
    }

    /// Forgets the page of `va` in every address space, and what is left of a large page around it.
    pub(crate) fn flush_page(&mut self, va: u64) {
        self.contexts().for_each(|context| context.flush_page(va));
    }

    /// Sends the next data access to the page of `va` to the slow path, whatever the address space.
    pub(crate) fn forget_data(&mut self, va: u64) {
        self.contexts().for_each(|context| context.forget_data(va));
    }

    /// Sends the next access to the page of `va`, fetches too, to a walk, whatever the address space. Less than
    /// [`Tlb::flush_page`]: other pieces of a large page stay.
    pub(crate) fn forget_page(&mut self, va: u64) {
        self.contexts().for_each(|context| context.forget_page(va));
    }

    /// No store to the host page goes unseen any more: its frame becomes code.
    pub(crate) fn drop_writes(&mut self, host_page: usize) {
        self.contexts().for_each(|context| context.drop_writes(host_page));
    }

    /// Sends the next store to each page to a walk; loads and fetches stay translated.
    pub(crate) fn drop_all_writes(&mut self) {
        self.contexts().for_each(Context::drop_all_writes);
    }

    /// Sends to a walk the next access of each kind that `watched` wants to see, of a host page: writes, and with
    /// `true` all by users. Fetches aside: what users run they had translated for fetches when it was mapped.
    pub(crate) fn forget_watched(&mut self, watched: impl Fn(usize, bool) -> bool) {
        self.supervisor.forget_watched(false, &watched);
        self.spaces.contexts().for_each(|context| context.forget_watched(true, &watched));
    }

    #[inline(always)]
    fn entry(&self, va: u64) -> &Translation {
        // SAFETY: as in `fetch`; `NOTHING` is at least as long.
        unsafe { &*self.data.add(data_index(va)) }
    }

    /// Points at the tables of the privilege and the address space.
    fn point(&mut self) {
        let context = self.context(self.user);
        let (data, second) = (context.data_table(), context.second_table());
        let fetches = context.fetch_table();
        self.data = if self.slow { NOTHING.as_ptr() } else { data };
        self.second = if self.slow { NOTHING.as_ptr() } else { second };
        self.fetches = fetches;
    }

    fn context(&mut self, user: bool) -> &mut Context {
        if !user {
            return &mut self.supervisor;
        }
        let context = self.spaces.enter(self.asid);
        self.of_privilege[1] = context.data_table();
        context
    }

    fn current(&self) -> &Context {
        let user = if self.user { self.spaces.entered() } else { None };
        user.unwrap_or(&self.supervisor)
    }

    fn contexts(&mut self) -> impl Iterator<Item = &mut Context> {
        std::iter::once(&mut self.supervisor).chain(self.spaces.contexts())
    }
}

/// Where an access of `size` bytes (at most a page) at `va` goes, if `entry` allows it.
#[inline(always)]
fn host(entry: &Translation, va: u64, size: usize, write: bool) -> Option<usize> {
    let offset = va.wrapping_sub(if write { entry.write } else { entry.read });
    (offset <= PAGE - size as u64).then(|| entry.host.wrapping_add(offset as usize))
}

const fn nothing() -> [Translation; SECOND] {
    let mut table = [Translation::empty(0); SECOND];
    let mut index = 0;
    while index < SECOND {
        table[index] = Translation::empty(index);
        index += 1;
    }
    table
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
