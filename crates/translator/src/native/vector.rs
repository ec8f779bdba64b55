//! Vector and x87 instructions: the same ones, on the host's registers, once the guest's are in them (see
//! [`super::live`]).

use iced_x86::{Instruction, InstructionInfoFactory, Register};

use super::asm::{Condition, Label};
use super::fields::{T0, T1, field};
use super::groups::Known;
use super::operands::Spilled;
use super::select::Kind;
use super::stub::{Stub, Way, Work};
use super::translate::{Step, Translator};
use crate::machine::VectorKind;
use crate::vector::{Direct, direct, replace_memory};

const RCX: u8 = 1;

/// Which registers are live: bits.
pub(super) type Needs = u8;

pub(super) const SSE: Needs = 1;
const AVX: Needs = 2;
const X87: Needs = 4;

/// A vector instruction that runs here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vector {
    pub(super) direct: Direct,
    pub(super) needs: Needs,
}

impl Vector {
    /// `None`: it is no vector instruction, or is executed outside.
    pub(super) fn of(instr: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Self> {
        let direct = direct(instr, factory)?;
        let needs = match direct.kind {
            _ if direct.legacy => X87,
            VectorKind::Avx => AVX,
            _ => SSE,
        };
        Some(Self { direct, needs })
    }
}

/// Finds what somebody behind relies on, unless something is executed outside by plan; `behind` all of them.
pub(super) fn look_ahead(steps: &mut [Step], behind: Needs) {
    let mut relied = behind;
    for step in steps.iter_mut().rev() {
        step.relied = relied;
        match step.kind {
            Kind::Outside => relied = 0,
            Kind::Vector(vector) => relied |= vector.needs,
            _ => {}
        }
    }
}

/// The instruction as it runs here, with its memory operand at `memory`.
pub(super) fn in_place(
    instr: &Instruction,
    memory: Option<Known>,
    spilled: &Spilled,
) -> Instruction {
    let mut instr = *instr;
    instr.set_has_repe_prefix(false);
    instr.set_has_repne_prefix(false);
    if let Some(Known { base, delta }) = memory {
        replace_memory(&mut instr, Register::RAX + u32::from(base));
        if delta != 0 {
            // The encoder takes the shorter form where it can.
            instr.set_memory_displ_size(1);
            instr.set_memory_displacement64(i64::from(delta) as u64);
        }
    }
    spilled.rename(&mut instr);
    instr
}

impl Translator<'_> {
    /// `None`: too few registers to hold the operands; nothing was emitted.
    pub(super) fn vector(&mut self, step: &Step, vector: Vector) -> Option<()> {
        let instr = step.instr;
        let operand = vector.direct.memory;
        let spilled = Spilled::of(&instr, self.scratches(operand.is_some()), self.factory)?;
        if operand.is_some() && instr.memory_base() == Register::RIP {
            i32::try_from(instr.memory_displacement64() as i64).ok()?;
        }
        self.make_live(step, vector.needs);
        let Some((size, write)) = operand else {
            return self.run(step, None, &spilled);
        };
        if let Some(known) = self.known_place(step) {
            return self.run(step, Some(known), &spilled);
        }
        let back = self.look_up(step, vector, size, write)?;
        self.run(step, Some(Known::T0), &spilled)?;
        self.asm.bind(back);
        Some(())
    }

    /// T0 becomes the host's address of the operand. Returns where it goes on that ran elsewhere.
    pub(super) fn look_up(
        &mut self,
        step: &Step,
        vector: Vector,
        size: usize,
        write: bool,
    ) -> Option<Label> {
        self.address(step)?;
        let back = self.check(step, size, write);
        if vector.direct.aligned {
            self.check_alignment(size);
            return Some(back);
        }
        let at = Some(Known::T0);
        let instr = || Box::new(in_place(&step.instr, at, &Spilled::default()));
        let way = if write { Way::Store { instr: instr(), size, back } } else { self.load_way() };
        self.allow_crossing(way);
        Some(back)
    }

    /// The instruction is the next to be emitted.
    fn load_way(&mut self) -> Way {
        let go = self.asm.label();
        self.asm.bind(go);
        Way::Load { go }
    }

    /// The access that was checked last may lie in two pages: a store that changes nothing else, or a load.
    fn allow_crossing(&mut self, way: Way) {
        let Some(Stub { label, work }) = self.stubs.pop() else { return };
        let slow = self.asm.label();
        self.stubs.push(Stub { label: slow, work });
        self.stubs.push(Stub { label, work: Work::Crossing { slow, way } });
    }

    /// [`Work::Crossing`].
    pub(super) fn crossing_stub(&mut self, slow: Label, way: Way) {
        let thunks = self.thunks.crossing;
        self.asm.compare(T0, 4095);
        self.asm.jump_if(Condition::A, slow);
        match way {
            Way::Load { go } => {
                self.asm.call_to(thunks.load);
                self.asm.jump_if(Condition::NE, slow);
                self.asm.jump(go);
            }
            Way::Store { instr, size, back } => {
                self.asm.call_to(thunks.prepare_store);
                self.asm.jump_if(Condition::NE, slow);
                self.encode_again(&instr);
                self.asm.constant_32(T1, size as u32);
                self.asm.call_to(thunks.store);
                self.asm.jump(back);
            }
        }
    }

    /// What was encoded in line too.
    pub(super) fn encode_again(&mut self, instr: &Instruction) {
        let encoded = self.encode(instr);
        debug_assert!(encoded.is_some());
    }

    /// Where the host's address has low bits the access is made outside, as if the table did not answer:
    /// flags are where [`Translator::check`] has put them.
    pub(super) fn check_alignment(&mut self, size: usize) {
        let Some(Stub { label, .. }) = self.stubs.last() else { return };
        let slow = *label;
        self.asm.test_8(T0, size as u8 - 1);
        self.asm.jump_if(Condition::NE, slow);
    }

    /// The same for several.
    pub(super) fn make_all_live(&mut self, step: &Step, needs: Needs) {
        // SSE is live with each of them.
        for needs in [needs & X87, needs & AVX, needs & SSE] {
            if needs != 0 {
                self.make_live(step, needs);
            }
        }
    }

    /// Destroys T0 and T1.
    fn make_live(&mut self, step: &Step, needs: Needs) {
        if self.vectors & needs == needs {
            return;
        }
        let off = match needs {
            X87 => field!(vector.x87_off),
            AVX => field!(vector.avx_off),
            _ => field!(vector.sse_off),
        };
        let (label, back) = (self.asm.label(), self.asm.label());
        // Where the flags may go a comparison is shorter.
        let kept = step.before != 0 && !self.aside;
        if kept {
            self.asm.store_field(field!(rcx), RCX);
            self.asm.load_field(RCX, off);
            self.asm.skip_if_rcx_is_0(5);
            self.asm.jump(label);
            self.asm.load_field(RCX, field!(rcx));
        } else {
            self.asm.compare_field(off, 0);
            self.asm.jump_if(Condition::NE, label);
        }
        self.asm.bind(back);
        // SSE is live with each of them.
        self.vectors |= needs | SSE;
        let (offset, aside) = (step.offset, self.aside);
        let work = Work::MakeLive { needs, offset, back, aside, rcx_aside: kept };
        self.stubs.push(Stub { label, work });
    }

    /// [`Work::MakeLive`].
    pub(super) fn make_live_stub(&mut self, needs: Needs, offset: u32, back: Label) {
        self.call_live(needs, offset);
        self.asm.jump(back);
    }

    /// Behind an instruction that was executed outside, where others behind it rely on `live`; `next` is the
    /// offset of the first.
    pub(super) fn make_live_again(&mut self, live: Needs, next: u32) {
        if live != 0 {
            self.asm.store_field(field!(rcx), RCX);
            self.call_live(live, next);
        }
    }

    /// RCX was put aside.
    fn call_live(&mut self, live: Needs, offset: u32) {
        let thunks = self.thunks.live;
        self.asm.constant_32(T1, offset);
        if live & (AVX | X87) == 0 {
            return self.asm.call_to(thunks.sse);
        }
        for (part, thunk) in [(AVX, thunks.avx), (X87, thunks.x87)] {
            if live & part != 0 {
                // Each leaves RCX loaded and where it was put.
                self.asm.call_to(thunk);
            }
        }
    }
}
