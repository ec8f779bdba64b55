//! The ways into generated code and out of it.

use std::ops::Range;

use x86::rflags;

use super::again::Again;
use super::aside;
use super::asm::{Address, Asm};
use super::crossing::Crossing;
use super::fields::{RFLAGS, RIP, T0, T1, field, host, register};
use super::live::{self, Live};
use super::pairs;
use super::slot::Slot;
use super::strings::Strings;

/// Places of the thunks, in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Thunks {
    /// `extern "sysv64" fn(code: usize) -> u64`: loads the guest's registers and goes to `code`. Returns
    /// what [`Exit`] says.
    pub(super) enter: u32,
    /// Comes out; T0 is RIP.
    pub(super) leave: u32,
    /// Called: comes out at a branch that can be linked. After the call stand the branch's site (4 bytes) and
    /// its target in the page (2).
    pub(super) leave_near: u32,
    /// The same into another page: T0 is RIP, flags are aside, and after the call stands the site (4).
    pub(super) leave_far: u32,
    /// A branch was executed outside, and is noted: by the table for indirect ones to RIP.
    pub(super) by_rip: u32,
    /// A guard did not hold: T0 is RIP, and flags are aside.
    pub(super) guard_miss: u32,
    /// A return that is not paired: T0 is its target, and it is noted.
    pub(super) miss: u32,
    /// Called: executes one instruction outside. After the call stands what [`super::outside`] says.
    pub(super) call_out: u32,
    /// The same where the flags were put aside.
    pub(super) call_out_aside: u32,
    /// Those for vector registers.
    pub(super) live: Live,
    /// Those for operands in two pages.
    pub(super) crossing: Crossing,
    pub(super) again: Again,
    pub(super) slot: Slot,
    pub(super) strings: Strings,
    /// Behind all of them.
    pub(super) end: u32,
}

/// What the entry thunk returns.
#[allow(non_snake_case, reason = "a namespace of constants")]
pub(super) mod Exit {
    pub(in crate::native) const DONE: u64 = 1;
    pub(in crate::native) const FAULT: u64 = 2;
    pub(in crate::native) const RETRY: u64 = 3;
    /// After an instruction that was executed outside.
    pub(in crate::native) const ENDED: u64 = 4;
    pub(in crate::native) const INTERPRET: u64 = 5;
    /// The highest.
    pub(in crate::native) const MOST: u64 = INTERPRET;
}

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSP: u8 = 4;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// The callee's own in the System V ABI, and one more so that the stack is aligned.
const SAVED: [u8; 7] = [RDI, 3, 5, 12, 13, 14, 15];

impl Thunks {
    /// What they are called, and where they begin and end.
    pub(super) fn names(&self) -> [(&'static str, Range<u32>); 3] {
        [
            ("fathom_enter", self.miss..self.leave_near),
            ("fathom_leave", self.leave_near..self.call_out),
            ("fathom_call_out", self.call_out..self.end),
        ]
    }

    /// Of the thunk at `place`, where it is called: its name, and the bytes of data behind the call.
    pub(super) fn called(&self, place: u32) -> Option<(&'static str, usize)> {
        match place {
            place if place == self.call_out => Some(("call outside", 0)),
            place if place == self.call_out_aside => Some(("call outside, with flags", 0)),
            place if place == self.leave_near => Some(("leave in this page", 6)),
            place if place == self.leave_far => Some(("leave for another page", 4)),
            _ => None,
        }
    }

    /// Emits all of them.
    pub(super) fn emit(asm: &mut Asm) -> Self {
        let mut thunks = Self { miss: pairs::emit_miss(asm), ..Self::default() };

        align(asm);
        thunks.enter = asm.here();
        SAVED.iter().for_each(|&reg| asm.push(reg));
        asm.mov(T0, RDI);
        pairs::begin(asm, thunks.miss);
        load_guest(asm);
        asm.jump_register(T0);

        align(asm);
        let link = asm.label();
        thunks.leave_near = asm.here();
        asm.pop(T1);
        asm.load_16(T0, Address::at(T1, 4));
        asm.load_32(T1, Address::at(T1, 0));
        // Without a flag.
        asm.store_field(field!(target), T1);
        asm.load_field(T1, field!(page));
        asm.add_registers(T0, T1);
        asm.load_field(T1, field!(target));
        asm.jump(link);

        align(asm);
        thunks.leave_far = asm.here();
        aside::flags_from_field(asm);
        asm.pop(T1);
        asm.load_32(T1, Address::at(T1, 0));
        // The bit that says far, without a flag.
        asm.lea(T1, Address::at(T1, i32::MIN));
        asm.jump(link);

        align(asm);
        thunks.by_rip = asm.here();
        asm.load_field(T0, RIP);
        aside::flags_to_field(asm);
        asm.jump_by_table();

        align(asm);
        thunks.guard_miss = asm.here();
        aside::flags_from_field(asm);
        thunks.leave = asm.here();
        // No site: a link is never at place 0.
        asm.constant_32(T1, 0);
        asm.bind(link);
        asm.store_field(field!(site), T1);
        asm.store_field(RIP, T0);
        store_guest(asm);
        asm.constant_32(RAX, Exit::DONE as u32);
        let out = asm.label();
        asm.bind(out);
        pairs::end(asm);
        SAVED.iter().rev().for_each(|&reg| asm.pop(reg));
        asm.raw(&[0xc3]);

        align(asm);
        thunks.call_out = asm.here();
        asm.pop(T0);
        store_guest(asm);
        asm.store_field(field!(top), RSP);
        asm.load_field(RDI, field!(core));
        asm.mov(RSI, T0);
        asm.call_field(field!(call_out));
        // How to come out, or where to go on.
        asm.compare(RAX, Exit::MOST as i32);
        asm.jump_if(super::asm::Condition::BE, out);
        asm.mov(T0, RAX);
        asm.load_field(RSP, field!(top));
        load_guest(asm);
        asm.jump_register(T0);

        align(asm);
        thunks.call_out_aside = asm.here();
        aside::flags_from_field(asm);
        asm.jump_to(thunks.call_out);

        align(asm);
        let refused = asm.here();
        // The return address.
        asm.pop(RCX);
        asm.load_field(RCX, field!(rcx));
        asm.load_field(T0, field!(page));
        asm.lea(T0, Address::sum(T0, T1, 0));
        asm.store_field(RIP, T0);
        store_guest(asm);
        asm.constant_32(RAX, Exit::INTERPRET as u32);
        asm.jump(out);
        align(asm);
        thunks.live = Live::emit(asm, refused);
        thunks.crossing = Crossing::emit(asm);
        thunks.again = Again::emit(asm);
        thunks.slot = Slot::emit(asm);
        thunks.strings = Strings::emit(asm, thunks.again);
        thunks.end = asm.here();
        thunks
    }
}

fn align(asm: &mut Asm) {
    asm.keep_together(16, 16);
}

/// Leaves T0 and T1 alone.
fn load_guest(asm: &mut Asm) {
    asm.load_field(RAX, RFLAGS);
    asm.mov(RCX, RAX);
    asm.shift_left_32(RAX, 8);
    asm.shift_right(RCX, 11);
    asm.and_32(RCX, 1);
    asm.or(RAX, RCX);
    asm.flags_from_ax();
    for slot in 0..16 {
        if let Some(reg) = host(slot) {
            asm.load_field(reg, register(slot));
        }
    }
}

/// The vector registers too, if they are live. Leaves T0 and T1 alone.
fn store_guest(asm: &mut Asm) {
    for slot in 0..16 {
        if let Some(reg) = host(slot) {
            asm.store_field(register(slot), reg);
        }
    }
    asm.flags_to_ax();
    // ECX = AH, EAX = AL: OF goes to its bit.
    asm.raw(&[0x0f, 0xb6, 0xcc, 0x0f, 0xb6, 0xc0]);
    asm.shift_left_32(RAX, 11);
    asm.or(RAX, RCX);
    asm.and_32(RAX, rflags::STATUS as i32);
    asm.load_field(RDX, RFLAGS);
    asm.and(RDX, !(rflags::STATUS as i32));
    asm.or(RDX, RAX);
    asm.store_field(RFLAGS, RDX);
    live::put_away(asm);
}
