//! One path as host code.
//!
//! ```text
//!   inner:    a NOP of five bytes, until the path is invalid
//!             the instructions
//!             branches, each a jump that is linked once it has been taken
//!   stubs:    what is rarely taken: accesses that the table does not answer, branches not linked yet
//!
//!   guard:    is the page of T0 this frame's, and is the core not wanted? then to `inner`, with the flags if they are
//!             needed there
//! ```
//!
//! Only branches from other pages come by a guard; it is made when the first one does.

use std::mem;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};

use super::aside;
use super::asm::{Address, Asm, Condition, Label};
use super::branch::target_of;
use super::fields::{T0, T1, field};
use super::flags::{ALL, Effects, Flags};
use super::flow::{self, Exit, Exits, InPage};
use super::groups::{self, Group, Known, Open};
use super::options::Options;
use super::select::{Kind, kind};
use super::strips::{self, Strip};
use super::stub::{LEAVE, Stub, Work};
use super::system::System;
use super::tables::token;
use super::thunks::Thunks;
use super::vector::{self, Needs};
use crate::paths::{Follow, Fragment, Path, Policy, Source, Stubs};

/// Marks the site of a branch into another page.
pub(super) const FAR_SITE: u32 = 1 << 31;

/// In the offset of an instruction that is called out for: only because of its access.
pub(super) const ACCESS: u32 = 1 << 31;

/// In [`super::Fields::from`]: there was an indirect branch.
pub(super) const BRANCH: u32 = 1 << 15;

const RCX: u8 = 1;

/// What became of a path.
#[derive(Debug)]
pub(super) struct Code {
    asm: Asm,
    pub(super) places: Places,
    /// Where the code of each instruction starts.
    pub(super) marks: Vec<Mark>,
    /// Exits within the page: the site, and where it leads.
    pub(super) links: Vec<(u32, u16)>,
    exits: Vec<Exit>,
    /// Somebody may look at flags that it is entered with.
    pub(super) needs_flags: bool,
}

impl Code {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.asm.bytes
    }

    /// Bytes beside the path that it depends on.
    pub(super) fn watched(&self) -> impl Iterator<Item = Fragment> {
        self.exits.iter().map(|&(.., bytes)| bytes).filter(|bytes| bytes.len > 0)
    }
}

/// What one translation leaves to the next: memory.
pub(super) struct Scratch {
    factory: InstructionInfoFactory,
    encoder: Encoder,
    steps: Vec<Step>,
    asm: Asm,
    live: Vec<(u32, Flags)>,
    stubs: Vec<Stub>,
    links: Vec<(u32, u16)>,
    exits: Vec<Exit>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            factory: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            steps: Vec::new(),
            asm: Asm::new(0),
            live: Vec::new(),
            stubs: Vec::new(),
            links: Vec::new(),
            exits: Vec::new(),
        }
    }

    /// Nobody needs `code` any more.
    pub(super) fn take_back(&mut self, code: Code) {
        (self.asm, self.links, self.exits) = (code.asm, code.links, code.exits);
    }
}

/// Where the code of an instruction starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Of the instruction in the page.
    pub(super) offset: u32,
    pub(super) place: u32,
}

/// Where its parts are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub(super) inner: u32,
    /// Where `inner` is to lead when the block is invalid.
    pub(super) dead: u32,
    /// Where the stubs begin.
    pub(super) stubs: u32,
    /// What is closed with `inner`, if it is not 0: it is to lead [`LEAVE`] bytes behind `dead`. See [`super::pairs`].
    pub(super) landing: u32,
}

/// Instructions of the longest path whose code and stubs are no more than 32 KiB apart.
const COMPACT: usize = 128;

/// Translates `path`, which lies in `source`, to stand at `start`. `next_frame`: number of the frame that its one
/// instruction reaches into.
pub(super) fn translate(
    path: &Path,
    source: Source<'_>,
    start: u32,
    thunks: &Thunks,
    (options, policy): (Options, &Policy),
    next_frame: Option<u32>,
    scratch: &mut Scratch,
) -> Option<Code> {
    let Scratch { factory, encoder, steps, asm, live, stubs, links, exits } = scratch;
    let mut decoder = InPage::new(source);
    flow::steps(path, &mut decoder, options, factory, steps)?;
    // Behind it is nobody who ends the shadow.
    if let Some(last) = steps.last_mut().filter(|last| last.kind == Kind::System(System::Sti)) {
        (last.kind, last.effects) = (Kind::Outside, Effects::OUTSIDE);
    }
    let look_ahead = if options.forget_dead_flags { policy.look_ahead } else { 0 };
    let known = mem::take(exits);
    let exits = Exits::of(steps, &mut decoder, look_ahead, options, factory, known);
    exits.spread(steps, options.forget_dead_flags);
    let close_loops = options.link && policy.follow != Follow::Nothing;
    let round = if close_loops { needs_of_loop(steps) } else { 0 };
    vector::look_ahead(steps, round);
    let groups = match options.groups {
        true => groups::find(steps, factory),
        false => Vec::new(),
    };
    let strip = match close_loops && options.strips {
        true => strips::find(steps, factory),
        false => None,
    };
    live.clear();
    live.extend(steps.iter().map(|step| (step.offset, step.before)));
    live.extend(exits.flags());
    stubs.clear();
    links.clear();
    let mut translator = Translator {
        asm: mem::take(asm).reuse(start),
        thunks,
        options,
        encoder,
        factory,
        source,
        head: path.head(),
        inner: start,
        round: (start, round),
        landing: 0,
        next_frame,
        close_loops,
        pairs: options.pair_returns && options.link && options.indirect,
        compact: policy.stubs == Stubs::Shared && steps.len() <= COMPACT,
        live,
        aside: false,
        vectors: 0,
        group: None,
        strip: None,
        in_strip: None,
        rarely: false,
        failed: false,
        stubs,
        exits: mem::take(links),
        marks: Vec::with_capacity(steps.len()),
    };
    let places = translator.path(steps, &groups, strip.as_ref()).filter(|_| !translator.failed)?;
    translator.asm.resolve();
    let Translator { asm, marks, exits: links, .. } = translator;
    // In another page behind it there may be another instruction.
    let crosses = next_frame.is_some();
    let needs_flags = crosses || steps.first().is_none_or(|step| step.before != 0);
    Some(Code { asm, places, marks, links, exits: exits.known, needs_flags })
}

/// The guard of a block, and where the jump in it is that leads to the block.
pub(super) struct Guard {
    pub(super) bytes: Vec<u8>,
    pub(super) site: u32,
    /// Where that is to lead when flags are needed.
    pub(super) with_flags: u32,
}

/// Registers that are live all the way round, if `steps` are a loop.
fn needs_of_loop(steps: &[Step]) -> Needs {
    let head = steps.first().map_or(0, |step| step.offset);
    let closes = |step: &Step| {
        let branch = matches!(step.kind, Kind::Jump | Kind::JumpIf) && step.goes_on.is_none();
        branch && target_of(&step.instr) == i64::from(head)
    };
    if !steps.last().is_some_and(closes) {
        return 0;
    }
    let inside = steps.iter().take_while(|step| step.kind != Kind::Outside);
    inside.fold(0, |needs, step| match step.kind {
        Kind::Vector(vector) => needs | vector.needs,
        _ => needs,
    })
}

/// The guard of a block that stands `offset` bytes into the frame with number `frame` and whose code is at
/// `inner`, to stand at `start`. T0 is the address, flags are aside: they are taken back if they are `needed`.
pub(super) fn guard(
    offset: u32,
    frame: u32,
    inner: u32,
    needed: bool,
    start: u32,
    thunks: &Thunks,
) -> Guard {
    let (mut asm, above) = (Asm::new(start), offset >> 9);
    let miss = asm.label();
    // Bits 9.. of the address: the page's index times eight, plus bits of the offset.
    asm.rotate_right(T1, T0, 9);
    asm.low_16(T1, T1);
    asm.add_field(T1, field!(guards));
    asm.load(T1, Address::at(T1, -(above as i32)));
    asm.lea(T1, Address::sum(T1, T0, -(offset as i32)));
    asm.compare(T1, token(frame) as i32);
    asm.jump_if(Condition::NE, miss);
    asm.load_field(T1, field!(pending));
    asm.compare_byte_with_0(Address::at(T1, 0));
    asm.jump_if(Condition::NE, miss);
    asm.lea(T0, Address::at(T0, -(offset as i32)));
    asm.store_field(field!(page), T0);
    // The displacement is replaced while others run.
    asm.keep_together(5, 64);
    let site = asm.here() + 1;
    let with_flags = site + 4;
    asm.jump_to(if needed { with_flags } else { inner });
    aside::flags_from_field(&mut asm);
    asm.jump_to(inner);
    asm.bind(miss);
    asm.jump_to(thunks.guard_miss);
    Guard { bytes: asm.finish(), site, with_flags }
}

/// RCX becomes 0 if address T0, `offset` bytes into its page, is in the frame with number `frame`.
fn compare_guard(asm: &mut Asm, offset: u32, frame: u32) {
    let above = offset >> 9;
    // Bits 9.. of the address: the page's index times eight, plus bits of the offset.
    asm.rotate_right(T1, T0, 9);
    asm.low_16(T1, T1);
    asm.load_field(RCX, field!(guards));
    asm.load(RCX, Address::sum(RCX, T1, -(above as i32)));
    asm.lea(RCX, Address::sum(RCX, T0, -(offset as i32) - token(frame) as i32));
}

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
    /// Bytes of it.
    pub(super) len: u8,
    pub(super) offset: u32,
    /// Offset behind it.
    pub(super) next: u32,
    /// Offset of what comes next on the path.
    pub(super) goes_on: Option<u32>,
    /// Registers that must be live behind it.
    pub(super) relied: Needs,
    /// Where its memory operand is, if it is in a group or a strip.
    pub(super) known: Option<Known>,
}

impl Step {
    /// What follows from the instruction alone.
    pub(super) fn find_out(&mut self, options: Options, factory: &mut InstructionInfoFactory) {
        let Self { instr, .. } = self;
        self.kind = kind(instr, options, factory);
        self.effects = match self.kind {
            Kind::Outside => Effects::OUTSIDE,
            Kind::System(system) if system.ends_block() => Effects::OUTSIDE,
            _ => Effects::of(instr),
        };
        self.offset = instr.ip() as u32;
        self.len = instr.len() as u8;
        self.next = self.offset + u32::from(self.len);
    }
}

/// Nothing is known of its instruction.
impl Default for Step {
    fn default() -> Self {
        Self {
            instr: Instruction::new(),
            kind: Kind::Outside,
            effects: Effects::OUTSIDE,
            before: ALL,
            after: ALL,
            len: 0,
            offset: 0,
            next: 0,
            goes_on: None,
            relied: 0,
            known: None,
        }
    }
}

pub(super) struct Translator<'a> {
    pub(super) asm: Asm,
    pub(super) thunks: &'a Thunks,
    pub(super) options: Options,
    pub(super) encoder: &'a mut Encoder,
    pub(super) factory: &'a mut InstructionInfoFactory,
    pub(super) source: Source<'a>,
    /// Offset of the path's first instruction.
    pub(super) head: u32,
    /// Where the path is entered.
    pub(super) inner: u32,
    /// See [`translate`].
    next_frame: Option<u32>,
    /// Where loops go round, with these registers live.
    pub(super) round: (u32, Needs),
    /// See [`Places`].
    pub(super) landing: u32,
    /// Branches to the head stay inside.
    pub(super) close_loops: bool,
    /// See [`super::pairs`].
    pub(super) pairs: bool,
    /// What stubs have in common stands in thunks.
    pub(super) compact: bool,
    /// Offset of each instruction in the page, and the flags that are looked at from there on.
    pub(super) live: &'a [(u32, Flags)],
    /// The guest's flags are in their field, not in the host's RFLAGS.
    pub(super) aside: bool,
    /// Vector registers known to be live.
    pub(super) vectors: Needs,
    /// T0 is what the first of a group has found.
    pub(super) group: Option<Open>,
    /// Where the loop goes round that can be run in strips.
    pub(super) strip: Option<Label>,
    /// Registers that the strip being emitted has borrowed.
    pub(super) in_strip: Option<Box<[u8]>>,
    /// What is emitted rarely runs.
    pub(super) rarely: bool,
    /// Something could not be emitted.
    pub(super) failed: bool,
    pub(super) stubs: &'a mut Vec<Stub>,
    /// Exits within the page: the site, and where it leads.
    pub(super) exits: Vec<(u32, u16)>,
    marks: Vec<Mark>,
}

impl Translator<'_> {
    fn path(&mut self, steps: &[Step], groups: &[Group], strip: Option<&Strip>) -> Option<Places> {
        self.asm.keep_together(5, 8);
        let inner = self.asm.here();
        self.inner = inner;
        self.asm.nops(5);
        if let Some(frame) = self.next_frame {
            self.guard_next_page(frame);
        }
        let needs = self.round.1;
        self.round.0 = inner;
        if let Some(first) = steps.first() {
            self.make_all_live(first, needs);
            self.round = (if needs == 0 { inner } else { self.asm.here() }, needs);
        }
        let (mut open, mut shadow) = (true, false);
        self.strip = strip.map(|_| self.asm.label());
        let mut groups = groups.iter();
        let mut group = groups.next();
        for (index, step) in steps.iter().enumerate() {
            self.marks.push(Mark { offset: step.offset, place: self.asm.here() });
            if shadow && step.kind.is_branch() {
                self.end_shadow();
                shadow = false;
            }
            if let Some(group) = group.filter(|group| group.first == index) {
                self.open(group, step)?;
            }
            open = self.step(step)?;
            if let Some(ended) = group.filter(|group| group.last == index) {
                self.close(&steps[ended.first..=index]);
                group = groups.next();
            }
            if shadow && open {
                self.end_shadow();
            }
            shadow = step.kind == Kind::System(System::Sti);
            if !open {
                break;
            }
        }
        if open {
            let last = steps.last()?;
            self.forget_flags(last.after);
            self.branch(last.next.into());
        }
        if let Some(strip) = strip {
            self.run_in_strips(strip)?;
        }
        self.vectors = 0;
        let stubs = self.asm.here();
        self.all_stubs();
        let dead = self.asm.here();
        self.leave_for(self.head.into(), inner + 1);
        let landing = self.landing;
        if landing != 0 {
            debug_assert_eq!(self.asm.here(), dead + LEAVE);
            self.dead_landing();
        }
        Some(Places { inner, dead, stubs, landing })
    }

    /// Goes on where the page behind this one is in the frame with number `frame`: the instruction's last bytes come
    /// from there. Touches no flag.
    fn guard_next_page(&mut self, frame: u32) {
        self.asm.store_field(field!(rcx), RCX);
        self.address_in_page(T0, 4096);
        compare_guard(&mut self.asm, 0, frame);
        let elsewhere = self.asm.label();
        self.asm.skip_if_rcx_is_0(5);
        self.asm.jump(elsewhere);
        self.asm.load_field(RCX, field!(rcx));
        self.stubs.push(Stub { label: elsewhere, work: Work::Elsewhere });
    }

    /// Returns whether the path goes on behind it.
    pub(super) fn step(&mut self, step: &Step) -> Option<bool> {
        match step.kind {
            Kind::Nothing => {}
            Kind::Outside => return Some(self.outside(step)),
            Kind::Same | Kind::Vector(_) | Kind::Divide | Kind::BitString => {
                let done = match step.kind {
                    Kind::Vector(vector) => self.vector(step, vector),
                    Kind::Divide => self.divide(step),
                    Kind::BitString => self.bit_string(step),
                    _ => self.same(step),
                };
                if done.is_none() {
                    // There is no room for what is outside.
                    if self.group.is_some() || self.in_strip.is_some() {
                        return None;
                    }
                    self.outside(step);
                }
            }
            Kind::System(system) => {
                self.system(step, system);
                return Some(!system.ends_block());
            }
            Kind::Repeat(repeat) => self.repeat(step, repeat),
            Kind::Lea => self.address_of(step)?,
            Kind::Push => self.push(step)?,
            Kind::PushMemory => self.push_memory(step),
            Kind::Pop => self.pop(step),
            Kind::Leave => self.leave(step),
            Kind::Jump => return Some(self.jump(step)),
            Kind::JumpIf => return Some(self.branch_if(step)),
            Kind::Call => return Some(self.call(step)),
            Kind::JumpTo | Kind::CallTo | Kind::Return => {
                self.indirect(step);
                return Some(false);
            }
        }
        Some(true)
    }
}
