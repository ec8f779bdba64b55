//! Vector and x87 instructions, and registers for them.

use iced_x86::{Code, CpuidFeature, DecoderOptions, EncodingKind, Instruction, Mnemonic};

use crate::random::Random;
use crate::state::State;

/// Every vector and x87 instruction of 64-bit code that the host has, without those that load or save state.
pub(super) fn codes() -> Vec<Code> {
    Code::values().filter(|&code| exists(code)).collect()
}

fn exists(code: Code) -> bool {
    let mut instr = Instruction::default();
    instr.set_code(code);
    let info = code.op_code();
    matches!(instr.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && info.mode64()
        && info.decoder_option() == DecoderOptions::NONE
        && !info.fwait()
        && info.is_instruction()
        && code.cpuid_features().iter().all(|feature| host_has(*feature))
        && !is_other(code.mnemonic())
}

/// Integer instructions of these sets, and what saves and loads state.
fn is_other(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Crc32
            | Lfence
            | Mfence
            | Movnti
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Sfence
            | Fldenv
            | Fnsave
            | Fnstenv
            | Frstor
            | Ldmxcsr
            | Vldmxcsr
    )
}

fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        FPU | FPU287 | FPU387 | MMX | SSE | SSE2 => true,
        SSE3 => is_x86_feature_detected!("sse3"),
        PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        SSSE3 => is_x86_feature_detected!("ssse3"),
        FMA => is_x86_feature_detected!("fma"),
        SSE4_1 => is_x86_feature_detected!("sse4.1"),
        SSE4_2 => is_x86_feature_detected!("sse4.2"),
        AES => is_x86_feature_detected!("aes"),
        AVX => is_x86_feature_detected!("avx"),
        F16C => is_x86_feature_detected!("f16c"),
        AVX2 => is_x86_feature_detected!("avx2"),
        SHA => is_x86_feature_detected!("sha"),
        GFNI => is_x86_feature_detected!("gfni"),
        VAES => is_x86_feature_detected!("vaes"),
        VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

/// Random vector registers and x87 stack. Most exceptions are masked; any rounding.
pub fn randomise(state: &mut State, random: &mut Random) {
    let image = &mut state.xstate;
    for chunk in image[160..416].chunks_exact_mut(8) {
        chunk.copy_from_slice(&lanes(random).to_le_bytes());
    }
    for chunk in image[576..832].chunks_exact_mut(8) {
        chunk.copy_from_slice(&lanes(random).to_le_bytes());
    }
    // Not all in their initial state, which the host would not save.
    image[576] |= 1;
    let control = random.below(4) << 13 | random.below(2) << 15 | random.below(2) << 6;
    let masks = if random.one_in(20) { random.below(64) } else { 0x3f };
    let mxcsr = (masks << 7 | control | random.below(64) & random.bits()) as u32;
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    x87(state, random);
}

/// Two or four numbers that are often of a size.
fn lanes(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => (random.below(4096) as f64 / 16.0 - 100.0).to_bits(),
        1 => {
            let mut single = || u64::from((random.below(4096) as f32 / 16.0 - 100.0).to_bits());
            single() << 32 | single()
        }
        2 => random.interesting(),
        _ => random.bits(),
    }
}

fn x87(state: &mut State, random: &mut Random) {
    let image = &mut state.xstate;
    let masks = if random.one_in(20) { random.below(64) } else { 0x3f };
    let control = 0x40 | masks | random.pick(&[0, 2, 3]) << 8 | random.below(4) << 10;
    // Nothing pending.
    let flags = if random.one_in(2) { random.below(64) & masks } else { 0 };
    let status = flags | random.bits() & 0x4700 | random.below(8) << 11;
    image[0..2].copy_from_slice(&(control as u16).to_le_bytes());
    image[2..4].copy_from_slice(&(status as u16).to_le_bytes());
    image[4] = random.pick(&[0, 0xff, 0xff, 0x3c, random.clone().bits() as u8]);
    for register in 0..8 {
        let at = 32 + 16 * register;
        let exponent = match random.below(4) {
            0 => random.bits(),
            1 => 0x7fff | random.bits() & 0x8000,
            _ => (0x3fff + random.below(40)) | random.bits() & 0x8000,
        };
        let significand = random.bits() | u64::from(!random.one_in(10)) << 63;
        image[at..at + 8].copy_from_slice(&significand.to_le_bytes());
        image[at + 8..at + 10].copy_from_slice(&(exponent as u16).to_le_bytes());
    }
}
