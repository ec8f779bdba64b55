//! BT, BTS, BTR and BTC with a bit number in a register: the bit may lie far from the operand's address.

use iced_x86::Instruction;

use super::address::displacement_fits;
use super::asm::Address;
use super::fields::{T0, T1};
use super::groups::Known;
use super::operands::{Spilled, writes_memory};
use super::translate::{Step, Translator};

impl Translator<'_> {
    /// The word that has the bit is checked; the instruction itself finds it again from where the operand would begin
    /// if all of it lay as the word does. `None`: nothing was emitted.
    pub(super) fn bit_string(&mut self, step: &Step) -> Option<()> {
        let instr = step.instr;
        let spilled = Spilled::of(&instr, &[T1], self.factory)?;
        if !displacement_fits(&instr) {
            return None;
        }
        let size = instr.op1_register().size();
        let scale = size.trailing_zeros() as u8;
        let write = writes_memory(&instr, self.factory);
        self.put_flags_aside(step.before);
        self.address(step)?;
        self.words(&instr, scale);
        self.asm.lea(T0, Address { base: Some(T0), index: Some((T1, scale)), disp: 0 });
        let back = self.check(step, size, write);
        self.words(&instr, scale);
        self.asm.shift_left(T1, scale);
        self.asm.sub(T0, T1);
        self.run(step, Some(Known::T0), &spilled)?;
        self.asm.bind(back);
        Some(())
    }

    /// T1 = how many words of `1 << scale` bytes the bit lies behind the address, or before it.
    fn words(&mut self, instr: &Instruction, scale: u8) {
        let slot = instr.op1_register().full_register().number() as u8;
        let number = self.value_of(slot, T1);
        if scale == 2 {
            self.asm.extend_32(T1, number);
        } else if number != T1 {
            self.asm.mov(T1, number);
        }
        self.asm.shift_right_signed(T1, scale + 3);
    }
}
