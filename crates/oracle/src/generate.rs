//! Random integer instructions, and states on which they do something.
//!
//! An instruction is encoded from iced's own tables with random operands, may get further prefixes, and is
//! decoded again: what counts is what the bytes mean. Its state is made so that memory operands mostly
//! fall into the data pages, often across a page border, sometimes outside.

use iced_x86::{
    Code, CodeSize, CpuidFeature, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind,
    Register,
};

use crate::arena;
use crate::native::Bitness;
use crate::random::Random;
use crate::state::State;

mod mnemonics;
mod operands;
mod prepare;
mod vectors;

pub use mnemonics::{BRANCHES, INTEGER};
use operands::operands;
use prepare::{prepare, random_state};
pub use vectors::randomise;

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

    /// A generator of vector and x87 instructions that the host has, in 64-bit code.
    #[must_use]
    pub fn vectors() -> Self {
        Self { codes: vectors::codes(), bitness: Bitness::Bits64 }
    }

    /// As many of integer instructions beside them.
    #[must_use]
    pub fn mixed() -> Self {
        let mut all = Self::vectors();
        let integer = Self::new(INTEGER, Bitness::Bits64).codes;
        let many = integer.iter().cycle().take(all.codes.len());
        all.codes.extend(many);
        all
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
    // vendor's processors and is #UD on the other's. XOP exists no more. Two names are of SSE too.
    let excluded = [
        "Cmpxchg486",
        "Umov",
        "XOP",
        "xmm",
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
    let present = code.cpuid_features().iter().all(|feature| host_has(*feature));
    here && present && info.is_instruction() && !excluded.iter().any(|part| name.contains(part))
}

/// Whether the host has an extension of the integer instruction set.
fn host_has(feature: CpuidFeature) -> bool {
    let leaf_7 = std::arch::x86_64::__cpuid_count(7, 0).ebx;
    match feature {
        CpuidFeature::ADX => is_x86_feature_detected!("adx"),
        CpuidFeature::BMI1 => is_x86_feature_detected!("bmi1"),
        CpuidFeature::BMI2 => is_x86_feature_detected!("bmi2"),
        CpuidFeature::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        CpuidFeature::LZCNT => is_x86_feature_detected!("lzcnt"),
        CpuidFeature::MOVBE => is_x86_feature_detected!("movbe"),
        CpuidFeature::POPCNT => is_x86_feature_detected!("popcnt"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::CLFLUSHOPT => leaf_7 & 1 << 23 != 0,
        CpuidFeature::CLWB => leaf_7 & 1 << 24 != 0,
        _ => true,
    }
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

/// An address at which execution stops at once.
fn branch_target(random: &mut Random) -> u64 {
    let before = arena::CODE + random.below(0x7c0);
    let after = arena::ENTRY + 0x40 + random.below(0x7c0);
    let data = arena::DATA + random.below(arena::DATA_LEN as u64);
    random.pick(&[before, after, data])
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
