//! Vector instructions on memory close together, with nothing between that loses T0: the first looks up the
//! place of all of them, and the others use what it has found.
//!
//! Between them T0 is the host's address of the lowest operand, or 0 where the first did not find all of them
//! in one page; each then looks for itself, out of line.

use iced_x86::{Instruction, InstructionInfoFactory, OpKind};

use super::asm::{Address, Condition, Label};
use super::fields::{T0, T1, host};
use super::operands::writes;
use super::select::Kind;
use super::stub::{Stub, Work};
use super::translate::{Step, Translator};
use super::vector::{Needs, SSE, Vector, in_place};

/// Bytes from the first to the last, at most.
const REACH: i64 = 512;

/// What an instruction is in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Member {
    No,
    /// The first; `span` bytes are accessed in all, some perhaps written.
    First {
        least: i64,
        span: usize,
        write: bool,
    },
    /// Another; `least` is the lowest displacement.
    Other {
        least: i64,
    },
}

/// Finds all groups.
pub(super) fn find(steps: &mut [Step], factory: &mut InstructionInfoFactory) {
    let mut at = 0;
    while at < steps.len() {
        let group = Group::at(steps, at, factory);
        let Some(group) = group.filter(|group| group.members.len() > 1) else {
            at += 1;
            continue;
        };
        let (least, span) = (group.least, (group.most - group.least) as usize);
        for &member in &group.members {
            steps[member].member = Member::Other { least };
            at = member + 1;
        }
        steps[group.members[0]].member = Member::First { least, span, write: group.write };
    }
}

struct Group {
    members: Vec<usize>,
    least: i64,
    most: i64,
    write: bool,
    needs: Needs,
}

impl Group {
    fn at(steps: &[Step], first: usize, factory: &mut InstructionInfoFactory) -> Option<Self> {
        let vector = alone(&steps[first])?;
        let (size, write) = vector.direct.memory?;
        let instr = &steps[first].instr;
        let least = displacement(instr)?;
        let most = least + size as i64;
        let needs = vector.needs | SSE;
        let mut group = Self { members: vec![first], least, most, write, needs };
        for (at, step) in steps.iter().enumerate().skip(first + 1) {
            let goes_on = match step.kind {
                Kind::Nothing => true,
                Kind::Vector(_) => group.takes(step, instr, at),
                Kind::Same => leaves_alone(step, instr, factory),
                _ => false,
            };
            if !goes_on {
                break;
            }
        }
        Some(group)
    }

    /// Whether T0 is still there behind a vector instruction, which joins if it can.
    fn takes(&mut self, step: &Step, first: &Instruction, at: usize) -> bool {
        // Making more registers live would destroy T0.
        let Some(vector) = alone(step).filter(|vector| vector.needs & !self.needs == 0) else {
            return false;
        };
        let Some((size, write)) = vector.direct.memory else { return true };
        let Some(displacement) = displacement(&step.instr) else { return false };
        let least = self.least.min(displacement);
        let most = self.most.max(displacement + size as i64);
        if !have_same_registers(first, &step.instr) || most - least > REACH {
            return false;
        }
        (self.least, self.most) = (least, most);
        self.write |= write;
        self.members.push(at);
        true
    }
}

/// A vector instruction that has to do with no general register but for its address, nor with flags.
fn alone(step: &Step) -> Option<Vector> {
    let Kind::Vector(vector) = step.kind else { return None };
    let instr = &step.instr;
    let general = |op| instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_gpr();
    let flags = step.effects.reads | step.effects.writes;
    (flags == 0 && !(0..instr.op_count()).any(general)).then_some(vector)
}

fn displacement(instr: &Instruction) -> Option<i64> {
    let displacement = instr.memory_displacement64() as i64;
    let near = i64::from(i32::MIN) + REACH..i64::from(i32::MAX) - REACH;
    near.contains(&displacement).then_some(displacement)
}

fn have_same_registers(a: &Instruction, b: &Instruction) -> bool {
    a.memory_base() == b.memory_base()
        && a.memory_index() == b.memory_index()
        && a.memory_index_scale() == b.memory_index_scale()
        && a.memory_segment() == b.memory_segment()
}

/// An instruction on general registers that are in the host's, and does not change an address like that of
/// `other`.
fn leaves_alone(step: &Step, other: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
    let instr = &step.instr;
    let kept = (0..instr.op_count()).all(|op| match instr.op_kind(op) {
        OpKind::Register => host(instr.op_register(op).full_register().number() as u8).is_some(),
        OpKind::Memory => false,
        _ => true,
    });
    let parts = [other.memory_base(), other.memory_index()];
    let changed = |used: &iced_x86::UsedRegister| {
        writes(used.access()) && parts.contains(&used.register().full_register())
    };
    kept && !factory.info(instr).used_registers().iter().any(changed)
}

impl Translator<'_> {
    /// T0 becomes the host's address of the group's lowest operand. Returns where it goes on that ran
    /// elsewhere; T0 is 0 there.
    pub(super) fn first(&mut self, step: &Step, vector: Vector) -> Option<Label> {
        let Member::First { least, span, write } = step.member else { return None };
        self.kept = false;
        let mut lowest = step.clone();
        lowest.instr.set_memory_displacement64(least as u64);
        if lowest.instr.memory_displ_size() == 0 {
            lowest.instr.set_memory_displ_size(8);
        }
        self.address(&lowest)?;
        self.check(&lowest, span, write);
        let Stub { label, .. } = self.stubs.pop()?;
        self.kept = true;
        self.aligned = 1;
        Some(self.alone_at(label, step, vector, least))
    }

    /// The same for another of the group.
    pub(super) fn other(&mut self, step: &Step, vector: Vector, least: i64) -> Label {
        self.put_flags_aside(step.before);
        let label = self.asm.label();
        self.asm.test(T0, T0);
        self.asm.jump_if(Condition::E, label);
        self.alone_at(label, step, vector, least)
    }

    /// `label` is where the instruction looks for itself.
    fn alone_at(&mut self, label: Label, step: &Step, vector: Vector, least: i64) -> Label {
        let back = self.asm.label();
        let (aside, live) = (self.aside, self.vectors);
        let step = Box::new(step.clone());
        let delta = step.instr.memory_displacement64() as i64 - least;
        self.stubs.push(Stub { label, work: Work::Alone { step, vector, back, aside, live } });
        if let (true, Some((size, _))) = (vector.direct.aligned, vector.direct.memory) {
            self.check_aligned(label, delta, size);
        }
        back
    }

    fn check_aligned(&mut self, unaligned: Label, delta: i64, size: usize) {
        let mask = size as u8 - 1;
        if delta % size as i64 != 0 {
            self.asm.lea(T1, Address::at(T0, delta as i32));
            self.asm.test_8(T1, mask);
        } else if self.aligned < size {
            self.asm.test_8(T0, mask);
            self.aligned = size;
        } else {
            return;
        }
        self.asm.jump_if(Condition::NE, unaligned);
    }

    /// [`Work::Alone`].
    pub(super) fn alone_stub(&mut self, step: &Step, vector: Vector, back: Label) {
        let Some((size, write)) = vector.direct.memory else { return };
        let done = self.look_up(step, vector, size, write);
        self.encode_again(&in_place(step.instr, 0));
        // Its displacement was in reach when the group was found.
        debug_assert!(done.is_some());
        done.into_iter().for_each(|done| self.asm.bind(done));
        self.asm.constant_32(T0, 0);
        self.asm.jump(back);
    }
}
