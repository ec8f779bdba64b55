//! One block as host code.
//!
//! ```text
//!   inner:    a NOP of five bytes, until the block is invalid
//!             the instructions
//!             branches, each a jump that is linked once it has been taken
//!   stubs:    what is rarely taken: accesses that the table does not answer, branches not linked yet
//!
//!   guard:    is the page of T0 this frame's, and is the core not wanted? then to `inner`
//! ```
//!
//! Only branches from other pages come by a guard; it is made when the first one does.

use std::mem;

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory};

use super::asm::{Address, Asm};
use super::branch::target_of;
use super::fields::{T0, T1, field};
use super::flags::{ALL, Effects, Flags};
use super::groups::Member;
use super::options::Options;
use super::select::{Kind, kind};
use super::stub::Stub;
use super::system::System;
use super::tables::token;
use super::thunks::Thunks;
use super::vector::{self, Needs};
use crate::block::Block;
use crate::machine::Machine;

/// Marks the site of a branch into another page.
pub(super) const FAR_SITE: u32 = 1 << 31;

/// In the offset of an instruction that is called out for: only because of its access.
pub(super) const ACCESS: u32 = 1 << 31;

/// In [`super::Fields::from`]: there was an indirect branch.
pub(super) const BRANCH: u32 = 1 << 15;

const RCX: u8 = 1;

/// What became of a block.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) bytes: Vec<u8>,
    pub(super) places: Places,
    /// Where the code of each instruction starts.
    pub(super) marks: Vec<u32>,
}

/// Where its parts are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub(super) inner: u32,
    /// Where `inner` is to lead when the block is invalid.
    pub(super) dead: u32,
    /// Where the stubs begin.
    pub(super) stubs: u32,
}

/// Translates `block`, whose bytes are `source`, to stand at `start`.
pub(super) fn translate<M: Machine>(
    block: &Block<M>,
    source: &[u8],
    start: u32,
    thunks: &Thunks,
    options: Options,
) -> Option<Code> {
    let offset = (block.start & 0xfff) as u32;
    let mut decoder = Decoder::with_ip(64, source, offset.into(), OPTIONS);
    let mut factory = InstructionInfoFactory::new();
    let mut steps: Vec<Step> = Vec::with_capacity(block.insns.len());
    for insn in &block.insns {
        let instr = decoder.decode();
        // The bytes may have changed since they were decoded.
        if usize::from(insn.len) != instr.len() {
            return None;
        }
        let insn_at = std::ptr::from_ref(insn) as usize;
        steps.push(Step::new(instr, insn_at, insn.len, options, &mut factory));
    }
    // Behind it is nobody who ends the shadow.
    if let Some(last) = steps.last_mut().filter(|last| last.kind == Kind::System(System::Sti)) {
        (last.kind, last.effects) = (Kind::Outside, Effects::OUTSIDE);
    }
    let mut after = ALL;
    for step in steps.iter_mut().rev() {
        step.after = after;
        if options.forget_dead_flags {
            after = step.effects.before(after);
        }
        step.before = after;
    }
    vector::look_ahead(&mut steps, &mut factory);
    let mut translator = Translator {
        asm: Asm::new(start),
        thunks,
        options,
        encoder: Encoder::new(64),
        factory,
        live: steps.iter().map(|step| (step.offset, step.before)).collect(),
        aside: false,
        vectors: 0,
        kept: false,
        aligned: 1,
        stubs: Vec::new(),
        marks: Vec::with_capacity(block.insns.len()),
    };
    let places = translator.block(&steps, offset)?;
    Some(Code { bytes: translator.asm.finish(), places, marks: translator.marks })
}

/// The guard of a block that stands `offset` bytes into the frame with number `frame` and whose code is at
/// `inner`, to stand at `start`. T0 is the address, RCX was put aside; touches no flag.
pub(super) fn guard(offset: u32, frame: u32, inner: u32, start: u32, thunks: &Thunks) -> Vec<u8> {
    let (mut asm, above) = (Asm::new(start), offset >> 9);
    // Bits 9.. of the address: the page's index times eight, plus bits of the offset.
    asm.rotate_right(T1, T0, 9);
    asm.low_16(T1, T1);
    asm.load_field(RCX, field!(guards));
    asm.load(RCX, Address::sum(RCX, T1, -(above as i32)));
    asm.lea(RCX, Address::sum(RCX, T0, -(offset as i32) - token(frame) as i32));
    // Where the guard holds this is 0, and else at least 4 or odd.
    asm.load_field(T1, field!(pending));
    asm.load_byte(T1, Address::at(T1, 0));
    asm.lea(RCX, Address { base: Some(RCX), index: Some((T1, 1)), disp: 0 });
    asm.skip_if_rcx_is_0(5);
    asm.jump_to(thunks.guard_miss);
    asm.load_field(RCX, field!(rcx));
    asm.lea(T0, Address::at(T0, -(offset as i32)));
    asm.store_field(field!(page), T0);
    asm.jump_to(inner);
    asm.finish()
}

/// As blocks are decoded.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

/// One instruction.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Its address is its offset in the page.
    pub(super) instr: Instruction,
    pub(super) kind: Kind,
    pub(super) effects: Effects,
    /// Flags that it or somebody behind it may look at.
    pub(super) before: Flags,
    /// Flags that somebody behind it may look at.
    pub(super) after: Flags,
    /// Address of the [`Insn`].
    pub(super) insn: usize,
    pub(super) offset: u32,
    pub(super) next: u32,
    /// Registers that must be live behind it.
    pub(super) relied: Needs,
    pub(super) member: Member,
}

impl Step {
    pub(super) fn new(
        instr: Instruction,
        insn: usize,
        len: u8,
        options: Options,
        factory: &mut InstructionInfoFactory,
    ) -> Self {
        let kind = kind(&instr, options, factory);
        let effects = match kind {
            Kind::Outside => Effects::OUTSIDE,
            Kind::System(system) if system.ends_block() => Effects::OUTSIDE,
            _ => Effects::of(&instr),
        };
        let offset = instr.ip() as u32;
        Self {
            instr,
            kind,
            effects,
            before: ALL,
            after: ALL,
            insn,
            offset,
            next: offset + u32::from(len),
            relied: 0,
            member: Member::No,
        }
    }
}

pub(super) struct Translator<'a> {
    pub(super) asm: Asm,
    pub(super) thunks: &'a Thunks,
    pub(super) options: Options,
    pub(super) encoder: Encoder,
    pub(super) factory: InstructionInfoFactory,
    /// Offset of each instruction in the page, and the flags that are looked at from there on.
    pub(super) live: Vec<(u32, Flags)>,
    /// The guest's flags are in their field, not in the host's RFLAGS.
    pub(super) aside: bool,
    /// Vector registers known to be live.
    pub(super) vectors: Needs,
    /// T0 is what the first of a group has left: see [`super::groups`].
    pub(super) kept: bool,
    /// If that is not 0, it is a multiple of this.
    pub(super) aligned: usize,
    pub(super) stubs: Vec<Stub>,
    marks: Vec<u32>,
}

impl Translator<'_> {
    fn block(&mut self, steps: &[Step], offset: u32) -> Option<Places> {
        self.asm.keep_together(5, 8);
        let inner = self.asm.here();
        self.asm.nops(5);
        let (mut open, mut shadow) = (true, false);
        for step in steps {
            self.marks.push(self.asm.here());
            if shadow && step.kind.is_branch() {
                self.end_shadow();
            }
            open = self.step(step)?;
            if shadow && open {
                self.end_shadow();
            }
            shadow = step.kind == Kind::System(System::Sti);
        }
        if open {
            let last = steps.last()?;
            self.branch(last.offset, last.next.into());
        }
        let stubs = self.asm.here();
        while !self.stubs.is_empty() {
            for stub in mem::take(&mut self.stubs) {
                self.stub(stub);
            }
        }
        let dead = self.asm.here();
        self.leave_for(offset.into(), inner + 1);
        Some(Places { inner, dead, stubs })
    }

    /// Returns whether the block goes on behind it.
    fn step(&mut self, step: &Step) -> Option<bool> {
        match step.kind {
            Kind::Nothing => {}
            Kind::Outside => return Some(self.outside(step)),
            Kind::Same => {
                if self.same(step).is_none() {
                    self.outside(step);
                }
            }
            Kind::Vector(vector) => {
                if self.vector(step, vector).is_none() {
                    self.outside(step);
                }
            }
            Kind::Divide => {
                if self.divide(step).is_none() {
                    self.outside(step);
                }
            }
            Kind::System(system) => {
                self.system(step, system);
                return Some(!system.ends_block());
            }
            Kind::Repeat(repeat) => self.repeat(step, repeat),
            Kind::BitString => {
                if self.bit_string(step).is_none() {
                    self.outside(step);
                }
            }
            Kind::Lea => self.address_of(step)?,
            Kind::Push => self.push(step)?,
            Kind::PushMemory => self.push_memory(step),
            Kind::Pop => self.pop(step),
            Kind::Leave => self.leave(step),
            Kind::Jump => {
                self.branch(step.offset, target_of(&step.instr));
                return Some(false);
            }
            Kind::JumpIf => {
                self.branch_if(step);
                return Some(false);
            }
            Kind::Call => {
                self.call(step);
                self.branch(step.offset, target_of(&step.instr));
                return Some(false);
            }
            Kind::JumpTo | Kind::CallTo | Kind::Return => {
                self.indirect(step);
                return Some(false);
            }
        }
        Some(true)
    }
}
