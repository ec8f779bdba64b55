//! The guest's status flags, put aside where the host's are needed for something else.

use std::mem;

use super::asm::Asm;
use super::fields::{T1, field};
use super::flags::{Effects, Flags};
use super::translate::{Step, Translator};

const RAX: u8 = 0;

impl Translator<'_> {
    /// The host's RFLAGS are about to be destroyed; some of them are needed. Destroys T1.
    pub(super) fn put_flags_aside(&mut self, needed: Flags) {
        if needed == 0 || self.aside {
            return;
        }
        flags_to_field(&mut self.asm);
        self.aside = true;
    }

    /// The guest's flags are in RFLAGS again. Destroys T1.
    pub(super) fn take_flags_back(&mut self) {
        if mem::take(&mut self.aside) {
            self.flags_from_field();
        }
    }

    pub(super) fn flags_from_field(&mut self) {
        flags_from_field(&mut self.asm);
    }

    /// Before the host's instruction for `step`: flags that it needs, or leaves as they are beside some
    /// that it changes, must be in RFLAGS; flags that it overwrites need not.
    pub(super) fn prepare_flags(&mut self, step: &Step) {
        let Effects { reads, writes, kills } = step.effects;
        if reads != 0 || writes != 0 && step.after & !kills != 0 {
            self.take_flags_back();
        }
        if writes != 0 {
            self.aside = false;
        }
    }
}

/// Destroys T1.
pub(super) fn flags_to_field(asm: &mut Asm) {
    asm.mov(T1, RAX);
    asm.flags_to_ax();
    asm.store_field_16(field!(flags), RAX);
    asm.mov(RAX, T1);
}

/// Destroys T1.
pub(super) fn flags_from_field(asm: &mut Asm) {
    asm.mov(T1, RAX);
    asm.load_field_16(RAX, field!(flags));
    asm.flags_from_ax();
    asm.mov(RAX, T1);
}
