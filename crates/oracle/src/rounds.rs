//! Loops over arrays: random instructions whose memory operands go on by a constant from round to round.

use iced_x86::{Code, Instruction, InstructionInfoFactory, MemoryOperand, Register};
use translator::native::in_rflags;

use crate::arena;
use crate::block::{encoded, has_memory, suits, taint, with_memory};
use crate::generate::Generator;
use crate::random::Random;
use crate::state::State;

/// A loop.
#[derive(Debug)]
pub struct Rounds {
    /// The code.
    pub bytes: Vec<u8>,
    /// The same, decoded.
    pub instrs: Vec<Instruction>,
    /// Where each is, and the flags that are undefined before it.
    places: Vec<(u64, u64)>,
    walkers: Vec<Walker>,
    counter: Counter,
}

/// A register that goes on by `stride` in each round.
#[derive(Clone, Copy, Debug)]
struct Walker {
    register: Register,
    stride: i64,
    /// With this register, which does not change, as base, and so many times the walker as index.
    base: Option<(Register, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    register: Register,
    wide: bool,
    rounds: u64,
}

impl Rounds {
    /// The flags that are undefined at `rip`.
    #[must_use]
    pub fn undefined_at(&self, rip: u64) -> u64 {
        let known = self.places.iter().find(|&&(place, _)| place == rip);
        known.map_or(0, |&(_, undefined)| undefined)
    }

    fn push(&mut self, bytes: Vec<u8>, instr: Instruction, undefined: u64) {
        self.places.push((arena::ENTRY + self.bytes.len() as u64, undefined));
        self.bytes.extend(bytes);
        self.instrs.push(instr);
    }

    /// A state in which most accesses of most rounds lie in the data.
    pub fn state(&self, random: &mut Random) -> State {
        let mut state = crate::block::state(random);
        for walker in &self.walkers {
            let (first, last) = (64 + random.below(7800), random.below(8));
            let place = arena::DATA + first / 32 * 32 + if random.one_in(3) { last } else { 0 };
            let value = match walker.base {
                Some((base, scale)) => {
                    let index = random.below(64);
                    state.gpr[base.number()] = place.wrapping_sub(index * u64::from(scale));
                    index
                }
                None => place,
            };
            state.gpr[walker.register.number()] = value;
        }
        let rounds = self.counter.rounds;
        // The upper half counts with 64 bits only, and is lost with 32.
        let upper = if self.counter.wide { 0 } else { random.bits() << 32 };
        state.gpr[self.counter.register.number()] = rounds | upper;
        state
    }
}

/// A loop of 2 to 12 instructions beside those that count.
pub fn rounds(generator: &Generator, random: &mut Random) -> Rounds {
    let mut free: Vec<Register> =
        (0..16).filter(|&number| number != 4).map(|number| Register::RAX + number).collect();
    let mut draw = |random: &mut Random| free.swap_remove(random.below(free.len() as u64) as usize);
    let rounds = random.pick(&[1, 2, 3, 10, 40, 150, 700]) + random.below(3);
    let counter = Counter { register: draw(random), wide: random.one_in(2), rounds };
    let count = 1 + random.below(5);
    let walkers: Vec<Walker> = (0..count)
        .map(|_| {
            let register = draw(random);
            let scale = random.pick(&[1, 2, 4, 8]);
            let stride = random.pick(&[1, 2, 4, 8, 8, 16, 16, 32, 32, 12, 24, 0, 96]);
            let stride = if random.one_in(4) { -stride } else { stride };
            let base = random.one_in(3).then(|| (draw(random), scale));
            Walker { register, stride, base }
        })
        .collect();
    let (bytes, instrs, places) = Default::default();
    let mut made = Rounds { bytes, instrs, places, walkers, counter };
    body(&mut made, generator, random);
    close(&mut made, random);
    made
}

fn body(made: &mut Rounds, generator: &Generator, random: &mut Random) {
    let walkers = made.walkers.clone();
    let mut reserved: Vec<Register> = walkers.iter().map(|walker| walker.register).collect();
    reserved.extend(walkers.iter().filter_map(|walker| walker.base.map(|(base, _)| base)));
    reserved.push(made.counter.register);
    let len = 2 + random.below(11);
    // Where each goes on.
    let turns: Vec<u64> = walkers.iter().map(|_| random.below(len)).collect();
    let mut info = InstructionInfoFactory::new();
    let (mut tainted, mut done) = (0, 0);
    while done < len {
        let Some((bytes, instr)) = one(generator, &walkers, random) else { continue };
        let reads_undefined = in_rflags(instr.rflags_read()) & tainted != 0;
        if !suits(&instr, &mut info, &reserved) || reads_undefined {
            continue;
        }
        // It begins again with all flags defined.
        made.push(bytes, instr, tainted);
        tainted = taint(tainted, &instr);
        for (walker, _) in walkers.iter().zip(&turns).filter(|&(_, &turn)| turn == done) {
            let Some((bytes, instr)) = goes_on(walker, random) else { continue };
            made.push(bytes, instr, tainted);
            tainted = taint(tainted, &instr);
        }
        done += 1;
    }
    // What counts may be a DEC, which leaves the carry.
    let test = Instruction::with2(Code::Test_rm64_r64, Register::RSP, Register::RSP);
    if let Some((bytes, instr)) = test.ok().and_then(encoded) {
        made.push(bytes, instr, tainted);
    }
}

/// A random instruction, with a walker's operand if it has one in memory.
fn one(
    generator: &Generator,
    walkers: &[Walker],
    random: &mut Random,
) -> Option<(Vec<u8>, Instruction)> {
    let (bytes, instr) = generator.instruction(random);
    if !has_memory(&instr) {
        return random.one_in(2).then_some((bytes, instr));
    }
    let walker = random.pick(walkers);
    let near = random.pick(&[0, 0, 0, 8, 32, -32, 64, 5, 600]);
    let (base, index, scale) = match walker.base {
        Some((base, scale)) => (base, walker.register, scale),
        None => (walker.register, Register::None, 1),
    };
    let operand = MemoryOperand::new(base, index, scale, near, 8, false, Register::None);
    with_memory(instr, operand)
}

fn goes_on(walker: &Walker, random: &mut Random) -> Option<(Vec<u8>, Instruction)> {
    let Walker { register, stride, base } = *walker;
    let stride = base.map_or(stride, |(_, scale)| stride / i64::from(scale)) as i32;
    let place = MemoryOperand::with_base_displ_size(register, i64::from(stride), 8);
    let instr = match random.below(4) {
        _ if stride == 1 => Instruction::with1(Code::Inc_rm64, register),
        0 => Instruction::with2(Code::Lea_r64_m, register, place),
        1 => Instruction::with2(Code::Sub_rm64_imm32, register, -stride),
        _ => Instruction::with2(Code::Add_rm64_imm8, register, stride),
    };
    encoded(instr.ok()?)
}

/// Counts, and goes round; sometimes a comparison of a random register leads out before.
fn close(made: &mut Rounds, random: &mut Random) {
    let Counter { register, wide, .. } = made.counter;
    let narrow = Register::EAX + register.number() as u32;
    let count = match (wide, random.one_in(2)) {
        (true, true) => Instruction::with1(Code::Dec_rm64, register),
        (true, false) => Instruction::with2(Code::Sub_rm64_imm8, register, 1),
        (false, true) => Instruction::with1(Code::Dec_rm32, narrow),
        (false, false) => Instruction::with2(Code::Add_rm32_imm8, narrow, -1),
    };
    let mut exit = None;
    if random.one_in(3) {
        // cmp al, imm8; jcc over what follows
        let compared = [0x3c, random.bits() as u8];
        made.bytes.extend(compared);
        made.bytes.extend([0x0f, 0x80 | random.below(16) as u8, 0, 0, 0, 0]);
        exit = Some(made.bytes.len());
    }
    if let Some((bytes, instr)) = count.ok().and_then(encoded) {
        made.push(bytes, instr, 0);
    }
    // jne to the first
    let back = -(made.bytes.len() as i32 + 6);
    made.bytes.extend([0x0f, 0x85]);
    made.bytes.extend(back.to_le_bytes());
    if let Some(exit) = exit {
        let over = (made.bytes.len() - exit) as i32;
        made.bytes[exit - 4..exit].copy_from_slice(&over.to_le_bytes());
    }
}
