//! Instructions that run as they are, on the host's registers.

use std::mem;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::address::{Place, displacement_fits};
use super::asm::{Address, Condition, Label};
use super::fields::{T0, T1, host, register};
use super::groups::Known;
use super::operands::{Spilled, writes_memory};
use super::outside::Outside;
use super::recode::recode;
use super::stub::{CalledOut, Stub, Work};
use super::translate::{ACCESS, Step, Translator};
use super::vector::in_place;
use crate::decode::operands::has_memory;

const RAX: u8 = 0;
const RDX: u8 = 2;

impl Translator<'_> {
    pub(super) fn work_outside(&self, step: &Step, back: Label) -> Work {
        Work::Outside(self.called_out(step, back))
    }

    pub(super) fn called_out(&self, step: &Step, back: Label) -> CalledOut {
        let Step { len, offset, next, relied, .. } = *step;
        let next = step.goes_on.unwrap_or(next);
        let (aside, live) = (self.aside, self.vectors & relied);
        CalledOut { len, offset, back, aside, live, next }
    }

    /// By its handler. Returns whether the block goes on.
    pub(super) fn outside(&mut self, step: &Step) -> bool {
        self.take_flags_back();
        self.call_out(step.len, step.offset);
        self.vectors = 0;
        if step.instr.flow_control() == iced_x86::FlowControl::Next {
            return true;
        }
        self.go_by_rip(step);
        false
    }

    /// Executes the instruction of `len` bytes at `offset`, which may have [`ACCESS`] in it. The code has its bytes, as
    /// they were when it was made.
    pub(super) fn call_out(&mut self, len: u8, offset: u32) {
        self.asm.call_to(self.thunks.call_out);
        self.outside_data(len, offset, None);
    }

    /// What stands behind a call out. `back`: where it goes on.
    pub(super) fn outside_data(&mut self, len: u8, offset: u32, back: Option<Label>) {
        let (at, access) = (offset & !ACCESS, offset & ACCESS != 0);
        let outside = Outside { offset: at as u16, len, access, back: back.is_some() };
        self.asm.raw(&outside.head());
        self.asm.raw(self.source.part(at, at + u32::from(len)));
        if let Some(back) = back {
            self.asm.distance(back);
        }
    }

    /// The instruction itself on the host's registers. `None`: too few registers to hold its operands;
    /// nothing was emitted.
    pub(super) fn same(&mut self, step: &Step) -> Option<()> {
        let instr = &step.instr;
        let memory = has_memory(instr);
        let spilled = Spilled::of(instr, self.scratches(memory), self.factory)?;
        if !memory {
            return self.run(step, None, &spilled);
        }
        if let Some(known) = self.known_place(step) {
            return self.run(step, Some(known), &spilled);
        }
        let write = writes_memory(instr, self.factory);
        // Nothing may be emitted if the displacement cannot be.
        if !displacement_fits(instr) {
            return None;
        }
        self.address(step)?;
        let size = instr.memory_size().size();
        let back = if instr.mnemonic() == Mnemonic::Cmpxchg16b {
            let back = self.check(step, size, write);
            self.check_alignment(size);
            back
        } else {
            self.check_any(step, size, write)
        };
        self.run(step, Some(Known::T0), &spilled)?;
        self.asm.bind(back);
        Some(())
    }

    /// Emits the instruction, with its memory operand at `memory`.
    pub(super) fn run(
        &mut self,
        step: &Step,
        memory: Option<Known>,
        spilled: &Spilled,
    ) -> Option<()> {
        self.prepare_flags(step);
        for stand_in in spilled.stand_ins().filter(|stand_in| stand_in.read) {
            self.asm.load_field(stand_in.scratch, register(stand_in.slot));
        }
        let Step { instr, offset, len, .. } = step;
        let bytes = self.source.part(*offset, offset + u32::from(*len));
        match recode(bytes, instr, memory, spilled) {
            Some(code) => self.asm.put(code),
            None => self.encode(&in_place(instr, memory, spilled))?,
        }
        for stand_in in spilled.stand_ins().filter(|stand_in| stand_in.write) {
            self.asm.store_field(register(stand_in.slot), stand_in.scratch);
        }
        Some(())
    }

    /// DIV and IDIV where they cannot fault; else outside.
    pub(super) fn divide(&mut self, step: &Step) -> Option<()> {
        let instr = &step.instr;
        let memory = instr.op0_kind() == OpKind::Memory;
        let size = if memory { instr.memory_size().size() } else { instr.op0_register().size() };
        let wide = size == 8;
        let (divisor, back) = if memory {
            self.address(step)?;
            let back = self.check_any(step, size, false);
            let from = Address::at(T0, 0);
            if wide {
                self.asm.load(T0, from);
            } else {
                self.asm.load_32(T0, from);
            }
            (T0, back)
        } else {
            let slot = instr.op0_register().full_register().number() as u8;
            let divisor = self.value_of(slot, T0);
            self.put_flags_aside(step.before);
            (divisor, self.asm.label())
        };
        let slow = self.asm.label();
        if instr.mnemonic() == Mnemonic::Div {
            // The quotient fits where the upper half is below the divisor; a divisor of zero never is.
            self.asm.compare_registers(wide, RDX, divisor);
            self.asm.jump_if(Condition::AE, slow);
        } else {
            // A dividend that is one half sign-extended, by anything but 0 and -1.
            self.asm.mov(T1, RAX);
            self.asm.spread_sign(wide, T1);
            self.asm.compare_registers(wide, T1, RDX);
            self.asm.jump_if(Condition::NE, slow);
            self.asm.lea(T1, Address::at(divisor, 1));
            self.asm.compare_sized(wide, T1, 1);
            self.asm.jump_if(Condition::BE, slow);
        }
        self.stubs.push(Stub { label: slow, work: self.work_outside(step, back) });
        self.asm.divide(wide, instr.mnemonic() == Mnemonic::Idiv, divisor);
        self.prepare_flags(step);
        self.asm.bind(back);
        Some(())
    }

    pub(super) fn encode(&mut self, instr: &Instruction) -> Option<()> {
        let mut buffer = mem::take(&mut self.asm.bytes);
        self.encoder.set_buffer(buffer);
        let done = self.encoder.encode(instr, 0).is_ok();
        buffer = self.encoder.take_buffer();
        self.asm.bytes = buffer;
        done.then_some(())
    }

    pub(super) fn address_of(&mut self, step: &Step) -> Option<()> {
        let scratch = self.scratch();
        let Some(address) = self.offset_parts(&Place::of(&step.instr), scratch) else {
            self.outside(step);
            return Some(());
        };
        let destination = step.instr.op0_register();
        let slot = destination.full_register().number() as u8;
        let to = host(slot).unwrap_or(scratch);
        match destination.size() {
            8 => self.asm.lea(to, address),
            4 => self.asm.lea_32(to, address),
            _ => {
                self.outside(step);
                return Some(());
            }
        }
        if host(slot).is_none() {
            self.asm.store_field(register(slot), to);
        }
        Some(())
    }
}
