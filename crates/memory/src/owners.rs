//! Who used each frame last, as far as page walks show: a program, through a translation for users, or the kernel,
//! through one that is the kernel's alone.
//!
//! A vCPU walks when it has no translation yet. What goes by a translation that it has already is not seen, until an
//! epoch ends and takes the translations back.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::address::{Access, Frame};

/// What is known of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners(u8);

/// A translation for users led to it, after the kernel's last write through its own.
const USER: u8 = 1;
/// The same, for a write.
const USER_WROTE: u8 = 1 << 1;
/// The kernel has written to it through a translation of its own, since that was last forgotten.
const KERNEL_WROTE: u8 = 1 << 2;
/// The kernel has run code in it, after its own last write.
const KERNEL_RAN: u8 = 1 << 3;
/// It was told as a root of page tables, since that was last forgotten.
const ROOT: u8 = 1 << 4;
/// The kernel has written to it, of which nobody was told yet: not of who uses it, but there is room.
const CHANGED: u8 = 1 << 5;

impl Owners {
    /// A program's memory, last that the kernel's own translations were used to write there.
    #[must_use]
    pub fn is_users(self) -> bool {
        self.0 & USER != 0
    }

    /// Written to through a translation for users, after the kernel's own last write.
    #[must_use]
    pub fn user_wrote(self) -> bool {
        self.0 & USER_WROTE != 0
    }

    /// The kernel has written to it by itself, since that was last forgotten.
    #[must_use]
    pub fn kernel_wrote(self) -> bool {
        self.0 & KERNEL_WROTE != 0
    }

    /// The kernel has run code in it, and not written to it by itself since.
    #[must_use]
    pub fn kernel_ran(self) -> bool {
        self.0 & KERNEL_RAN != 0
    }
}

/// [`Owners`] of each frame: a byte each.
#[derive(Debug)]
pub(crate) struct OwnerTable(Box<[AtomicU8]>);

impl OwnerTable {
    pub(crate) fn new(frames: u32) -> Self {
        Self((0..frames).map(|_| AtomicU8::new(0)).collect())
    }

    pub(crate) fn of(&self, frame: Frame) -> Owners {
        Owners(self.0.get(frame.index()).map_or(0, |owners| owners.load(Ordering::Relaxed)))
    }

    /// A walk led to `frame`, through a translation for users or not.
    #[inline]
    pub(crate) fn note(&self, frame: Frame, access: Access, fetch: bool, user: bool) {
        let Some(owners) = self.0.get(frame.index()) else { return };
        let after = |before: u8| match (user, access) {
            (true, Access::Read) => before & !KERNEL_RAN | USER,
            (true, Access::Write) => before & !KERNEL_RAN | USER | USER_WROTE,
            (false, Access::Write) => before & (ROOT | CHANGED) | KERNEL_WROTE,
            (false, Access::Read) if fetch => before | KERNEL_RAN,
            (false, Access::Read) => before,
        };
        let before = owners.load(Ordering::Relaxed);
        if after(before) != before {
            let changed = |before| Some(after(before));
            // It always has a value.
            let _ = owners.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
        }
    }

    /// True the first time, and again after [`OwnerTable::forget_root`].
    #[inline]
    pub(crate) fn is_new_root(&self, frame: Frame) -> bool {
        let Some(owners) = self.0.get(frame.index()) else { return false };
        owners.load(Ordering::Relaxed) & ROOT == 0
            && owners.fetch_or(ROOT, Ordering::Relaxed) & ROOT == 0
    }

    pub(crate) fn forget_root(&self, frame: Frame) {
        self.forget(frame, ROOT);
    }

    pub(crate) fn forget_kernel(&self, frame: Frame) {
        self.forget(frame, KERNEL_WROTE);
    }

    /// The kernel has written to it. False: that was not told before either. Sequentially consistent, so that whoever
    /// looks for such frames finds it.
    #[inline]
    pub(crate) fn set_change(&self, frame: Frame) -> bool {
        let owners = self.0.get(frame.index());
        owners.is_some_and(|owners| owners.fetch_or(CHANGED, Ordering::SeqCst) & CHANGED == 0)
    }

    /// Whether it has since that was last asked.
    #[inline]
    pub(crate) fn take_change(&self, frame: Frame) -> bool {
        self.0.get(frame.index()).is_some_and(|owners| {
            owners.load(Ordering::SeqCst) & CHANGED != 0
                && owners.fetch_and(!CHANGED, Ordering::SeqCst) & CHANGED != 0
        })
    }

    fn forget(&self, frame: Frame, what: u8) {
        if let Some(owners) = self.0.get(frame.index())
            && owners.load(Ordering::Relaxed) & what != 0
        {
            owners.fetch_and(!what, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame(2);

    #[test]
    fn a_frame_is_a_users_until_the_kernel_writes_by_itself() {
        let table = OwnerTable::new(4);
        table.note(FRAME, Access::Write, false, false);
        assert!(table.of(FRAME).kernel_wrote() && !table.of(FRAME).is_users());
        table.note(FRAME, Access::Write, false, true);
        // The kernel reads it through its own: no change.
        table.note(FRAME, Access::Read, false, false);
        table.forget_kernel(FRAME);
        let owners = table.of(FRAME);
        assert!(owners.user_wrote() && owners.is_users() && !owners.kernel_wrote());
        table.note(FRAME, Access::Write, false, false);
        assert!(!table.of(FRAME).is_users() && !table.of(FRAME).user_wrote());
        assert_eq!(table.of(Frame(3)), Owners::default());
    }

    #[test]
    fn code_is_the_kernels_until_it_writes_there() {
        let table = OwnerTable::new(4);
        table.note(FRAME, Access::Read, true, false);
        assert!(table.of(FRAME).kernel_ran());
        table.note(FRAME, Access::Write, false, false);
        assert!(!table.of(FRAME).kernel_ran());
    }

    #[test]
    fn a_root_is_new_once_and_what_there_is_not_never() {
        let table = OwnerTable::new(4);
        assert_eq!([table.is_new_root(FRAME), table.is_new_root(FRAME)], [true, false]);
        table.note(FRAME, Access::Write, false, false);
        assert!(!table.is_new_root(FRAME));
        table.forget_root(FRAME);
        assert!(table.is_new_root(FRAME));
        assert!(!table.is_new_root(Frame(4)));
        table.note(Frame(u32::MAX), Access::Write, true, true);
        assert_eq!(table.of(Frame(4)), Owners::default());
    }
}
