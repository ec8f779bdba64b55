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

use iced_x86::{
    Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use super::again;
use super::asm::{Address, Asm, Condition, Label};
use super::fields::{RIP, SP, T0, T1, field, host, register, segment_base};
use super::flags::{ALL, Effects, Flags};
use super::groups::Member;
use super::options::Options;
use super::select::{Kind, kind};
use super::tables::{TRANSLATIONS, Translation, token};
use super::thunks::Thunks;
use super::vector::{self, Needs, Vector};
use crate::block::Block;
use crate::machine::Machine;
use crate::vector::replace_memory;

/// Marks the site of a branch into another page.
pub(super) const FAR_SITE: u32 = 1 << 31;

/// In the offset of an instruction that is called out for: only because of its access.
pub(super) const ACCESS: u32 = 1 << 31;

/// In [`super::Fields::from`]: there was an indirect branch.
pub(super) const BRANCH: u32 = 1 << 15;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBP: u8 = 5;

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
        steps.push(Step::new(instr, insn_at, insn.len, &mut factory));
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
    after: Flags,
    /// Address of the [`Insn`].
    insn: usize,
    pub(super) offset: u32,
    next: u32,
    /// Registers that must be live behind it.
    pub(super) relied: Needs,
    pub(super) member: Member,
}

impl Step {
    fn new(instr: Instruction, insn: usize, len: u8, factory: &mut InstructionInfoFactory) -> Self {
        let kind = kind(&instr, factory);
        let effects = match kind {
            Kind::Outside => Effects::OUTSIDE,
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

/// Code that stands behind the block.
pub(super) struct Stub {
    pub(super) label: Label,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// Executes the instruction outside, and goes on at `back`. `aside`: the flags were put aside. `live`: what
    /// must be live behind it, at `next`.
    Outside { insn: usize, offset: u32, back: Label, aside: bool, live: Needs, next: u32 },
    /// Looks the page up in the second table, and goes on at `retry` if it is there.
    LookAgain { retry: Label, slow: Label, write: bool },
    /// An operand may lie in two pages; if it is not that, `slow`.
    Crossing { slow: Label, way: Way },
    /// A member of a group looks for itself.
    Alone { step: Box<Step>, vector: Vector, back: Label, aside: bool, live: Needs },
    /// Makes registers live, or leaves.
    MakeLive { needs: Needs, offset: u32, back: Label, aside: bool, rcx_aside: bool },
    /// Leaves for a place in the same page, asking for a link.
    Near { site: u32, target: i64 },
    /// The same in another page: T0 is the address, RCX was put aside.
    Far { site: u32 },
    /// A branch to `target` that another one leads to, because it is conditional.
    Branch { offset: u32, target: i64 },
    /// The core is wanted. `aside`: RCX was put aside.
    Wanted { target: i64, aside: bool },
}

/// How an instruction runs on a buffer.
pub(super) enum Way {
    /// It loads: in line.
    Load { go: Label },
    /// It stores so many bytes: here, and then goes `back`.
    Store { instr: Instruction, size: usize, back: Label },
}

pub(super) struct Translator<'a> {
    pub(super) asm: Asm,
    pub(super) thunks: &'a Thunks,
    encoder: Encoder,
    factory: InstructionInfoFactory,
    /// Offset of each instruction in the page, and the flags that are looked at from there on.
    live: Vec<(u32, Flags)>,
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
        let mut open = true;
        for step in steps {
            self.marks.push(self.asm.here());
            open = self.step(step)?;
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
            Kind::Lea => self.address_of(step)?,
            Kind::Push => self.push(step)?,
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

    // ---- Flags -----------------------------------------------------------------------------------

    /// The host's RFLAGS are about to be destroyed; some of them are needed. Destroys T1.
    pub(super) fn put_flags_aside(&mut self, needed: Flags) {
        if needed == 0 || self.aside {
            return;
        }
        self.asm.mov(T1, RAX);
        self.asm.flags_to_ax();
        self.asm.store_field_16(field!(flags), RAX);
        self.asm.mov(RAX, T1);
        self.aside = true;
    }

    /// The guest's flags are in RFLAGS again. Destroys T1.
    fn take_flags_back(&mut self) {
        if mem::take(&mut self.aside) {
            self.flags_from_field();
        }
    }

    fn flags_from_field(&mut self) {
        self.asm.mov(T1, RAX);
        self.asm.load_field_16(RAX, field!(flags));
        self.asm.flags_from_ax();
        self.asm.mov(RAX, T1);
    }

    /// Before the host's instruction for `step`: flags that it needs, or leaves as they are beside some
    /// that it changes, must be in RFLAGS; flags that it overwrites need not.
    fn prepare_flags(&mut self, step: &Step) {
        let Effects { reads, writes, kills } = step.effects;
        if reads != 0 || writes != 0 && step.after & !kills != 0 {
            self.take_flags_back();
        }
        if writes != 0 {
            self.aside = false;
        }
    }

    // ---- Addresses -------------------------------------------------------------------------------

    /// Loads T0 with the linear address of the memory operand. May destroy T1; touches no flag.
    pub(super) fn address(&mut self, step: &Step) -> Option<()> {
        let instr = &step.instr;
        let segment = match instr.memory_segment() {
            Register::FS => Some(4),
            Register::GS => Some(5),
            _ => None,
        };
        let mut sum = self.offset_parts(step)?;
        if let Some(segment) = segment {
            // The base may need a register of its own beside two.
            if sum.base == Some(T0) || sum.index.is_some() {
                self.asm.lea(T0, sum);
                self.asm.load_field(T1, segment_base(segment));
                self.asm.lea(T0, Address::sum(T0, T1, 0));
                return Some(());
            }
            self.asm.load_field(T0, segment_base(segment));
            if let Some(base) = sum.base {
                sum.index = Some((base, 0));
            }
            sum.base = Some(T0);
        }
        if sum.index.is_none() && sum.disp == 0 && sum.base == Some(T0) {
            return Some(());
        }
        self.asm.lea(T0, sum);
        Some(())
    }

    /// Base, index and displacement of the effective address in the host's registers: T0 may stand for the
    /// base and T1 for the index.
    fn offset_parts(&mut self, step: &Step) -> Option<Address> {
        let instr = &step.instr;
        let displacement = instr.memory_displacement64() as i64;
        let (base, index) = (instr.memory_base(), instr.memory_index());
        if base == Register::RIP {
            // The decoder's address of an instruction is its offset in the page.
            self.asm.load_field(T0, field!(page));
            return Some(Address::at(T0, i32::try_from(displacement).ok()?));
        }
        let disp = displacement as i32;
        let base = self.part(base, T0);
        let index = self.part(index, T1);
        let scale = instr.memory_index_scale().trailing_zeros() as u8;
        Some(Address { base, index: index.map(|index| (index, scale)), disp })
    }

    fn part(&mut self, guest: Register, scratch: u8) -> Option<u8> {
        if guest == Register::None {
            return None;
        }
        Some(self.value_of(guest.number() as u8, scratch))
    }

    /// The host's register with the guest's register; `scratch` where it has none.
    fn value_of(&mut self, slot: u8, scratch: u8) -> u8 {
        host(slot).unwrap_or_else(|| {
            self.asm.load_field(scratch, register(slot));
            scratch
        })
    }

    /// Turns the linear address in T0 into the host's, for an access of `size` bytes. Destroys T1 and,
    /// unless they are needed by then, the flags. Returns where the access is to go on that was made outside.
    pub(super) fn check(&mut self, step: &Step, size: usize, write: bool) -> Label {
        self.put_flags_aside(step.before);
        let [miss, slow, back] = [(); 3].map(|()| self.asm.label());
        let asm = &mut self.asm;
        // What comes round at the top is cut off.
        asm.rotate_right(T1, T0, 12 - ENTRY_SHIFT as u8);
        asm.and_32(T1, TABLE_MASK);
        asm.add_field(T1, field!(translations));
        let page = if write {
            mem::offset_of!(Translation, write)
        } else {
            mem::offset_of!(Translation, read)
        };
        let retry = asm.label();
        asm.bind(retry);
        asm.sub_memory(T0, Address::at(T1, page as i32));
        asm.compare(T0, 4096 - size as i32);
        asm.jump_if(Condition::A, miss);
        asm.add_memory(T0, Address::at(T1, mem::offset_of!(Translation, host) as i32));
        self.stubs.push(Stub { label: miss, work: Work::LookAgain { retry, slow, write } });
        self.stubs.push(Stub { label: slow, work: self.work_outside(step, back) });
        back
    }

    pub(super) fn work_outside(&self, step: &Step, back: Label) -> Work {
        let Step { insn, offset, next, relied, .. } = *step;
        let (aside, live) = (self.aside, self.vectors & relied);
        Work::Outside { insn, offset, back, aside, live, next }
    }

    // ---- Instructions ----------------------------------------------------------------------------

    /// By its handler. Returns whether the block goes on.
    fn outside(&mut self, step: &Step) -> bool {
        self.take_flags_back();
        self.call_out(step.insn, step.offset);
        (self.vectors, self.kept) = (0, false);
        if step.instr.flow_control() == iced_x86::FlowControl::Next {
            return true;
        }
        // It has set RIP.
        self.asm.load_field(T0, RIP);
        self.go_to_t0(step.offset, 0);
        false
    }

    fn call_out(&mut self, insn: usize, offset: u32) {
        self.asm.call_to(self.thunks.call_out);
        self.asm.raw(&(insn as u64).to_le_bytes());
        self.asm.raw(&offset.to_le_bytes());
    }

    /// The instruction itself on the host's registers. `None`: too few registers to hold its operands;
    /// nothing was emitted.
    fn same(&mut self, step: &Step) -> Option<()> {
        let mut instr = step.instr;
        let memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
        let spilled = Spilled::of(&instr, if memory { &[T1] } else { &[T0, T1] })?;
        let back = if memory {
            let write =
                self.factory.info(&instr).used_memory().iter().any(|used| writes(used.access()));
            // Nothing may be emitted if the displacement cannot be.
            if instr.memory_base() == Register::RIP {
                i32::try_from(instr.memory_displacement64() as i64).ok()?;
            }
            self.address(step)?;
            let back = self.check(step, instr.memory_size().size(), write);
            replace_memory(&mut instr, Register::R14);
            Some(back)
        } else {
            None
        };
        self.run(step, instr, &spilled)?;
        if let Some(back) = back {
            self.asm.bind(back);
        }
        Some(())
    }

    /// Emits the instruction, whose memory operand has been replaced.
    pub(super) fn run(
        &mut self,
        step: &Step,
        mut instr: Instruction,
        spilled: &Spilled,
    ) -> Option<()> {
        self.prepare_flags(step);
        spilled.rename(&mut instr);
        for &(slot, scratch) in &spilled.pairs {
            self.asm.load_field(scratch, register(slot));
        }
        self.encode(&instr)?;
        for &(slot, scratch) in &spilled.pairs {
            if spilled.written & 1 << slot != 0 {
                self.asm.store_field(register(slot), scratch);
            }
        }
        Some(())
    }

    /// DIV and IDIV where they cannot fault; else outside.
    fn divide(&mut self, step: &Step) -> Option<()> {
        let instr = &step.instr;
        let memory = instr.op0_kind() == OpKind::Memory;
        let size = if memory { instr.memory_size().size() } else { instr.op0_register().size() };
        let wide = size == 8;
        let (divisor, back) = if memory {
            self.address(step)?;
            let back = self.check(step, size, false);
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

    fn address_of(&mut self, step: &Step) -> Option<()> {
        let Some(address) = self.offset_parts(step) else {
            self.outside(step);
            return Some(());
        };
        let destination = step.instr.op0_register();
        let slot = destination.full_register().number() as u8;
        let to = host(slot).unwrap_or(T0);
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

    fn push(&mut self, step: &Step) -> Option<()> {
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

    fn pop(&mut self, step: &Step) {
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

    fn leave(&mut self, step: &Step) {
        self.asm.mov(T0, RBP);
        let back = self.check(step, 8, false);
        self.asm.lea(SP, Address::at(RBP, 8));
        self.asm.load(RBP, Address::at(T0, 0));
        self.asm.bind(back);
    }

    // ---- Branches --------------------------------------------------------------------------------

    /// Pushes the return address.
    fn call(&mut self, step: &Step) {
        let back = self.push_return_address(step);
        self.after_outside_branch(step, back);
    }

    /// Destroys T0 and T1. Returns where it goes on if the call was executed outside.
    fn push_return_address(&mut self, step: &Step) -> Label {
        self.asm.lea(T0, Address::at(SP, -8));
        let back = self.check(step, 8, true);
        self.address_in_page(T1, step.next.into());
        self.asm.store(Address::at(T0, 0), T1);
        self.asm.lea(SP, Address::at(SP, -8));
        back
    }

    /// `to` = the linear address `offset` bytes from the start of the page. Touches no flag.
    fn address_in_page(&mut self, to: u8, offset: i64) {
        self.asm.load_field(to, field!(page));
        self.asm.lea(to, Address::at(to, offset as i32));
    }

    /// Where a branch was executed outside because its stack access was, it goes on by RIP.
    fn after_outside_branch(&mut self, step: &Step, back: Label) {
        // The stub of the check comes here; the code in line goes over it.
        let over = self.asm.label();
        self.asm.jump(over);
        self.asm.bind(back);
        let aside = mem::take(&mut self.aside);
        self.asm.load_field(T0, RIP);
        self.go_to_t0(step.offset, 0);
        self.aside = aside;
        self.asm.bind(over);
    }

    fn indirect(&mut self, step: &Step) {
        let instr = &step.instr;
        let mut moved = 0;
        match step.kind {
            Kind::Return => {
                moved = 8 + if instr.op_count() == 1 { instr.immediate16() } else { 0 };
                self.asm.mov(T0, SP);
                let back = self.check(step, 8, false);
                self.asm.load(T0, Address::at(T0, 0));
                self.asm.lea(SP, Address::at(SP, i32::from(moved)));
                self.take_flags_back();
                self.go_to_t0(step.offset, moved);
                self.asm.bind(back);
                // Executed outside.
                self.asm.load_field(T0, RIP);
            }
            Kind::JumpTo | Kind::CallTo => {
                let back = self.load_target(step);
                if step.kind == Kind::CallTo {
                    moved = 0u16.wrapping_sub(8);
                    let pushed = self.push_return(step);
                    self.take_flags_back();
                    self.go_to_t0(step.offset, moved);
                    self.asm.bind(pushed);
                } else {
                    self.take_flags_back();
                    self.go_to_t0(step.offset, moved);
                }
                if let Some(back) = back {
                    self.asm.bind(back);
                }
                self.asm.load_field(T0, RIP);
            }
            _ => unreachable!("not an indirect branch"),
        }
        self.aside = false;
        self.go_to_t0(step.offset, 0);
    }

    /// T0 is the target of a jump or call through a register or memory.
    fn load_target(&mut self, step: &Step) -> Option<Label> {
        if step.instr.op0_kind() == OpKind::Register {
            let value = self.value_of(step.instr.op0_register().number() as u8, T0);
            if value != T0 {
                self.asm.mov(T0, value);
            }
            return None;
        }
        if self.address(step).is_none() {
            // A displacement out of reach: the handler does it.
            self.take_flags_back();
            let back = self.asm.label();
            self.call_out(step.insn, step.offset);
            self.asm.jump(back);
            return Some(back);
        }
        let back = self.check(step, 8, false);
        self.asm.load(T0, Address::at(T0, 0));
        Some(back)
    }

    /// Pushes the return address and keeps the target in T0, which must be an address before anything is
    /// written.
    fn push_return(&mut self, step: &Step) -> Label {
        self.put_flags_aside(step.before);
        let no_address = self.asm.label();
        self.asm.mov(T1, T0);
        self.asm.shift_right_signed(T1, 47);
        self.asm.lea(T1, Address::at(T1, 1));
        self.asm.compare(T1, 1);
        self.asm.jump_if(Condition::A, no_address);
        self.asm.store_field(field!(target), T0);
        let back = self.push_return_address(step);
        self.asm.load_field(T0, field!(target));
        self.stubs.push(Stub { label: no_address, work: self.work_outside(step, back) });
        back
    }

    /// Goes to address T0. Flags are in RFLAGS. `moved`: by how much the branch has moved RSP.
    fn go_to_t0(&mut self, offset: u32, moved: u16) {
        let asm = &mut self.asm;
        asm.store_field_constant(field!(from), (offset | BRANCH | u32::from(moved) << 16) as i32);
        asm.store_field(field!(rcx), RCX);
        asm.low_16(T1, T0);
        asm.load_field(RCX, field!(jumps));
        asm.jump_memory(Address { base: Some(RCX), index: Some((T1, 3)), disp: 0 });
    }

    /// Goes to `target`, from the instruction at `offset`, both relative to the page.
    fn branch(&mut self, offset: u32, target: i64) {
        self.take_flags_back();
        if !(0..4096).contains(&target) {
            return self.branch_far(target);
        }
        if target <= offset.into() {
            self.poll(target);
        }
        self.jump_to_link(|site| Work::Near { site, target });
    }

    fn branch_far(&mut self, target: i64) {
        self.address_in_page(T0, target);
        self.asm.store_field(field!(rcx), RCX);
        self.jump_to_link(|site| Work::Far { site });
    }

    /// A jump to `work`, which is told where it stands, until it is linked.
    fn jump_to_link(&mut self, work: impl FnOnce(u32) -> Work) {
        let label = self.asm.label();
        // The displacement is replaced while others run.
        self.asm.keep_together(5, 64);
        self.asm.jump(label);
        let site = self.asm.here() - 4;
        self.stubs.push(Stub { label, work: work(site) });
    }

    fn branch_if(&mut self, step: &Step) {
        self.take_flags_back();
        let target = target_of(&step.instr);
        let condition = step.instr.condition_code() as u8;
        let label = self.asm.label();
        let forward = target > step.offset.into() && target < 4096;
        if forward {
            self.asm.keep_together(6, 64);
        }
        self.asm.jump_if(condition_bits(condition), label);
        let work = if forward {
            Work::Near { site: self.asm.here() - 4, target }
        } else {
            Work::Branch { offset: step.offset, target }
        };
        self.stubs.push(Stub { label, work });
        self.branch(step.offset, step.next.into());
    }

    /// Leaves where the core is wanted.
    fn poll(&mut self, target: i64) {
        let wanted = self.asm.label();
        if self.live.iter().any(|&(offset, live)| i64::from(offset) == target && live == 0) {
            // The flags are overwritten there.
            self.asm.load_field(T0, field!(pending));
            self.asm.compare_byte_with_0(Address::at(T0, 0));
            self.asm.jump_if(Condition::NE, wanted);
            self.stubs.push(Stub { label: wanted, work: Work::Wanted { target, aside: false } });
            return;
        }
        self.asm.store_field(field!(rcx), RCX);
        self.asm.load_field(RCX, field!(pending));
        self.asm.load_byte(RCX, Address::at(RCX, 0));
        self.asm.skip_if_rcx_is_0(5);
        self.asm.jump(wanted);
        self.asm.load_field(RCX, field!(rcx));
        self.stubs.push(Stub { label: wanted, work: Work::Wanted { target, aside: true } });
    }

    // ---- Stubs -----------------------------------------------------------------------------------

    fn stub(&mut self, stub: Stub) {
        self.asm.bind(stub.label);
        match stub.work {
            Work::Outside { insn, offset, back, aside, live, next } => {
                if aside {
                    self.flags_from_field();
                }
                self.call_out(insn, offset | ACCESS);
                self.make_live_again(live, next);
                self.asm.jump(back);
            }
            Work::LookAgain { retry, slow, write } => {
                let again = self.thunks.again;
                self.asm.call_to(if write { again.write } else { again.read });
                self.asm.jump(retry);
                const { assert!(again::JUMP == 5) };
                self.asm.jump(slow);
            }
            Work::Crossing { slow, way } => self.crossing_stub(slow, way),
            Work::Alone { step, vector, back, aside, live } => {
                (self.aside, self.vectors) = (aside, live);
                self.alone_stub(&step, vector, back);
                self.aside = false;
            }
            Work::MakeLive { needs, offset, back, aside, rcx_aside } => {
                if aside {
                    self.flags_from_field();
                }
                if !rcx_aside {
                    self.asm.store_field(field!(rcx), RCX);
                }
                self.make_live_stub(needs, offset, back);
            }
            Work::Near { site, target } => self.leave_for(target, site),
            Work::Far { site } => {
                self.asm.call_to(self.thunks.leave_far);
                self.asm.raw(&site.to_le_bytes());
            }
            Work::Branch { offset, target } => self.branch(offset, target),
            Work::Wanted { target, aside } => {
                if aside {
                    self.asm.load_field(RCX, field!(rcx));
                }
                self.address_in_page(T0, target);
                self.asm.jump_to(self.thunks.leave);
            }
        }
    }

    /// Leaves for `target` in this page, where the jump at `site` could lead.
    fn leave_for(&mut self, target: i64, site: u32) {
        self.asm.call_to(self.thunks.leave_near);
        self.asm.raw(&site.to_le_bytes());
        self.asm.raw(&(target as u16).to_le_bytes());
    }
}

/// Base-two logarithm of the size of a [`Translation`].
pub(super) const ENTRY_SHIFT: usize = mem::size_of::<Translation>().trailing_zeros() as usize;
/// Offsets of entries in their table.
pub(super) const TABLE_MASK: i32 = ((TRANSLATIONS - 1) << ENTRY_SHIFT) as i32;

/// Target of a direct branch, relative to the page.
fn target_of(instr: &Instruction) -> i64 {
    instr.near_branch_target() as i64
}

/// The bits of Jcc for iced's [`iced_x86::ConditionCode`], which starts with none.
fn condition_bits(code: u8) -> u8 {
    code - 1
}

pub(super) fn writes(access: OpAccess) -> bool {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
}

/// The guest's registers among an instruction's operands that are in none of the host's.
pub(super) struct Spilled {
    /// Slot, and the scratch register that stands for it.
    pairs: Vec<(u8, u8)>,
    /// Bit by slot: an operand that is written.
    written: u16,
}

impl Spilled {
    pub(super) fn of(instr: &Instruction, scratch: &[u8]) -> Option<Self> {
        let mut spilled = Self { pairs: Vec::new(), written: 0 };
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Register || !instr.op_register(op).is_gpr() {
                continue;
            }
            let slot = instr.op_register(op).full_register().number() as u8;
            if host(slot).is_some() {
                continue;
            }
            if !spilled.pairs.iter().any(|&(known, _)| known == slot) {
                let &free = scratch.get(spilled.pairs.len())?;
                spilled.pairs.push((slot, free));
            }
            // Whether it really is written does not matter: it is loaded first.
            spilled.written |= 1 << slot;
        }
        Some(spilled)
    }

    /// Puts the host's registers in place of the guest's.
    fn rename(&self, instr: &mut Instruction) {
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Register || !instr.op_register(op).is_gpr() {
                continue;
            }
            let guest = instr.op_register(op);
            let slot = guest.full_register().number() as u8;
            if matches!(guest, Register::AH | Register::CH | Register::DH | Register::BH) {
                continue;
            }
            let stand_in = self.pairs.iter().find(|pair| pair.0 == slot).map(|pair| pair.1);
            if let Some(number) = stand_in.or(host(slot)).filter(|&number| number != slot) {
                instr.set_op_register(op, sized(number, guest.size()));
            }
        }
    }
}

/// The register with this number in so many bytes.
fn sized(number: u8, size: usize) -> Register {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // SPL.. and R8L.. follow AL..BL and AH..BH.
        _ if number >= 4 => return Register::SPL + (u32::from(number) - 4),
        _ => Register::AL,
    };
    first + u32::from(number)
}
