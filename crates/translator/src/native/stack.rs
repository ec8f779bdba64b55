//! PUSH, POP and LEAVE.

use iced_x86::OpKind;

use super::asm::Address;
use super::fields::{SP, T0, T1, host, register};
use super::translate::{Step, Translator};

const RBP: u8 = 5;

impl Translator<'_> {
    pub(super) fn push(&mut self, step: &Step) -> Option<()> {
        self.asm.lea(T0, Address::at(SP, -8));
        let back = self.check(step, 8, true);
        let top = Address::at(T0, 0);
        if step.instr.op0_kind() == OpKind::Register {
            let value = self.value_of(step.instr.op0_register().number() as u8, T1);
            self.asm.store(top, value);
        } else {
            let value = step.instr.immediate(0) as i64;
            self.asm.store_constant(top, i32::try_from(value).ok()?);
        }
        self.asm.lea(SP, Address::at(SP, -8));
        self.asm.bind(back);
        Some(())
    }

    pub(super) fn pop(&mut self, step: &Step) {
        self.asm.mov(T0, SP);
        let back = self.check(step, 8, false);
        let slot = step.instr.op0_register().number() as u8;
        if slot != 4 {
            self.asm.lea(SP, Address::at(SP, 8));
        }
        let to = host(slot).unwrap_or(T0);
        self.asm.load(to, Address::at(T0, 0));
        if host(slot).is_none() {
            self.asm.store_field(register(slot), to);
        }
        self.asm.bind(back);
    }

    pub(super) fn leave(&mut self, step: &Step) {
        self.asm.mov(T0, RBP);
        let back = self.check(step, 8, false);
        self.asm.lea(SP, Address::at(RBP, 8));
        self.asm.load(RBP, Address::at(T0, 0));
        self.asm.bind(back);
    }
}
