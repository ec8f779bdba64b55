//! The page that the stack is in, kept beside the tables: more than half of all accesses are to it.
//!
//! An access by RSP compares its page with the one in the slot, whose address does not depend on anything that the
//! guest computes. It must be aligned: the bits below the page that are compared are clear then, and one that
//! crosses pages never passes. What the slot does not answer is looked up in the tables by a thunk, which fills it.
//!
//! It is emptied whenever anything but generated code has run ([`empty`]): that may have changed what it was filled
//! from.

use std::mem::offset_of;

use super::address::first_entry;
use super::again;
use super::asm::{Address, Asm, Condition, Label};
use super::fields::{Fields, T0, T1, field};
use super::select::is_on_stack;
use super::stub::{Stub, Work};
use super::tables::Translation;
use super::translate::{Step, Translator};

const RCX: u8 = 1;
const RDX: u8 = 2;

/// No address, with all bits below its lowest eight cleared, and no page.
const NOWHERE: u64 = 0x800;

/// Places of the thunks. Each is called with the size of the access in T1, which it destroys with the flags; makes T0
/// the host's address and returns, or leaves it and returns behind the next jump.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    pub(super) read: u32,
    pub(super) write: u32,
}

/// The slot holds nothing.
#[inline(always)]
pub(super) fn empty(fields: &mut Fields) {
    (fields.stack_read, fields.stack_write) = (NOWHERE, NOWHERE);
}

impl Slot {
    pub(super) fn emit(asm: &mut Asm) -> Self {
        let read = asm.here();
        fill(asm, offset_of!(Translation, read) as i32);
        let write = asm.here();
        fill(asm, offset_of!(Translation, write) as i32);
        Self { read, write }
    }
}

fn fill(asm: &mut Asm, page: i32) {
    let (found, fail) = (asm.label(), asm.label());
    asm.push(RCX);
    asm.push(RDX);
    asm.lea(RDX, Address::sum(T1, T0, -1));
    asm.xor(RDX, T0);
    asm.and(RDX, -4096);
    asm.jump_if(Condition::NE, fail);
    asm.mov(RDX, T0);
    asm.and(RDX, -4096);
    first_entry(asm, T1, T0);
    asm.load(RCX, Address::at(T1, page));
    asm.compare_registers(true, RCX, RDX);
    asm.jump_if(Condition::E, found);
    again::second_entry(asm, T1, T0);
    asm.load(RCX, Address::at(T1, page));
    asm.compare_registers(true, RCX, RDX);
    asm.jump_if(Condition::NE, fail);
    asm.bind(found);
    let parts = [
        (offset_of!(Translation, read), field!(stack_read)),
        (offset_of!(Translation, write), field!(stack_write)),
    ];
    for (part, field) in parts {
        let allowed = asm.label();
        asm.load(RCX, Address::at(T1, part as i32));
        asm.compare_registers(true, RCX, RDX);
        asm.jump_if(Condition::E, allowed);
        asm.constant_32(RCX, NOWHERE as u32);
        asm.bind(allowed);
        asm.store_field(field, RCX);
    }
    asm.load(RCX, Address::at(T1, offset_of!(Translation, host) as i32));
    asm.sub(RCX, RDX);
    asm.store_field(field!(stack_host), RCX);
    asm.add_registers(T0, RCX);
    asm.pop(RDX);
    asm.pop(RCX);
    asm.ret();
    asm.bind(fail);
    asm.pop(RDX);
    asm.pop(RCX);
    again::return_behind_jump(asm);
}

impl Translator<'_> {
    /// As [`Translator::check`], for a memory operand of an instruction that needs T0 alone.
    pub(super) fn check_any(&mut self, step: &Step, size: usize, write: bool) -> Label {
        if self.rarely || is_on_stack(&step.instr) && matches!(size, 1 | 2 | 4 | 8) {
            self.check_stack(step, size, write)
        } else {
            self.check(step, size, write)
        }
    }

    /// The same for an access to the stack.
    pub(super) fn check_stack(&mut self, step: &Step, size: usize, write: bool) -> Label {
        if self.rarely {
            return self.check_by_call(step, size, write);
        }
        if !self.options.stack_slot {
            return self.check(step, size, write);
        }
        self.put_flags_aside(step.before);
        let [miss, go, back] = [(); 3].map(|()| self.asm.label());
        let page = if write { field!(stack_write) } else { field!(stack_read) };
        self.asm.mov(T1, T0);
        self.asm.and(T1, -4096 | (size as i32 - 1));
        self.asm.compare_with_field(T1, page);
        self.asm.jump_if(Condition::NE, miss);
        self.asm.add_field(T0, field!(stack_host));
        self.asm.bind(go);
        let outside = self.called_out(step, back);
        let size = size as u32;
        self.stubs.push(Stub { label: miss, work: Work::Stack { go, size, write, outside } });
        back
    }

    /// The same by the thunk, which takes less room than to look in line.
    fn check_by_call(&mut self, step: &Step, size: usize, write: bool) -> Label {
        self.put_flags_aside(step.before);
        let [go, slow, back] = [(); 3].map(|()| self.asm.label());
        self.stack_stub(go, size as u32, write);
        self.asm.jump(slow);
        self.asm.bind(go);
        self.stubs.push(Stub { label: slow, work: self.work_outside(step, back) });
        back
    }

    /// [`Work::Stack`], but for what is done outside, which comes next.
    pub(super) fn stack_stub(&mut self, go: Label, size: u32, write: bool) {
        let slot = self.thunks.slot;
        self.asm.constant_32(T1, size);
        self.asm.call_to(if write { slot.write } else { slot.read });
        self.asm.jump(go);
        const { assert!(again::JUMP == 5) };
    }

    /// Generated code has changed the tables.
    pub(super) fn empty_slot(&mut self) {
        self.asm.store_field_constant(field!(stack_read), NOWHERE as i32);
        self.asm.store_field_constant(field!(stack_write), NOWHERE as i32);
    }
}
