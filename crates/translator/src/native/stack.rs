//! PUSH, POP and LEAVE.

use iced_x86::OpKind;

use super::asm::{Address, Label};
use super::fields::{SP, T0, T1, field, host, register};
use super::groups::Known;
use super::translate::{Step, Translator};

const RBP: u8 = 5;

impl Translator<'_> {
    pub(super) fn push(&mut self, step: &Step) -> Option<()> {
        let (top, back) = self.on_stack(step, -8);
        if step.instr.op0_kind() == OpKind::Register {
            let value = self.value_of(step.instr.op0_register().number() as u8, T1);
            self.asm.store(top, value);
        } else {
            let value = step.instr.immediate(0) as i64;
            self.asm.store_constant(top, i32::try_from(value).ok()?);
        }
        self.asm.lea(SP, Address::at(SP, -8));
        back.into_iter().for_each(|back| self.asm.bind(back));
        Some(())
    }

    /// Where the word is that is `above` the guest's stack pointer: what is pushed is below it. And where it goes on if
    /// that was done outside.
    pub(super) fn on_stack(&mut self, step: &Step, above: i32) -> (Address, Option<Label>) {
        if let Some(Known { base, delta }) = self.known_place(step) {
            return (Address::at(base, delta), None);
        }
        if above == 0 {
            self.asm.mov(T0, SP);
        } else {
            self.asm.lea(T0, Address::at(SP, above));
        }
        (Address::at(T0, 0), Some(self.check_stack(step, 8, above < 0)))
    }

    /// Where the second access is made outside, so is the first once more.
    pub(super) fn push_memory(&mut self, step: &Step) {
        if self.address(step).is_none() {
            self.outside(step);
            return;
        }
        let loaded = self.check(step, 8, false);
        self.asm.load(T1, Address::at(T0, 0));
        self.asm.store_field(field!(target), T1);
        self.asm.lea(T0, Address::at(SP, -8));
        let stored = self.check(step, 8, true);
        self.asm.load_field(T1, field!(target));
        self.asm.store(Address::at(T0, 0), T1);
        self.asm.lea(SP, Address::at(SP, -8));
        self.asm.bind(loaded);
        self.asm.bind(stored);
    }

    pub(super) fn pop(&mut self, step: &Step) {
        let (top, back) = self.on_stack(step, 0);
        let slot = step.instr.op0_register().number() as u8;
        if slot != 4 {
            self.asm.lea(SP, Address::at(SP, 8));
        }
        let to = host(slot).unwrap_or(self.scratch());
        self.asm.load(to, top);
        if host(slot).is_none() {
            self.asm.store_field(register(slot), to);
        }
        back.into_iter().for_each(|back| self.asm.bind(back));
    }

    pub(super) fn leave(&mut self, step: &Step) {
        self.asm.mov(T0, RBP);
        let back = self.check_stack(step, 8, false);
        self.asm.lea(SP, Address::at(RBP, 8));
        self.asm.load(RBP, Address::at(T0, 0));
        self.asm.bind(back);
    }
}
