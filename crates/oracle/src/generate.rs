//! Random integer instructions, and states on which they do something.
//!
//! An instruction is encoded from iced's own tables with random operands, may get further prefixes, and is
//! decoded again: what counts is what the bytes mean. Its state is made so that memory operands mostly
//! fall into the data pages, often across a page border, sometimes outside.

use iced_x86::{
    Code, CodeSize, Decoder, DecoderOptions, Encoder, Instruction, MemoryOperand, Mnemonic,
    OpCodeOperandKind as K, OpKind, Register,
};

use crate::arena;
use crate::native::Bitness;
use crate::random::Random;
use crate::state::State;

mod mnemonics;

pub use mnemonics::{BRANCHES, INTEGER};

/// Makes test cases.
pub struct Generator {
    codes: Vec<Code>,
    bitness: Bitness,
}

impl Generator {
    /// A generator of instructions with these mnemonics that exist in code of this width and that the host
    /// has.
    #[must_use]
    pub fn new(mnemonics: &[Mnemonic], bitness: Bitness) -> Self {
        let codes = Code::values()
            .filter(|code| mnemonics.contains(&code.mnemonic()) && exists(*code, bitness))
            .collect();
        Self { codes, bitness }
    }

    /// The encodings in use.
    #[must_use]
    pub fn codes(&self) -> &[Code] {
        &self.codes
    }

    /// An instruction as bytes, what it is, and a state for it.
    pub fn case(&self, random: &mut Random) -> (Vec<u8>, Instruction, State) {
        loop {
            let (bytes, instr) = self.instruction(random);
            if let Some(state) = self.state(&instr, random) {
                return (bytes, instr, state);
            }
        }
    }

    /// One instruction as bytes, and what it is.
    pub fn instruction(&self, random: &mut Random) -> (Vec<u8>, Instruction) {
        loop {
            let code = random.pick(&self.codes);
            if let Some(found) = self.encode(code, random) {
                return found;
            }
        }
    }

    /// An encoding of `code`; `None` where the operands drawn do not go together.
    pub fn encode(&self, code: Code, random: &mut Random) -> Option<(Vec<u8>, Instruction)> {
        let instr = operands(code, self.bitness, random)?;
        let mut encoder = Encoder::new(bits(self.bitness));
        encoder.encode(&instr, arena::ENTRY).ok()?;
        let mut bytes = encoder.take_buffer();
        if random.one_in(6) {
            bytes = prefixed(bytes, random);
        }
        let decoded = decode(&bytes, self.bitness)?;
        let allowed = decoded.mnemonic() == code.mnemonic()
            && harmless(&decoded)
            && !(BRANCHES.contains(&decoded.mnemonic()) && has_disputed_prefix(&bytes));
        allowed.then_some((bytes, decoded))
    }

    /// A state for `instr`; `None` where a try gave none that is safe to run.
    pub fn state(&self, instr: &Instruction, random: &mut Random) -> Option<State> {
        let mut state = random_state(random);
        self.cut(&mut state);
        prepare(&mut state, instr, random);
        self.cut(&mut state);
        // A stack in the pages that the native side runs from would destroy them.
        let own = arena::START - 4096..arena::DATA - 4096;
        (!own.contains(&state.gpr[4])).then_some(state)
    }

    /// Registers of 32-bit code have 32 bits.
    fn cut(&self, state: &mut State) {
        if self.bitness == Bitness::Bits32 {
            for value in &mut state.gpr {
                *value &= 0xffff_ffff;
            }
        }
    }
}

fn bits(bitness: Bitness) -> u32 {
    match bitness {
        Bitness::Bits32 => 32,
        Bitness::Bits64 => 64,
    }
}

/// Decodes as the translator does.
#[must_use]
pub fn decode(bytes: &[u8], bitness: Bitness) -> Option<Instruction> {
    let options = DecoderOptions::FORCE_RESERVED_NOP;
    let mut decoder = Decoder::with_ip(bits(bitness), bytes, arena::ENTRY, options);
    let instr = decoder.decode();
    (!instr.is_invalid() && instr.len() == bytes.len()).then_some(instr)
}

/// Encodings that are in the tables but not on processors of today, or not in this width.
fn exists(code: Code, bitness: Bitness) -> bool {
    let info = code.op_code();
    let here = match bitness {
        Bitness::Bits32 => info.mode32(),
        Bitness::Bits64 => info.mode64(),
    };
    let name = format!("{code:?}");
    // Far branches and segment registers are the machine's. 0F 0D with a register does nothing on one
    // vendor's processors and is #UD on the other's. XOP exists no more.
    let excluded = [
        "Cmpxchg486",
        "Umov",
        "XOP",
        "0F0D",
        "ptr16",
        "m1616",
        "m1632",
        "m1664",
        "Sreg",
        "_cr",
        "_dr",
        "_tr",
    ];
    here && info.is_instruction() && !excluded.iter().any(|part| name.contains(part))
}

/// Vendors disagree on branches with an operand-size prefix: it is ignored, or cuts RIP to 16 bits. On
/// some, a repeat prefix exchanges LOOPE and LOOPNE.
fn has_disputed_prefix(bytes: &[u8]) -> bool {
    let prefix = |byte: &&u8| matches!(**byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    bytes.iter().take_while(prefix).any(|byte| matches!(byte, 0x66 | 0xf2 | 0xf3))
}

/// Nothing that reaches outside the arena's agreement.
fn harmless(instr: &Instruction) -> bool {
    // FS is the host's thread pointer. To 32-bit code FS and GS are null and CS is read-only.
    let long = instr.code_size() == CodeSize::Code64;
    let prefix = instr.segment_prefix();
    if prefix == Register::FS || matches!(prefix, Register::GS | Register::CS) && !long {
        return false;
    }
    // Segments other than flat ones and GS do not occur.
    let special = (0..instr.op_count()).any(|op| {
        instr.op_kind(op) == OpKind::Register && {
            let register = instr.op_register(op);
            register.is_segment_register() || register.is_cr() || register.is_dr()
        }
    });
    // A 16-bit address misses the arena.
    let small = instr.memory_base().is_gpr16()
        || instr.memory_index().is_gpr16()
        || instr.memory_displ_size() == 2 && instr.memory_base() == Register::None;
    let string16 = (0..instr.op_count()).any(|op| {
        matches!(
            instr.op_kind(op),
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI | OpKind::NearBranch16
        )
    });
    // Double shifts of 16 bits by more are undefined.
    let far = matches!(instr.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && instr.op_register(1).size() == 2
        && instr.op_kind(2) == OpKind::Immediate8
        && instr.immediate8() & 31 > 16;
    // Calls through RSP would have their stack in the code page. MOVSXD to 16 bits reads 2 bytes or 4.
    let disputed = instr.mnemonic() == Mnemonic::Call && instr.op_register(0).number() == 4
        || instr.code() == Code::Movsxd_r16_rm16;
    !special && !small && !string16 && !disputed && !far
}

/// The same instruction with one or two more prefixes in front.
fn prefixed(bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    const PREFIXES: [u8; 12] =
        [0x26, 0x2e, 0x36, 0x3e, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x41];
    let mut all: Vec<u8> = (0..=random.below(2)).map(|_| random.pick(&PREFIXES)).collect();
    all.extend(bytes);
    all
}

/// `code` with random operands.
fn operands(code: Code, bitness: Bitness, random: &mut Random) -> Option<Instruction> {
    let mut instr = Instruction::default();
    instr.set_code(code);
    let info = code.op_code();
    if info.can_use_lock_prefix() && random.one_in(3) {
        instr.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && random.one_in(2) {
        instr.set_has_rep_prefix(true);
    } else if info.can_use_repne_prefix() && random.one_in(2) {
        instr.set_has_repne_prefix(true);
    }
    for op in 0..info.op_count() {
        operand(&mut instr, op, info.op_kind(op), bitness, random)?;
    }
    Some(instr)
}

fn operand(
    instr: &mut Instruction,
    op: u32,
    kind: K,
    bitness: Bitness,
    random: &mut Random,
) -> Option<()> {
    let register = |instr: &mut Instruction, register| {
        instr.set_op_kind(op, OpKind::Register);
        instr.set_op_register(op, register);
    };
    let long = bitness == Bitness::Bits64;
    match kind {
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem if random.one_in(2) => {
            memory(instr, op, bitness, random);
        }
        K::mem | K::mem_mib => memory(instr, op, bitness, random),
        K::r8_or_mem | K::r8_reg | K::r8_opcode => register(instr, gpr8(long, random)),
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => {
            register(instr, numbered(Register::AX, long, random));
        }
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            register(instr, numbered(Register::EAX, long, random));
        }
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            register(instr, numbered(Register::RAX, long, random));
        }
        K::al => register(instr, Register::AL),
        K::cl => register(instr, Register::CL),
        K::ax => register(instr, Register::AX),
        K::dx => register(instr, Register::DX),
        K::eax => register(instr, Register::EAX),
        K::rax => register(instr, Register::RAX),
        K::imm8_const_1 => immediate(instr, op, OpKind::Immediate8, 1),
        K::imm8 => {
            let second = instr.op_kind(0) == OpKind::Immediate16;
            let kind = if second { OpKind::Immediate8_2nd } else { OpKind::Immediate8 };
            // ENTER: a few levels only, since each reads and writes memory.
            let value = if second { random.below(8) } else { random.interesting() };
            immediate(instr, op, kind, value);
        }
        K::imm8sex16 => immediate(instr, op, OpKind::Immediate8to16, random.bits() as i8 as u64),
        K::imm8sex32 => immediate(instr, op, OpKind::Immediate8to32, random.bits() as i8 as u64),
        K::imm8sex64 => immediate(instr, op, OpKind::Immediate8to64, random.bits() as i8 as u64),
        K::imm16 => {
            let small = matches!(instr.mnemonic(), Mnemonic::Enter | Mnemonic::Ret);
            let value = if small { random.below(256) } else { random.interesting() };
            immediate(instr, op, OpKind::Immediate16, value);
        }
        K::imm32 => immediate(instr, op, OpKind::Immediate32, random.interesting()),
        K::imm32sex64 => {
            let value = random.interesting() as i32 as u64;
            immediate(instr, op, OpKind::Immediate32to64, value);
        }
        K::imm64 => immediate(instr, op, OpKind::Immediate64, random.interesting()),
        K::mem_offs => {
            instr.set_op_kind(op, OpKind::Memory);
            instr.set_memory_displacement64(place(random, 8));
            let short = !long || random.one_in(3);
            instr.set_memory_displ_size(if short { 4 } else { 8 });
        }
        K::seg_rSI => {
            let kinds = if long {
                [OpKind::MemorySegRSI, OpKind::MemorySegESI]
            } else {
                [OpKind::MemorySegESI; 2]
            };
            let kind = string_kind(instr, random.pick(&kinds));
            instr.set_op_kind(op, kind);
        }
        K::es_rDI => {
            let kinds = if long {
                [OpKind::MemoryESRDI, OpKind::MemoryESEDI]
            } else {
                [OpKind::MemoryESEDI; 2]
            };
            let kind = string_kind(instr, random.pick(&kinds));
            instr.set_op_kind(op, kind);
        }
        K::br64_1 | K::br64_4 => branch(instr, op, OpKind::NearBranch64, kind == K::br64_1, random),
        K::br32_1 | K::br32_4 => branch(instr, op, OpKind::NearBranch32, kind == K::br32_1, random),
        _ if instr.mnemonic() == Mnemonic::Xlatb => xlat(instr, op, long),
        K::seg_rBX_al => xlat(instr, op, long),
        _ => return None,
    }
    Some(())
}

/// Both memory operands of a string instruction have the same address size: that of the first.
fn string_kind(instr: &Instruction, kind: OpKind) -> OpKind {
    let short = matches!(instr.op_kind(0), OpKind::MemorySegESI | OpKind::MemoryESEDI);
    let long = matches!(instr.op_kind(0), OpKind::MemorySegRSI | OpKind::MemoryESRDI);
    match kind {
        OpKind::MemorySegRSI if short => OpKind::MemorySegESI,
        OpKind::MemorySegESI if long => OpKind::MemorySegRSI,
        OpKind::MemoryESRDI if short => OpKind::MemoryESEDI,
        OpKind::MemoryESEDI if long => OpKind::MemoryESRDI,
        _ => kind,
    }
}

fn xlat(instr: &mut Instruction, op: u32, long: bool) {
    instr.set_op_kind(op, OpKind::Memory);
    instr.set_memory_base(if long { Register::RBX } else { Register::EBX });
    instr.set_memory_index(Register::AL);
}

fn immediate(instr: &mut Instruction, op: u32, kind: OpKind, value: u64) {
    instr.set_op_kind(op, kind);
    match kind {
        OpKind::Immediate8to16 => instr.set_immediate8to16(value as i16),
        OpKind::Immediate8to32 => instr.set_immediate8to32(value as i32),
        OpKind::Immediate8to64 => instr.set_immediate8to64(value as i64),
        OpKind::Immediate32to64 => instr.set_immediate32to64(value as i64),
        OpKind::Immediate8 => instr.set_immediate8(value as u8),
        OpKind::Immediate8_2nd => instr.set_immediate8_2nd(value as u8),
        OpKind::Immediate16 => instr.set_immediate16(value as u16),
        OpKind::Immediate32 => instr.set_immediate32(value as u32),
        _ => instr.set_immediate64(value),
    }
}

/// A branch to the code page (where INT3 waits) or the data pages (which are not executable).
fn branch(instr: &mut Instruction, op: u32, kind: OpKind, short: bool, random: &mut Random) {
    instr.set_op_kind(op, kind);
    let target = if short {
        // Not the instruction itself, nor the jump behind it: prefixes may move either a little.
        let (before, after) = (arena::ENTRY - 100, arena::ENTRY + 40);
        random.pick(&[before, after]) + random.below(80)
    } else {
        branch_target(random)
    };
    match kind {
        OpKind::NearBranch64 => instr.set_near_branch64(target),
        _ => instr.set_near_branch32(target as u32),
    }
}

/// An address at which execution stops at once.
fn branch_target(random: &mut Random) -> u64 {
    let before = arena::CODE + random.below(0x7c0);
    let after = arena::ENTRY + 0x40 + random.below(0x7c0);
    let data = arena::DATA + random.below(arena::DATA_LEN as u64);
    random.pick(&[before, after, data])
}

fn gpr8(long: bool, random: &mut Random) -> Register {
    const LOW: [Register; 8] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::AH,
        Register::CH,
        Register::DH,
        Register::BH,
    ];
    if long && random.one_in(2) {
        let base = random.pick(&[Register::SPL, Register::R8L]);
        let count = if base == Register::SPL { 4 } else { 8 };
        return offset(base, random.below(count));
    }
    random.pick(&LOW)
}

fn numbered(first: Register, long: bool, random: &mut Random) -> Register {
    offset(first, random.below(if long { 16 } else { 8 }))
}

fn offset(first: Register, by: u64) -> Register {
    Register::values().nth(first as usize + by as usize).unwrap_or(first)
}

/// A random memory operand: any base, index, scale, displacement; sometimes RIP-relative, absolute, with a
/// 32-bit address or in GS.
fn memory(instr: &mut Instruction, op: u32, bitness: Bitness, random: &mut Random) {
    let long = bitness == Bitness::Bits64;
    let first = if long && !random.one_in(5) { Register::RAX } else { Register::EAX };
    let mut base = numbered(first, long, random);
    let mut index = numbered(first, long, random);
    if index.number() == 4 || random.one_in(2) {
        index = Register::None;
    }
    let displacement = match random.below(4) {
        0 => 0,
        1 => random.bits() as i8 as i64,
        _ => random.bits() as i32 as i64,
    };
    let mut operand = MemoryOperand::new(
        base,
        index,
        random.pick(&[1, 2, 4, 8]),
        displacement,
        if displacement == 0 { 0 } else { 1 },
        false,
        if long && random.one_in(12) { Register::GS } else { Register::None },
    );
    if random.one_in(10) {
        base = if long && random.one_in(2) { Register::RIP } else { Register::None };
        operand.base = base;
        operand.index = Register::None;
        operand.scale = 1;
        operand.displacement = place(random, 8) as i64;
        operand.displ_size = if long { 8 } else { 4 };
    }
    instr.set_op_kind(op, OpKind::Memory);
    instr.set_memory_base(operand.base);
    instr.set_memory_index(operand.index);
    instr.set_memory_index_scale(operand.scale);
    instr.set_memory_displacement64(operand.displacement as u64);
    instr.set_memory_displ_size(operand.displ_size);
    instr.set_segment_prefix(operand.segment_prefix);
}

/// An address for an access of `len` bytes: mostly inside the data, often across the border in the middle,
/// sometimes across their end or beyond.
fn place(random: &mut Random, len: u64) -> u64 {
    let middle = arena::DATA + 4096;
    let end = arena::DATA + arena::DATA_LEN as u64;
    match random.below(16) {
        0 => middle - random.below(len + 1),
        1 => end - random.below(len + 1),
        2 => arena::DATA - random.below(len + 1),
        3 => end + random.below(64),
        // Apart from the borders, and aligned, so that most locked accesses stay inside a cache line.
        _ => arena::DATA + 512 + random.below(7000) / 16 * 16 + random.below(2) * random.below(16),
    }
}

fn random_state(random: &mut Random) -> State {
    let mut state = State::new();
    for value in &mut state.gpr {
        *value = random.interesting();
    }
    // Status flags and DF.
    state.rflags = 0x202 | random.bits() & 0x8d5;
    if random.one_in(3) {
        state.rflags |= 0x400;
    }
    for chunk in state.data.chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes());
    }
    state
}

/// Points the registers that `instr` uses for memory into the data.
fn prepare(state: &mut State, instr: &Instruction, random: &mut Random) {
    stack(state, instr, random);
    strings(state, instr, random);
    divisions(state, instr, random);
    let has_memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    if has_memory {
        let len = instr.memory_size().size().max(1) as u64;
        let mut target = place(random, len);
        if random.one_in(200) && instr.code_size() == CodeSize::Code64 {
            // Not canonical.
            target ^= 1 << 63;
        }
        if instr.mnemonic() == Mnemonic::Cmpxchg16b && !random.one_in(8) {
            target &= !15;
        }
        bit_index(state, instr, random);
        solve(state, instr, target);
    }
    double_shift(state, instr, random);
    indirect_branch(state, instr, random);
}

/// Makes the effective address `target`, by the base register or, where there is none, the index.
fn solve(state: &mut State, instr: &Instruction, mut target: u64) {
    let (base, index) = (instr.memory_base(), instr.memory_index());
    if instr.memory_segment() == Register::GS {
        target = target.wrapping_sub(arena::GS_BASE);
    }
    if !base.is_gpr() {
        return;
    }
    let displacement = instr.memory_displacement64();
    let number = base.number();
    let offset = if index == Register::AL {
        state.gpr[0] & 0xff
    } else if index.is_gpr() {
        // A shared base and index can only be met where the scale allows.
        let factor = u64::from(instr.memory_index_scale());
        if index.number() == number {
            state.gpr[number] = target.wrapping_sub(displacement) / (factor + 1);
            return;
        }
        state.gpr[index.number()].wrapping_mul(factor)
    } else {
        0
    };
    let value = target.wrapping_sub(displacement).wrapping_sub(offset);
    let upper = state.gpr[number] & !0xffff_ffff;
    // With a 32-bit address the upper half does not count.
    state.gpr[number] = if base.size() == 4 { value & 0xffff_ffff | upper } else { value };
}

/// BT and its kin: an index that stays near.
fn bit_index(state: &mut State, instr: &Instruction, random: &mut Random) {
    let bit =
        matches!(instr.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if bit && instr.op_kind(1) == OpKind::Register {
        let number = instr.op_register(1).number();
        let index = random.below(2048) as i64 - 1024;
        let junk = random.bits();
        state.gpr[number] = match instr.op_register(1).size() {
            2 => junk & !0xffff | index as u16 as u64,
            4 => junk & !0xffff_ffff | index as u32 as u64,
            _ => index as u64,
        };
    }
}

/// SHLD and SHRD of 16 bits by CL: a count that is defined, unless CL is already part of an address.
fn double_shift(state: &mut State, instr: &Instruction, random: &mut Random) {
    let double = matches!(instr.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let by_cl = double && instr.op_kind(2) == OpKind::Register;
    if by_cl && instr.op_register(1).size() == 2 {
        let count = random.below(17) | random.below(8) << 5;
        state.gpr[1] = state.gpr[1] & !0xff | count;
    }
}

fn stack(state: &mut State, instr: &Instruction, random: &mut Random) {
    if instr.is_stack_instruction() || instr.mnemonic() == Mnemonic::Leave {
        state.gpr[4] = place(random, 8);
        state.gpr[5] = place(random, 8);
        if matches!(instr.mnemonic(), Mnemonic::Popa | Mnemonic::Popad) {
            // Processors differ in which registers a fault in the middle leaves loaded.
            state.gpr[4] = arena::DATA + 4096 + random.below(1024) - 512;
        }
    }
}

fn strings(state: &mut State, instr: &Instruction, random: &mut Random) {
    if !instr.is_string_instruction() {
        return;
    }
    for number in [6, 7] {
        state.gpr[number] = place(random, 8);
    }
    if random.one_in(4) {
        // Overlapping.
        state.gpr[7] = state.gpr[6].wrapping_add(random.below(32)).wrapping_sub(16);
    }
    if instr.memory_segment() == Register::GS {
        state.gpr[6] = state.gpr[6].wrapping_sub(arena::GS_BASE);
    }
    state.gpr[1] = if random.one_in(8) { random.below(3000) } else { random.below(20) };
    if random.one_in(3) {
        // Something to find, or equal for long.
        let byte = random.bits() as u8 & 3;
        state.data.fill(byte);
        state.gpr[0] = u64::from(byte) * 0x0101_0101_0101_0101;
        let other = random.below(arena::DATA_LEN as u64) as usize;
        state.data[other] ^= 0x10;
    }
}

/// Quotients that fit, most of the time.
fn divisions(state: &mut State, instr: &Instruction, random: &mut Random) {
    let divides = matches!(instr.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
    if divides && !random.one_in(4) {
        let size = if instr.op_kind(0) == OpKind::Register {
            instr.op_register(0).size()
        } else {
            instr.memory_size().size()
        };
        let negative = instr.mnemonic() == Mnemonic::Idiv && random.one_in(2);
        match size {
            1 => state.gpr[0] = random.below(4000),
            _ if negative => state.gpr[2] = u64::MAX,
            _ => state.gpr[2] = random.below(4),
        }
    }
}

/// Where an indirect branch goes.
fn indirect_branch(state: &mut State, instr: &Instruction, random: &mut Random) {
    let target = branch_target(random);
    let long = instr.code_size() == CodeSize::Code64;
    let target = if long && random.one_in(8) { target | 1 << 60 } else { target };
    match instr.mnemonic() {
        Mnemonic::Ret => put(state, state.gpr[4], target),
        Mnemonic::Jmp | Mnemonic::Call if instr.op_kind(0) == OpKind::Register => {
            state.gpr[instr.op_register(0).number()] = target;
        }
        Mnemonic::Jmp | Mnemonic::Call if instr.op_kind(0) == OpKind::Memory => {
            if let Some(va) = address(state, instr) {
                put(state, va, target);
            }
        }
        _ => {}
    }
}

/// The linear address of the memory operand, which is the first.
fn address(state: &State, instr: &Instruction) -> Option<u64> {
    instr.virtual_address(0, 0, |register, _, _| {
        Some(match register {
            Register::GS => arena::GS_BASE,
            _ if register.is_segment_register() => 0,
            _ if register.size() == 4 => state.gpr[register.number()] & 0xffff_ffff,
            _ => state.gpr[register.number()],
        })
    })
}

/// Stores as much of a word as lies inside.
fn put(state: &mut State, va: u64, value: u64) {
    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
        let at = va.wrapping_add(i as u64).wrapping_sub(arena::DATA);
        if let Some(place) = state.data.get_mut(at as usize) {
            *place = byte;
        }
    }
}
