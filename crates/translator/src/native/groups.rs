//! Accesses close together, with nothing between that loses T0: the first looks up the place of all of them, and the
//! others use what it has found.
//!
//! Within a group T0 is the host's address of its lowest byte. Where the look-up does not find all of them in one page
//! the instructions of the group run one by one, each with a look-up of its own, out of line.

use std::mem;

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::address::Place;
use super::asm::{Address, Condition, Label};
use super::branch::target_of;
use super::fields::{T0, T1, host};
use super::operands::{Spilled, writes_memory, writes_one_of};
use super::select::Kind;
use super::stub::{Stub, Work};
use super::translate::{Step, Translator};
use super::vector::Needs;
use crate::decode::operands::has_memory;

/// Bytes from the first to the last, at most.
const REACH: i64 = 512;

/// Instructions at most: all of them are there twice.
const LONGEST: usize = 48;

/// Steps `first` to `last` of a path.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) first: usize,
    pub(super) last: usize,
    /// Of its lowest byte, by the registers as they are before the first.
    place: Place,
    span: usize,
    /// Some are perhaps written.
    write: bool,
    needs: Needs,
    aligned: Option<Aligned>,
}

/// Where a memory operand is: `delta` bytes behind the host's address in register `base`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) base: u8,
    pub(super) delta: i32,
}

impl Known {
    /// In T0 itself.
    pub(super) const T0: Self = Self { base: T0, delta: 0 };
}

/// Host's addresses that are multiples of `size` when `delta` is added to T0.
#[derive(Clone, Copy, Debug)]
struct Aligned {
    size: usize,
    delta: i64,
}

/// A group that is being emitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// Its instructions one by one.
    slow: Label,
    /// Behind it.
    end: Label,
    aside: bool,
    vectors: Needs,
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) place: Place,
    pub(super) size: usize,
    pub(super) write: bool,
    pub(super) aligned: bool,
}

/// Finds all groups.
pub(super) fn find(steps: &mut [Step], factory: &mut InstructionInfoFactory) -> Vec<Group> {
    let (mut groups, mut members) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < steps.len() {
        let Some(search) = Search::from(steps, at, factory, &mut members) else {
            at += 1;
            continue;
        };
        if search.members.len() < 2 {
            members = search.members;
            members.clear();
            at += 1;
            continue;
        }
        for &(member, displacement) in &search.members {
            let delta = (displacement - search.least) as i32;
            steps[member].known = Some(Known { base: T0, delta });
            at = member + 1;
        }
        groups.push(search.group());
    }
    groups
}

/// A group that grows.
struct Search {
    place: Place,
    /// Steps, and displacements by the registers as they were before the first.
    members: Vec<(usize, i64)>,
    least: i64,
    most: i64,
    write: bool,
    needs: Needs,
    aligned: Option<Aligned>,
    /// What was added to the base since.
    moved: i64,
    branched: bool,
}

impl Search {
    /// `members` is memory.
    fn from(
        steps: &[Step],
        first: usize,
        factory: &mut InstructionInfoFactory,
        members: &mut Vec<(usize, i64)>,
    ) -> Option<Self> {
        let place = access(&steps[first], factory)?.place;
        let mut search = Self {
            place,
            members: mem::take(members),
            least: place.disp,
            most: place.disp,
            write: false,
            needs: 0,
            aligned: None,
            moved: 0,
            branched: false,
        };
        for (at, step) in steps.iter().enumerate().skip(first).take(LONGEST) {
            if !search.takes(step, at, factory) || !search.follows(&step.instr, step.kind, factory)
            {
                break;
            }
        }
        Some(search)
    }

    /// Whether T0 is there for the step, which joins if it has a memory operand.
    fn takes(&mut self, step: &Step, at: usize, factory: &mut InstructionInfoFactory) -> bool {
        if !leaves_t0(step, factory) {
            return false;
        }
        let needs = match step.kind {
            Kind::Vector(vector) => vector.needs & !self.needs,
            _ => 0,
        };
        // What may not run at all should not make registers live.
        if needs != 0 && self.branched {
            return false;
        }
        self.branched |= step.kind == Kind::JumpIf;
        let Some(access) = access(step, factory) else {
            self.needs |= needs;
            return !has_memory(&step.instr) || step.kind == Kind::Lea;
        };
        let displacement = access.place.disp + self.moved;
        let least = self.least.min(displacement);
        let most = self.most.max(displacement + access.size as i64);
        if !access.place.has_registers_of(&self.place) || most - least > REACH {
            return false;
        }
        if access.aligned {
            let new = Aligned { size: access.size, delta: displacement };
            let Some(aligned) = self.aligned.map_or(Some(new), |old| old.and(new)) else {
                return false;
            };
            self.aligned = Some(aligned);
        }
        (self.least, self.most) = (least, most);
        self.write |= access.write;
        self.needs |= needs;
        self.members.push((at, displacement));
        true
    }

    /// Whether the place is still known behind it.
    fn follows(
        &mut self,
        instr: &Instruction,
        kind: Kind,
        factory: &mut InstructionInfoFactory,
    ) -> bool {
        let (base, index) = (self.place.base, self.place.index);
        if kind == Kind::Return {
            return false;
        }
        if base == Register::RSP && matches!(kind, Kind::Push | Kind::Pop) {
            self.moved += if kind == Kind::Push { -8 } else { 8 };
            return kind == Kind::Push || ![base, index].contains(&instr.op0_register());
        }
        if !writes_one_of(instr, [base, index], factory) {
            return true;
        }
        let Some(added) = added(instr).filter(|_| instr.op0_register() == base && base != index)
        else {
            return false;
        };
        self.moved += added;
        self.moved.abs() < REACH
    }

    fn group(self) -> Group {
        let of_least = |aligned: Aligned| Aligned { delta: aligned.delta - self.least, ..aligned };
        Group {
            first: self.members[0].0,
            last: self.members[self.members.len() - 1].0,
            place: Place { disp: self.least, ..self.place },
            span: (self.most - self.least) as usize,
            write: self.write,
            needs: self.needs,
            aligned: self.aligned.map(of_least),
        }
    }
}

impl Aligned {
    /// Both, if that can be.
    fn and(self, other: Self) -> Option<Self> {
        let common = self.size.min(other.size) as i64;
        let larger = if self.size < other.size { other } else { self };
        ((self.delta - other.delta) % common == 0).then_some(larger)
    }
}

pub(super) fn access(step: &Step, factory: &mut InstructionInfoFactory) -> Option<Access> {
    let instr = &step.instr;
    let on_stack = |disp, write| {
        let place = Place::by(Register::RSP, disp);
        Some(Access { place, size: 8, write, aligned: false })
    };
    let (size, write, aligned) = match step.kind {
        Kind::Push => return on_stack(-8, true),
        Kind::Pop | Kind::Return => return on_stack(0, false),
        Kind::Same if has_memory(instr) => {
            let aligned = instr.mnemonic() == Mnemonic::Cmpxchg16b;
            (instr.memory_size().size(), writes_memory(instr, factory), aligned)
        }
        Kind::Vector(vector) => {
            let (size, write) = vector.direct.memory?;
            (size, write, vector.direct.aligned)
        }
        _ => return None,
    };
    let place = Place::of(instr);
    let near = i64::from(i32::MIN) + 2 * REACH..i64::from(i32::MAX) - 2 * REACH;
    near.contains(&place.disp).then_some(Access { place, size, write, aligned })
}

/// Whether a step can be emitted with T1 as its only scratch register, beside T0 for its memory operand.
pub(super) fn leaves_t0(step: &Step, factory: &mut InstructionInfoFactory) -> bool {
    let instr = &step.instr;
    match step.kind {
        Kind::Nothing | Kind::Push | Kind::Return => true,
        Kind::Pop => instr.op0_register() != Register::RSP,
        Kind::Same | Kind::Vector(_) => Spilled::of(instr, &[T1], factory).is_some(),
        Kind::Lea => {
            let spilled = |register: Register| {
                register == Register::RIP
                    || register.is_gpr() && host(register.full_register().number() as u8).is_none()
            };
            let place = Place::of(instr);
            i32::try_from(place.disp).is_ok()
                && instr.op0_register().size() >= 4
                && !(spilled(place.base) && spilled(place.index))
        }
        // Forwards, on the path.
        Kind::JumpIf => step.goes_on.is_some_and(|next| next > step.offset),
        Kind::Jump => step
            .goes_on
            .is_some_and(|next| next > step.offset && target_of(&step.instr) == i64::from(next)),
        _ => false,
    }
}

/// What an instruction adds to a register of 32 or 64 bits, its first operand, if that is all it does to it.
pub(super) fn added(instr: &Instruction) -> Option<i64> {
    let register = instr.op0_register();
    let constant = || match instr.op1_kind() {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(instr.immediate(1) as i64),
        OpKind::Immediate8to32 | OpKind::Immediate32 => Some(instr.immediate(1) as i32 as i64),
        _ => None,
    };
    if instr.op0_kind() != OpKind::Register || register.size() < 4 {
        return None;
    }
    match instr.mnemonic() {
        Mnemonic::Add => constant(),
        Mnemonic::Sub => constant().map(|value| -value),
        Mnemonic::Inc => Some(1),
        Mnemonic::Dec => Some(-1),
        Mnemonic::Lea if instr.memory_index() == Register::None => {
            (instr.memory_base() == register).then(|| instr.memory_displacement64() as i64)
        }
        _ => None,
    }
    .filter(|added| added.abs() < REACH)
}

impl Translator<'_> {
    /// `step` is the first of `group`. `None`: nothing was emitted.
    pub(super) fn open(&mut self, group: &Group, step: &Step) -> Option<()> {
        i32::try_from(group.place.disp).ok()?;
        self.make_all_live(step, group.needs);
        self.address_at(&group.place)?;
        let [slow, end] = [(); 2].map(|()| self.asm.label());
        self.check_or(step.before, group.span, group.write, slow);
        if let Some(Aligned { size, delta }) = group.aligned {
            let behind = delta.rem_euclid(size as i64) as i32;
            let tested = if behind == 0 { T0 } else { T1 };
            if tested != T0 {
                self.asm.lea(tested, Address::at(T0, behind));
            }
            self.asm.test_8(tested, size as u8 - 1);
            self.asm.jump_if(Condition::NE, slow);
        }
        self.group = Some(Open { slow, end, aside: self.aside, vectors: self.vectors });
        Some(())
    }

    /// The group of `steps` ends here.
    pub(super) fn close(&mut self, steps: &[Step]) {
        let Some(Open { slow, end, aside, vectors }) = self.group.take() else { return };
        self.asm.bind(end);
        let (steps, aside_behind) = (steps.into(), self.aside);
        let work = Work::OneByOne { steps, aside, vectors, end, aside_behind };
        self.stubs.push(Stub { label: slow, work });
    }

    /// [`Work::OneByOne`].
    pub(super) fn one_by_one(&mut self, steps: &[Step], end: Label, aside_behind: bool) {
        self.rarely = true;
        for step in steps {
            self.failed |= self.step(step).is_none();
        }
        self.rarely = false;
        if steps.last().is_some_and(|last| last.kind == Kind::Return) {
            return;
        }
        if aside_behind {
            self.put_flags_aside(steps.last().map_or(0, |last| last.after));
        } else {
            self.take_flags_back();
        }
        self.asm.jump(end);
    }

    /// Where the memory operand of `step` is, in a group or a strip.
    pub(super) fn known_place(&self, step: &Step) -> Option<Known> {
        step.known.filter(|_| self.keeps_places())
    }

    fn keeps_places(&self) -> bool {
        self.group.is_some() || self.in_strip.is_some()
    }

    /// A scratch register that a step in a group may use too.
    pub(super) fn scratch(&self) -> u8 {
        if self.keeps_places() { T1 } else { T0 }
    }

    /// Scratch registers for a step that has no memory operand, or has.
    pub(super) fn scratches(&self, memory: bool) -> &'static [u8] {
        if memory || self.keeps_places() { &[T1] } else { &[T0, T1] }
    }
}
