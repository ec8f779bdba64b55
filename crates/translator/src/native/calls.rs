//! SYSCALL and SYSRET between flat segments: the segments, the tables of the other privilege level, and a branch.
//!
//! What they load is in [`Calls`]. The machine is told later: see [`View::of_privilege`](super::View).

use std::mem::offset_of;

use x86::{Segment, rflags};

use super::asm::{Address, Condition};
use super::fields::{CPL, RFLAGS, T0, T1, Tables, field, segment};
use super::lane::Calls;
use super::translate::{Step, Translator};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSP: u8 = 4;
const R11: u8 = 11;

const CS: usize = 1;
const SS: usize = 2;

/// Flags that SYSRET takes from R11, but for bit 1, which is always set: neither RF nor VM.
const RETURNED: u64 = 0x003c_7fd5;

/// With these the next instruction does not simply follow.
const SPECIAL: u64 = rflags::TF | rflags::AC;

impl Translator<'_> {
    pub(super) fn syscall(&mut self, step: &Step) {
        let ways = self.ways(step);
        // From within the kernel nothing would change sides; nobody does that.
        self.asm.compare_field_byte(CPL, 3);
        self.refuse_if(Condition::NE, &ways);
        self.asm.load_field(T0, field!(system.calls));
        self.asm.test(T0, T0);
        self.refuse_if(Condition::E, &ways);
        self.address_in_page(RCX, step.next.into());
        self.asm.push(RAX);
        self.whole_flags(R11);
        self.asm.and(R11, !(rflags::RF as i32));
        self.asm.mov(T1, R11);
        self.asm.and_memory(T1, Address::at(T0, offset_of!(Calls, kept) as i32));
        self.change_sides(0, offset_of!(Calls, inner), field!(system.supervisor));
        self.asm.load(T0, Address::at(T0, offset_of!(Calls, target) as i32));
        self.go_with_flags(step);
        self.behind_handler(step, ways.back);
    }

    pub(super) fn sysret(&mut self, step: &Step) {
        let ways = self.ways(step);
        self.asm.compare_field_byte(CPL, 0);
        self.refuse_if(Condition::NE, &ways);
        self.refuse_waiting(&ways);
        self.asm.test_bits(R11, SPECIAL as u32);
        self.refuse_if(Condition::NE, &ways);
        self.asm.mov(T0, RCX);
        self.refuse_no_address(&ways);
        self.asm.compare_field(field!(system.user), 0);
        self.refuse_if(Condition::E, &ways);
        self.asm.load_field(T0, field!(system.calls));
        self.asm.test(T0, T0);
        self.refuse_if(Condition::E, &ways);
        self.asm.push(RAX);
        self.asm.mov(T1, R11);
        self.asm.and(T1, RETURNED as i32);
        self.asm.lea(T1, Address::at(T1, rflags::FIXED as i32));
        self.change_sides(3, offset_of!(Calls, outer), field!(system.user));
        self.asm.mov(T0, RCX);
        self.go_with_flags(step);
        self.behind_handler(step, ways.back);
    }

    /// Takes up a privilege level, with CS and SS from `segments` in the [`Calls`] at T0, the tables in the field `from`,
    /// and RFLAGS in T1. Destroys RAX.
    fn change_sides(&mut self, cpl: u8, segments: usize, from: i32) {
        const SIZE: usize = size_of::<Segment>();
        const { assert!(SIZE == 16 && size_of::<Tables>() == 24) };
        for at in (0..SIZE).step_by(8) {
            for (index, slot) in [CS, SS].into_iter().enumerate() {
                let loaded = segments + index * SIZE + at;
                self.asm.load(RAX, Address::at(T0, loaded as i32));
                self.asm.store_field(segment(slot) + at as i32, RAX);
            }
        }
        self.asm.store_field_byte(CPL, cpl);
        self.asm.store_field_constant(field!(system.moved), 1);
        self.empty_slot();
        let to = [field!(translations), field!(second), field!(guards)];
        for (from, to) in (from..).step_by(8).zip(to) {
            self.asm.load_field(RAX, from);
            self.asm.store_field(to, RAX);
        }
        self.asm.store_field(RFLAGS, T1);
    }

    /// Goes to T0 with the status flags that are in T1; RAX is on the host's stack.
    fn go_with_flags(&mut self, step: &Step) {
        let asm = &mut self.asm;
        // See `Asm::flags_to_ax`.
        asm.mov(RAX, T1);
        asm.shift_left_32(RAX, 8);
        asm.shift_right(T1, rflags::OF.trailing_zeros() as u8);
        asm.and_32(T1, 1);
        asm.or(RAX, T1);
        asm.store_field_16(field!(flags), RAX);
        asm.pop(RAX);
        // Addresses lead elsewhere on this side.
        asm.load_field(RSP, field!(stack));
        self.aside = true;
        self.go_to_t0(step.offset, 0);
    }

    /// The handler has set RIP.
    fn behind_handler(&mut self, step: &Step, back: super::asm::Label) {
        self.asm.bind(back);
        self.go_by_rip(step);
    }
}
