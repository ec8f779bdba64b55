//! A load, and a store to the same place with nothing but work on vector registers between: the store takes
//! the address that the load has found, which is looked up as for a store then.
//!
//! Between the two T0 keeps the address, or is 0 where the load did not run in line.

use std::mem;

use iced_x86::{Instruction, OpKind};

use super::asm::{Condition, Label};
use super::fields::T0;
use super::select::Kind;
use super::translate::{Step, Stub, Translator, Work};
use super::vector::{SSE, Vector, in_place};

/// What an instruction is in a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pair {
    No,
    First,
    Second,
}

/// Finds all pairs.
pub(super) fn find(steps: &mut [Step]) {
    for first in 0..steps.len() {
        if let Some(second) = second_of(steps, first) {
            steps[first].pair = Pair::First;
            steps[second].pair = Pair::Second;
        }
    }
}

fn second_of(steps: &[Step], first: usize) -> Option<usize> {
    let vector = alone(&steps[first])?;
    let (size, false) = vector.direct.memory? else { return None };
    for (at, step) in steps.iter().enumerate().skip(first + 1) {
        let other = alone(step)?;
        // Making more registers live would destroy T0.
        if other.needs & !(vector.needs | SSE) != 0 {
            return None;
        }
        match other.direct.memory {
            None => {}
            Some((stored, true)) => {
                let same = stored <= size && have_same_address(&steps[first].instr, &step.instr);
                return same.then_some(at);
            }
            Some(_) => return None,
        }
    }
    None
}

/// A vector instruction that has to do with no general register but for its address, nor with flags.
fn alone(step: &Step) -> Option<Vector> {
    let Kind::Vector(vector) = step.kind else { return None };
    let instr = &step.instr;
    let general = |op| instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_gpr();
    let flags = step.effects.reads | step.effects.writes;
    (flags == 0 && !(0..instr.op_count()).any(general)).then_some(vector)
}

fn have_same_address(a: &Instruction, b: &Instruction) -> bool {
    a.memory_base() == b.memory_base()
        && a.memory_index() == b.memory_index()
        && a.memory_index_scale() == b.memory_index_scale()
        && a.memory_displacement64() == b.memory_displacement64()
        && a.memory_segment() == b.memory_segment()
}

impl Translator<'_> {
    /// Whether `step` can rely on what the first of its pair left.
    pub(super) fn takes_kept(&mut self, step: &Step) -> bool {
        mem::take(&mut self.kept) && step.pair == Pair::Second
    }

    /// As `Translator::look_up`, for the second.
    pub(super) fn second(&mut self, step: &Step, vector: Vector) -> Label {
        self.put_flags_aside(step.before);
        let (label, back) = (self.asm.label(), self.asm.label());
        self.asm.test(T0, T0);
        self.asm.jump_if(Condition::E, label);
        let (aside, live) = (self.aside, self.vectors);
        let work = Work::Second { step: Box::new(step.clone()), vector, back, aside, live };
        self.stubs.push(Stub { label, work });
        if let (true, Some((size, _))) = (vector.direct.aligned, vector.direct.memory) {
            self.check_alignment(size);
        }
        back
    }

    /// [`Work::Second`].
    pub(super) fn second_stub(&mut self, step: &Step, vector: Vector, back: Label) {
        let Some((size, write)) = vector.direct.memory else { return };
        let done = self.look_up(step, vector, size, write);
        self.encode_again(&in_place(step.instr));
        // The first had the same address, which could be computed.
        debug_assert!(done.is_some());
        done.into_iter().for_each(|done| self.asm.bind(done));
        self.asm.jump(back);
    }

    /// Behind an instruction that did not run in line.
    pub(super) fn lose_address(&mut self, pair: Pair) {
        if pair == Pair::First {
            self.asm.constant_32(T0, 0);
        }
    }
}
