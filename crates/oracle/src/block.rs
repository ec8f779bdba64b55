//! Straight-line blocks of random instructions: what one leaves the next one finds.

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess, OpKind,
    Register,
};
use translator::native::in_rflags;

use crate::arena;
use crate::compare::undefined_flags;
use crate::generate::{Generator, decode};
use crate::native::Bitness;
use crate::random::Random;
use crate::state::State;

/// A block, and what may be compared after it.
#[derive(Debug)]
pub struct Block {
    /// The code.
    pub bytes: Vec<u8>,
    /// The same, decoded.
    pub instrs: Vec<Instruction>,
    /// Flags that are undefined before each instruction, and after the last.
    undefined: Vec<u64>,
}

impl Block {
    fn push(&mut self, bytes: Vec<u8>, instr: Instruction, tainted: u64) {
        self.undefined.push(tainted);
        self.bytes.extend(bytes);
        self.instrs.push(instr);
    }

    /// The flags that are undefined when the instruction at `rip` is the next.
    #[must_use]
    pub fn undefined_at(&self, rip: u64) -> u64 {
        let mut at = arena::ENTRY;
        for (instr, undefined) in self.instrs.iter().zip(&self.undefined) {
            if at >= rip {
                return *undefined;
            }
            at += instr.len() as u64;
        }
        self.undefined.last().copied().unwrap_or(0)
    }
}

/// A block in pieces, out of order, that lead to each other by branches of all kinds; at the end it begins again as long
/// as the index is above `LAST_ROUND`.
#[derive(Debug)]
pub struct Scattered {
    /// The code.
    pub bytes: Vec<u8>,
    /// The instructions of the block: where they are, and the flags that are undefined before each.
    places: Vec<(u64, u64)>,
}

impl Scattered {
    /// The flags that are undefined at `rip`.
    #[must_use]
    pub fn undefined_at(&self, rip: u64) -> u64 {
        let known = self.places.iter().find(|&&(place, _)| place == rip);
        known.map_or(0, |&(_, undefined)| undefined)
    }
}

/// See [`Scattered`].
const LAST_ROUND: u8 = 80;

/// A piece: where it stands among them, its instructions, and its own length.
struct Piece {
    instrs: std::ops::Range<usize>,
    end: Vec<u8>,
    /// A 32-bit displacement to the next piece stands at each of these places from the start of `end`.
    leads: Vec<usize>,
}

impl Piece {
    fn new(instrs: std::ops::Range<usize>) -> Self {
        Self { instrs, end: Vec::new(), leads: Vec::new() }
    }

    fn lead(&mut self, opcode: &[u8]) {
        self.end.extend(opcode);
        self.leads.push(self.end.len());
        self.end.extend([0; 4]);
    }
}

/// Takes a block to pieces.
#[must_use]
pub fn scatter(block: &Block, random: &mut Random) -> Scattered {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < block.instrs.len() {
        let to = (at + 1 + random.below(4) as usize).min(block.instrs.len());
        let mut piece = Piece::new(at..to);
        if to < block.instrs.len() {
            lead_on(&mut piece, block.undefined[to], random);
        } else {
            // lea r14, [r14-1]; cmp r14, LAST_ROUND; jg to the first; jmp to the end
            piece.end.extend([0x4d, 0x8d, 0x76, 0xff, 0x49, 0x83, 0xfe, LAST_ROUND]);
            piece.lead(&[0x0f, 0x8f]);
            piece.lead(&[0xe9]);
        }
        pieces.push(piece);
        at = to;
    }
    laid_out(block, &pieces, random)
}

/// What leads from one piece to the next.
fn lead_on(piece: &mut Piece, undefined: u64, random: &mut Random) {
    let condition = random.below(16) as u8;
    match random.below(8) {
        0 => piece.lead(&[0xe8]),
        1..4 => piece.lead(&[0xe9]),
        // Both ways arrive; on one of them RBX changes.
        _ if undefined == 0 => {
            piece.lead(&[0x0f, 0x80 | condition]);
            piece.end.extend([0x48, 0x8d, 0x5b, 0x05]);
            piece.lead(&[0xe9]);
        }
        _ => piece.lead(&[0xe9]),
    }
}

/// The first stays where it is, since it is entered; the others are shuffled.
fn laid_out(block: &Block, pieces: &[Piece], random: &mut Random) -> Scattered {
    let mut order: Vec<usize> = (1..pieces.len()).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    order.insert(0, 0);
    let sizes: Vec<usize> = block.instrs.iter().map(Instruction::len).collect();
    let starts: Vec<usize> = (0..sizes.len()).map(|index| sizes[..index].iter().sum()).collect();
    let (mut bytes, mut places) = (Vec::new(), Vec::new());
    let mut begins = vec![0; pieces.len()];
    let mut leads = Vec::new();
    for index in order {
        let piece = &pieces[index];
        begins[index] = bytes.len();
        for instr in piece.instrs.clone() {
            places.push((arena::ENTRY + bytes.len() as u64, block.undefined[instr]));
            bytes.extend(&block.bytes[starts[instr]..starts[instr] + sizes[instr]]);
        }
        leads.extend(piece.leads.iter().map(|at| (index, bytes.len() + at)));
        bytes.extend(&piece.end);
    }
    let (last, len) = (pieces.len() - 1, bytes.len());
    let mut again = true;
    for (index, at) in leads {
        let to = match index {
            // The first of its two leads back.
            _ if index == last && std::mem::take(&mut again) => 0,
            _ if index == last => len,
            _ => begins[index + 1],
        };
        let relative = to as i32 - (at as i32 + 4);
        bytes[at..at + 4].copy_from_slice(&relative.to_le_bytes());
    }
    Scattered { bytes, places }
}

/// Memory operands are relative to this register, with [`INDEX`] as their only index; no instruction of a
/// block writes either.
const BASE: Register = Register::R15;
const INDEX: Register = Register::R14;

/// A block of 5 to 20 instructions.
pub fn block(generator: &Generator, random: &mut Random) -> Block {
    let mut block = Block { bytes: Vec::new(), instrs: Vec::new(), undefined: vec![0] };
    let mut tainted = 0;
    let len = 5 + random.below(16);
    let mut info = InstructionInfoFactory::new();
    while (block.instrs.len() as u64) < len {
        let (bytes, instr) = generator.instruction(random);
        if !suits(&instr, &mut info, &[BASE, INDEX]) {
            continue;
        }
        let Some((bytes, instr)) = with_safe_memory(bytes, instr, random) else { continue };
        if in_rflags(instr.rflags_read()) & tainted != 0 {
            continue;
        }
        tainted = taint(tainted, &instr);
        block.push(bytes, instr, tainted);
        for (bytes, instr) in stored_back(&instr, random) {
            block.push(bytes, instr, tainted);
        }
    }
    block
}

/// Behind a vector instruction with memory, sometimes, work on registers and a store to the same place.
fn stored_back(instr: &Instruction, random: &mut Random) -> Vec<(Vec<u8>, Instruction)> {
    let is_vector =
        |op| instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_vector_register();
    if !has_memory(instr) || !(0..instr.op_count()).any(is_vector) || random.one_in(3) {
        return Vec::new();
    }
    let operand = MemoryOperand::new(
        instr.memory_base(),
        instr.memory_index(),
        instr.memory_index_scale(),
        instr.memory_displacement64() as i64,
        instr.memory_displ_size(),
        false,
        Register::None,
    );
    let mut number = || random.below(16) as u32;
    let (to, from) = (Register::XMM0 + number(), Register::XMM0 + number());
    let wide = Register::YMM0 + number();
    let work = Instruction::with2(Code::Paddd_xmm_xmmm128, to, from);
    let store = match random.below(7) {
        0 => Instruction::with2(Code::VEX_Vmovdqu_ymmm256_ymm, operand, wide),
        1 => Instruction::with2(Code::VEX_Vmovaps_ymmm256_ymm, operand, wide),
        2 => Instruction::with2(Code::Movaps_xmmm128_xmm, operand, to),
        3 => Instruction::with2(Code::Movsd_xmmm64_xmm, operand, to),
        4 => Instruction::with2(Code::Movss_xmmm32_xmm, operand, to),
        5 => Instruction::with2(Code::VEX_Vmovups_xmmm128_xmm, operand, to),
        _ => Instruction::with2(Code::Movups_xmmm128_xmm, operand, to),
    };
    let work = work.ok().filter(|_| random.one_in(2));
    work.into_iter().chain(store.ok()).filter_map(encoded).collect()
}

pub(crate) fn encoded(instr: Instruction) -> Option<(Vec<u8>, Instruction)> {
    let mut encoder = Encoder::new(64);
    encoder.encode(&instr, arena::ENTRY).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = decode(&bytes, Bitness::Bits64)?;
    Some((bytes, decoded))
}

/// A state in which most memory operands of a block lie in the data.
pub fn state(random: &mut Random) -> State {
    let mut state = State::new();
    for value in &mut state.gpr {
        *value = random.interesting();
    }
    for chunk in state.data.chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes());
    }
    state.rflags = 0x202 | random.bits() & 0x8d5;
    state.gpr[4] = arena::DATA + 4096 + random.below(1024);
    state.gpr[BASE.number()] = arena::DATA + 4096;
    state.gpr[INDEX.number()] = random.below(100);
    state
}

/// The flags that are undefined after `instr`.
pub(crate) fn taint(before: u64, instr: &Instruction) -> u64 {
    // A count of zero leaves the flags as they were, and so possibly undefined.
    let conditional = matches!(
        instr.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    let defined = instr.rflags_written() | instr.rflags_cleared() | instr.rflags_set();
    let cleared = if conditional { 0 } else { in_rflags(defined) };
    before & !cleared | undefined_flags(instr)
}

/// Whether an instruction's effect stays where the block's rules want it: `reserved` registers are not written.
pub(crate) fn suits(
    instr: &Instruction,
    info: &mut InstructionInfoFactory,
    reserved: &[Register],
) -> bool {
    let excluded = instr.is_string_instruction()
        || matches!(
            instr.mnemonic(),
            Mnemonic::Enter | Mnemonic::Leave | Mnemonic::Xlatb | Mnemonic::Std
        )
        // An index in a register reaches anywhere; double shifts by CL may be undefined.
        || bit_string(instr)
        || matches!(instr.code(), Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL)
        || moffs(instr);
    let writes = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let moves_stack = (0..instr.op_count()).any(|op| {
        instr.op_kind(op) == OpKind::Register
            && instr.op_register(op).full_register() == Register::RSP
    });
    let spoils =
        info.info(instr).used_registers().iter().any(|used| {
            writes(used.access()) && reserved.contains(&used.register().full_register())
        });
    !excluded && !spoils && !moves_stack
}

fn bit_string(instr: &Instruction) -> bool {
    let bit =
        matches!(instr.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    bit && instr.op_kind(0) == OpKind::Memory && instr.op_kind(1) == OpKind::Register
}

fn moffs(instr: &Instruction) -> bool {
    has_memory(instr) && format!("{:?}", instr.code()).contains("moffs")
}

/// The same instruction with its memory operand in the data, mostly.
fn with_safe_memory(
    bytes: Vec<u8>,
    instr: Instruction,
    random: &mut Random,
) -> Option<(Vec<u8>, Instruction)> {
    if !has_memory(&instr) {
        return Some((bytes, instr));
    }
    let reach = if random.one_in(30) { 4200 } else { 3500 };
    let mut displacement = random.below(2 * reach) as i64 - reach as i64;
    if random.one_in(2) {
        // Near others, in one page or around the border.
        displacement = displacement.rem_euclid(256) + random.pick(&[-128, 640, 640]);
    }
    let wide = instr.memory_size().size() >= 16;
    // What must be aligned is, mostly.
    let aligned = wide && !random.one_in(12);
    if aligned {
        displacement &= !31;
    }
    let index = if !aligned && random.one_in(2) { INDEX } else { Register::None };
    let scale = random.pick(&[1, 2, 4]);
    let operand = MemoryOperand::new(BASE, index, scale, displacement, 8, false, Register::None);
    with_memory(instr, operand)
}

pub(crate) fn has_memory(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory)
}

/// The same instruction with this memory operand.
pub(crate) fn with_memory(
    mut instr: Instruction,
    operand: MemoryOperand,
) -> Option<(Vec<u8>, Instruction)> {
    instr.set_memory_base(operand.base);
    instr.set_memory_index(operand.index);
    instr.set_memory_index_scale(operand.scale);
    instr.set_memory_displacement64(operand.displacement as u64);
    instr.set_memory_displ_size(operand.displ_size);
    instr.set_segment_prefix(Register::None);
    let mut encoder = Encoder::new(64);
    encoder.encode(&instr, arena::ENTRY).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = decode(&bytes, Bitness::Bits64)?;
    (decoded.code() == instr.code()).then_some((bytes, decoded))
}
