//! Loops whose accesses go on by constants: the places of all of them are looked up once for as many rounds as stay in
//! the same pages (strip mining).
//!
//! ```text
//!   again:  somebody who wants the core is let out
//!           each place is looked up; its host address stays in a register, one that the loop does not use
//!           how many rounds until the first of them comes to the end of its page?
//!   round:  the instructions, without look-ups
//!           each place goes on; to `round` until the driver has its value behind the last round
//!           to `again`
//! ```
//!
//! The driver is a register that changes by a constant in each round. The guest's registers whose place is borrowed are
//! in their fields meanwhile, and whoever leaves takes them back. The first round runs as the path itself, and so does
//! one whose places are not all found: an access of it is made outside, or is in two pages.
//!
//! Nobody's way is longer for it: within a strip nothing is called that could change the tables, and it ends after at
//! most 4096 rounds.

use iced_x86::{InstructionInfoFactory, Register};

use super::address::Place;
use super::asm::{Address, Condition, Label};
use super::branch::{condition_bits, target_of};
use super::fields::{T0, T1, field, host, register};
use super::groups::{self, Known};
use super::operands::writes;
use super::select::Kind;
use super::stub::{Stub, Work};
use super::translate::{Step, Translator};
use crate::decode::operands::has_memory;

/// Instructions of the longest one: all of them are there twice.
const LONGEST: usize = 64;

/// Places at most.
const PLACES: usize = 6;

/// Bytes from the first to the last of one place, at most.
const SPAN: i64 = 1024;

/// Bytes that a place may go on in one round: a strip should be some rounds long.
const STRIDE: i64 = 512;

/// Rounds where no place comes to an end.
const ROUNDS: u32 = 1024;

/// A loop to be run in strips.
#[derive(Debug)]
pub(super) struct Strip {
    /// But for the branch that closes it, with what is known of their places.
    body: Vec<Step>,
    /// The branch.
    close: Step,
    /// The one whose register is [`T0`] comes last.
    pins: Vec<Pin>,
    driver: Driver,
    borrowed: Box<[u8]>,
}

/// Accesses by the same registers, and where the host's address of their lowest byte is.
#[derive(Clone, Copy, Debug)]
struct Pin {
    /// Of the lowest byte, at the beginning of a round.
    place: Place,
    /// Behind the highest one.
    end: i64,
    write: bool,
    /// What it goes on by in a round.
    stride: i64,
    register: u8,
}

/// A register of the host that tells the rounds.
#[derive(Clone, Copy, Debug)]
struct Driver {
    register: u8,
    wide: bool,
    stride: i64,
}

/// What a round does to the guest's general-purpose registers.
#[derive(Clone, Copy, Default)]
struct Change {
    used: bool,
    /// What is added to it, if that is all, in operations of 32 or 64 bits.
    added: i64,
    narrow: bool,
    wide: bool,
    otherwise: bool,
}

/// The loop, if the path is one that can be run in strips.
pub(super) fn find(steps: &[Step], factory: &mut InstructionInfoFactory) -> Option<Strip> {
    let (close, body) = steps.split_last()?;
    let head = steps[0].offset;
    let closes = matches!(close.kind, Kind::Jump | Kind::JumpIf)
        && close.goes_on.is_none()
        && target_of(&close.instr) == i64::from(head);
    // The comparison that ends a strip destroys the flags.
    if !closes || steps.len() > LONGEST || steps[0].before != 0 {
        return None;
    }
    let changes = changes(body, factory)?;
    let mut search = Search { changes: &changes, pins: Vec::new(), moved: [0; 16] };
    let mut members = Vec::new();
    for step in body {
        members.push(search.member(step, factory)?);
        search.go_past(step);
    }
    let driver = driver(&changes)?;
    let (pins, borrowed) = with_registers(search.pins, &changes)?;
    let known = |(step, member): (&Step, Option<(usize, i64)>)| {
        let at = |(pin, displacement): (usize, i64)| Known {
            base: pins[pin].register,
            delta: (displacement - pins[pin].place.disp) as i32,
        };
        Step { known: member.map(at), ..step.clone() }
    };
    let body = body.iter().zip(members).map(known).collect();
    let pins = pins.iter().rev().copied().collect();
    Some(Strip { body, close: close.clone(), pins, driver, borrowed })
}

/// The places found so far.
struct Search<'a> {
    changes: &'a [Change; 16],
    pins: Vec<Pin>,
    /// What was added to the registers since the beginning of the round.
    moved: [i64; 16],
}

impl Search<'_> {
    /// The pin of the step's memory operand and the displacement at the beginning of the round, if it has one.
    fn member(
        &mut self,
        step: &Step,
        factory: &mut InstructionInfoFactory,
    ) -> Option<Option<(usize, i64)>> {
        if step.kind == Kind::Return || !groups::leaves_t0(step, factory) {
            return None;
        }
        let Some(access) = groups::access(step, factory) else {
            let none = matches!(step.kind, Kind::Nothing | Kind::Lea) || !has_memory(&step.instr);
            return none.then_some(None);
        };
        let place = access.place;
        let displacement = place.disp + self.by_registers(&place, &self.moved)?;
        let added = self.changes.map(|change| change.added);
        let stride = self.by_registers(&place, &added)?;
        // What was aligned in the first round is in all.
        let aligned = !access.aligned || stride % access.size as i64 == 0;
        if stride.abs() > STRIDE || !aligned {
            return None;
        }
        let end = displacement + access.size as i64;
        let new = Pin {
            place: Place { disp: displacement, ..place },
            end,
            write: access.write,
            stride,
            register: T0,
        };
        let joined = self.pins.iter().position(|pin| pin.and(&new).is_some());
        let index = joined.unwrap_or(self.pins.len());
        match joined {
            Some(index) => self.pins[index] = self.pins[index].and(&new)?,
            None => self.pins.push(new),
        }
        (self.pins.len() <= PLACES).then_some(Some((index, displacement)))
    }

    /// The sum of what `values` has for the place's registers. `None`: one of them changes otherwise.
    fn by_registers(&self, place: &Place, values: &[i64; 16]) -> Option<i64> {
        let of = |register: Register| {
            if !register.is_gpr() {
                return Some(0);
            }
            let number = register.number();
            let change = self.changes[number];
            (!change.otherwise && !change.narrow).then_some(values[number])
        };
        Some(of(place.base)? + (of(place.index)? << place.scale))
    }

    fn go_past(&mut self, step: &Step) {
        if let Some((register, added, _)) = added(step) {
            self.moved[register] += added;
        }
    }
}

impl Pin {
    /// Bytes of all of it.
    fn span(&self) -> usize {
        (self.end - self.place.disp) as usize
    }

    /// Both, if one look-up serves them.
    fn and(&self, other: &Self) -> Option<Self> {
        let disp = self.place.disp.min(other.place.disp);
        let end = self.end.max(other.end);
        if !self.place.has_registers_of(&other.place) || end - disp > SPAN {
            return None;
        }
        let write = self.write || other.write;
        Some(Self { place: Place { disp, ..self.place }, end, write, ..*self })
    }
}

/// `None`: a register is used that is not among the general-purpose ones that have a number.
fn changes(body: &[Step], factory: &mut InstructionInfoFactory) -> Option<[Change; 16]> {
    let mut changes = [Change::default(); 16];
    for step in body {
        let added = added(step);
        if let Some((register, value, wide)) = added {
            let change = &mut changes[register];
            change.added += value;
            change.wide |= wide;
            change.narrow |= !wide;
            change.used = true;
        }
        for used in factory.info(&step.instr).used_registers() {
            let register = used.register().full_register();
            if !register.is_gpr() {
                continue;
            }
            let change = &mut changes[register.number()];
            change.used = true;
            let constant = added.is_some_and(|(added, ..)| added == register.number());
            change.otherwise |= writes(used.access()) && !constant;
        }
    }
    for change in &mut changes {
        change.otherwise |= change.narrow && change.wide;
    }
    Some(changes)
}

/// The register that the step adds a constant to, how much, and whether all 64 bits of it.
fn added(step: &Step) -> Option<(usize, i64, bool)> {
    let stack = Register::RSP.number();
    match step.kind {
        Kind::Push => return Some((stack, -8, true)),
        Kind::Pop if step.instr.op0_register() != Register::RSP => return Some((stack, 8, true)),
        Kind::Same | Kind::Lea => {}
        _ => return None,
    }
    let added = groups::added(&step.instr)?;
    let register = step.instr.op0_register();
    Some((register.number(), added, register.size() == 8))
}

/// Any that is in the host's registers.
fn driver(changes: &[Change; 16]) -> Option<Driver> {
    let candidate = |(slot, change): (usize, &Change)| {
        let register = host(slot as u8)?;
        let counts = !change.otherwise && change.added != 0 && change.added.abs() <= STRIDE;
        counts.then_some(Driver { register, wide: change.wide, stride: change.added })
    };
    changes.iter().enumerate().find_map(candidate)
}

/// A register for each pin: [`T0`] for the first, and for the others some that the loop does not use.
fn with_registers(mut pins: Vec<Pin>, changes: &[Change; 16]) -> Option<(Vec<Pin>, Box<[u8]>)> {
    let unused = |slot: u8| host(slot).filter(|&host| host == slot && !changes[slot as usize].used);
    let mut free = (0..16).filter_map(unused);
    let mut borrowed = Vec::new();
    for pin in pins.iter_mut().skip(1) {
        pin.register = free.next()?;
        borrowed.push(pin.register);
    }
    Some((pins, borrowed.into()))
}

impl Translator<'_> {
    /// Behind the path, which has gone round once.
    pub(super) fn run_in_strips(&mut self, strip: &Strip) -> Option<()> {
        let entry = self.strip.take()?;
        let (top, live) = self.round;
        let [again, round, wanted, fail] = [(); 4].map(|()| self.asm.label());
        (self.vectors, self.aside) = (live, false);
        self.asm.bind(entry);
        for &slot in &strip.borrowed {
            self.asm.store_field(register(slot), slot);
        }
        self.asm.bind(again);
        self.asm.load_field(T0, field!(pending));
        self.asm.compare_byte_with_0(Address::at(T0, 0));
        self.asm.jump_if(Condition::NE, wanted);
        self.look_up_all(&strip.pins, fail)?;
        self.set_limit(strip.driver);
        self.asm.bind(round);
        self.in_strip = Some(strip.borrowed.clone());
        for step in &strip.body {
            self.step(step)?;
        }
        self.go_round(strip, round);
        self.in_strip = None;
        self.asm.jump(again);
        let head = self.head.into();
        let wanted = (wanted, Work::Wanted { target: head, aside: false });
        for (label, work) in [wanted, (fail, Work::GoOn { place: top })] {
            let (borrowed, work) = (strip.borrowed.clone(), Box::new(work));
            self.stubs.push(Stub { label, work: Work::GiveBack { borrowed, work } });
        }
        Some(())
    }

    /// All pins get their host addresses, and T1 the number of rounds that stay in their pages, less one.
    fn look_up_all(&mut self, pins: &[Pin], fail: Label) -> Option<()> {
        let bounds = pins.iter().filter(|pin| pin.stride != 0).count();
        // T1 does not keep it while another one is looked up.
        let kept = bounds > 1 || bounds == 1 && pins.last().is_some_and(|last| last.stride == 0);
        if kept {
            self.asm.store_field_constant(field!(rounds), i32::MAX);
        }
        for pin in pins {
            self.address_at(&pin.place)?;
            self.check_or(0, pin.span(), pin.write, fail);
            if pin.stride != 0 {
                self.rounds_of(pin);
            }
            if pin.stride != 0 && kept {
                let fewer = self.asm.label();
                self.asm.compare_with_field(T1, field!(rounds));
                self.asm.jump_if(Condition::AE, fewer);
                self.asm.store_field(field!(rounds), T1);
                self.asm.bind(fewer);
            }
            if pin.register != T0 {
                self.asm.mov(pin.register, T0);
            }
        }
        match bounds {
            0 => self.asm.constant_32(T1, ROUNDS),
            _ if kept => self.asm.load_field(T1, field!(rounds)),
            _ => {}
        }
        Some(())
    }

    /// T1 = how many more rounds are possible before `pin`, whose address is in T0, comes to the end of its page.
    fn rounds_of(&mut self, pin: &Pin) {
        self.asm.low_32(T1, T0);
        self.asm.and_32(T1, 4095);
        if pin.stride > 0 {
            // Bytes behind it.
            self.asm.negate_32(T1);
            self.asm.lea_32(T1, Address::at(T1, 4096 - pin.span() as i32));
        }
        // By no more than a power of two each.
        let shift = pin.stride.unsigned_abs().next_power_of_two().trailing_zeros();
        if shift != 0 {
            self.asm.shift_right(T1, shift as u8);
        }
    }

    /// The driver's value behind T1 more rounds than one.
    fn set_limit(&mut self, Driver { register, wide, stride }: Driver) {
        if stride != 1 {
            self.asm.multiply(T1, stride as i32);
        }
        let behind = Address::sum(T1, register, stride as i32);
        if wide {
            self.asm.lea(T1, behind);
        } else {
            self.asm.lea_32(T1, behind);
        }
        self.asm.store_field(field!(limit_of_strip), T1);
    }

    /// The end of a round.
    fn go_round(&mut self, strip: &Strip, round: Label) {
        let close = &strip.close;
        if close.kind == Kind::JumpIf {
            let condition = condition_bits(close.instr.condition_code() as u8);
            self.leave_if(condition ^ 1, close.next.into());
        }
        for pin in strip.pins.iter().filter(|pin| pin.stride != 0) {
            self.asm.lea(pin.register, Address::at(pin.register, pin.stride as i32));
        }
        self.asm.compare_with_field(strip.driver.register, field!(limit_of_strip));
        self.asm.jump_if(Condition::NE, round);
    }

    /// [`Work::GiveBack`].
    pub(super) fn give_back(&mut self, borrowed: &[u8]) {
        for &slot in borrowed {
            self.asm.load_field(slot, register(slot));
        }
    }
}
